//! One product over a grid of output pixels: what forward passes and gradients of inputs are made of.

/// A product for every pixel of a grid. Distances are in values: base, image, row, pixel.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Images.
    pub images: usize,
    /// Rows of output pixels in an image.
    pub height: usize,
    /// Output pixels of a row.
    pub width: usize,
    /// Where an output pixel's input starts.
    pub input: [usize; 4],
    /// Where an output pixel lies.
    pub output: [usize; 4],
    /// Runs of contiguous input values for each output pixel: the kernel's rows.
    pub runs: usize,
    /// Values in a run: kernel width × channels in.
    pub run_len: usize,
    /// Distance between an output pixel's runs.
    pub run_stride: usize,
    /// Adds to what the output holds instead of overwriting it.
    pub accumulate: bool,
}

impl Pass {
    /// Whether there is no pixel.
    pub fn is_empty(&self) -> bool {
        self.images * self.height * self.width == 0
    }

    /// Input values from a pixel's first to behind its last.
    pub fn reach(&self) -> usize {
        (self.runs - 1) * self.run_stride + self.run_len
    }

    /// Panics if the pass, which is not empty, reaches beyond slices of these lengths.
    pub fn check(&self, input: usize, output: usize, channels: usize) {
        let last = |at: &[usize; 4]| {
            at[0] + (self.images - 1) * at[1] + (self.height - 1) * at[2] + (self.width - 1) * at[3]
        };
        assert!(last(&self.input) + self.reach() <= input);
        assert!(last(&self.output) + channels <= output);
    }

    /// Its pixels in all, if they follow each other at even distances in input and output.
    pub fn as_one_row(&self) -> Option<usize> {
        let even = |at: &[usize; 4]| {
            (self.height == 1 || at[2] == self.width * at[3])
                && (self.images == 1 || at[1] == self.height * self.width * at[3])
        };
        (even(&self.input) && even(&self.output)).then_some(self.images * self.height * self.width)
    }
}

/// The right factor of a product: value (k, n) lies at `rows[k] + n · stride`.
pub struct Matrix<'a> {
    /// Where the values lie.
    pub values: &'a [f32],
    /// The first value of each row: the depth of the product.
    pub rows: Vec<usize>,
    /// From column to column.
    pub stride: usize,
}

/// A pointer that may be shared among the threads of one pass, which write disjoint values.
#[derive(Clone, Copy)]
pub struct Shared<T>(pub T);
// SAFETY: the passes hand each thread its own images (or its own part of the weights).
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
impl<T: Copy> Shared<T> {
    /// The pointer.
    pub fn get(&self) -> T {
        self.0
    }
}
