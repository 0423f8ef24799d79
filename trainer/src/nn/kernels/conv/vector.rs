//! Passes in the vector unit: register tiles over pixels and packed weights.

use rayon::prelude::*;

use super::pass::{Matrix, Pass, Shared};
use crate::nn::kernels::simd::{Isa, Kernel, Simd, dispatch_on};
use crate::nn::kernels::tile::{self, Product, with_rows};

/// Weights as a matrix `[runs · run_len, channels]`, cut into blocks of one or two vectors of
/// channels, each block contiguous.
struct Packed {
    data: Vec<f32>,
    channels: usize,
    depth: usize,
    lanes: usize,
}

impl Packed {
    fn new(isa: Isa, matrix: &Matrix, channels: usize) -> Self {
        let (lanes, depth) = (lanes(isa), matrix.rows.len());
        let mut data = vec![0f32; depth * channels.div_ceil(lanes) * lanes];
        // All blocks but the last are two vectors wide.
        data.par_chunks_mut(2 * lanes * depth).enumerate().for_each(|(i, block)| {
            let first = 2 * lanes * i;
            let width = block.len() / depth;
            let columns = first..(first + width).min(channels);
            if matrix.stride == 1 {
                for (to, from) in block.chunks_exact_mut(width).zip(&matrix.rows) {
                    to[..columns.len()].copy_from_slice(&matrix.values[from + first..][..columns.len()]);
                }
                return;
            }
            // Columns far apart are read one by one along the depth, where their values lie together.
            for (to, column) in columns.enumerate() {
                let column = &matrix.values[column * matrix.stride..];
                let to = block[to..].iter_mut().step_by(width);
                to.zip(&matrix.rows).for_each(|(to, from)| *to = column[*from]);
            }
        });
        Self { data, channels, depth, lanes }
    }

    /// (first channel, vectors) of each block.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        blocks(self.channels, self.lanes)
    }

    fn block(&self, first: usize) -> *const f32 {
        self.data[first * self.depth..].as_ptr()
    }
}

pub(super) fn lanes(isa: Isa) -> usize {
    struct Lanes<'a>(&'a mut usize);
    impl Kernel for Lanes<'_> {
        #[inline(always)]
        fn run<S: Simd>(self) {
            *self.0 = S::LANES;
        }
    }
    let mut lanes = 0;
    dispatch_on(isa, Lanes(&mut lanes));
    lanes
}

pub(super) fn blocks(channels: usize, lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..channels).step_by(2 * lanes).map(move |first| (first, if channels - first > lanes { 2 } else { 1 }))
}

/// Images whose pixels one task takes at once: enough pixels to fill tiles well.
fn images_per_task(images: usize, pixels: usize) -> usize {
    256usize.div_ceil(pixels).min(images.div_ceil(2 * rayon::current_num_threads())).max(1)
}

/// `out (+)= x · matrix` over the pass's pixels, as [`Pass`] says.
///
/// # Panics
/// If the pass reaches beyond `x` or `out`.
pub fn product(isa: Isa, pass: &Pass, matrix: &Matrix, channels: usize, x: &[f32], out: &mut [f32]) {
    if pass.is_empty() {
        return;
    }
    pass.check(x.len(), out.len(), channels);
    let packed = &Packed::new(isa, matrix, channels);
    let pixels = pass.height * pass.width;
    let step = images_per_task(pass.images, pixels);
    let (input, output) = (Shared(x.as_ptr()), Shared(out.as_mut_ptr()));
    (0..pass.images.div_ceil(step)).into_par_iter().for_each(|task| {
        let first = task * step;
        let images = first..(first + step).min(pass.images);
        dispatch_on(isa, PassTask { pass, packed, images, input: input.get(), output: output.get() });
    });
}

struct PassTask<'a> {
    pass: &'a Pass,
    packed: &'a Packed,
    images: std::ops::Range<usize>,
    input: *const f32,
    output: *mut f32,
}

impl Kernel for PassTask<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        for (first, vectors) in self.packed.blocks() {
            let block = Product {
                runs: self.pass.runs,
                run_len: self.pass.run_len,
                run_stride: self.pass.run_stride,
                weights: self.packed.block(first),
                channels: (self.packed.channels - first).min(vectors * S::LANES),
                accumulate: self.pass.accumulate,
            };
            // SAFETY: `product` checked the bounds of the whole pass.
            unsafe {
                if vectors == 2 {
                    self.tiles::<S, 2>(S::ROWS, first, &block);
                } else {
                    self.tiles::<S, 1>(S::ROWS_NARROW, first, &block);
                }
            }
        }
    }
}

impl PassTask<'_> {
    /// Cuts the task's pixels into tiles of nearly equal height, at most `rows`, and computes each.
    ///
    /// No closure stands between the instruction set's entry and the tiles: the compiler would
    /// build it without the instruction set.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const N: usize>(&self, rows: usize, first_channel: usize, block: &Product) {
        let pass = self.pass;
        let total = self.images.len() * pass.height * pass.width;
        let tiles = total.div_ceil(rows);
        let (base, extra) = (total / tiles, total % tiles);
        let (mut image, mut y, mut x) = (self.images.start, 0, 0);
        let mut input = [self.input; 16];
        let mut output = [self.output; 16];
        for tile in 0..tiles {
            let m = base + usize::from(tile < extra);
            for i in 0..m {
                let at = |d: &[usize; 4]| d[0] + image * d[1] + y * d[2] + x * d[3];
                input[i] = self.input.wrapping_add(at(&pass.input));
                output[i] = self.output.wrapping_add(at(&pass.output) + first_channel);
                x += 1;
                if x == pass.width {
                    x = 0;
                    y += 1;
                    if y == pass.height {
                        y = 0;
                        image += 1;
                    }
                }
            }
            // SAFETY: the caller's promise.
            unsafe { product_rows::<S, N>(m, block, &input, &output) }
        }
    }
}

#[inline(always)]
unsafe fn product_rows<S: Simd, const N: usize>(
    m: usize,
    block: &Product,
    input: &[*const f32; 16],
    output: &[*mut f32; 16],
) {
    #[inline(always)]
    unsafe fn call<S: Simd, const M: usize, const N: usize>(
        block: &Product,
        input: &[*const f32; 16],
        output: &[*mut f32; 16],
    ) {
        let input: [*const f32; M] = std::array::from_fn(|i| input[i]);
        let output: [*mut f32; M] = std::array::from_fn(|i| output[i]);
        // SAFETY: the caller's promise.
        unsafe { tile::product::<S, M, N>(block, &input, &output) }
    }
    // SAFETY: the caller's promise.
    unsafe { with_rows!(m, call, S, N, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], (block, input, output)) }
}
