//! 2-D convolution, channels last: forward, gradient of the input, gradient of the weights.
//!
//! Direct convolution: a kernel row covers `kernel · channels_in` contiguous values of a
//! channels-last map, so an output pixel is the sum of `kernel` dot products over contiguous
//! memory and no im2col buffer is written. The gradient of the input is the same product over the
//! output's gradient with the weights turned round; at stride 2 the input splits into its four
//! parity classes, each a small stride-1 product. Results do not depend on the number of threads.

use rayon::prelude::*;

use super::geometry::Geometry;
use super::simd::{Isa, Kernel, Simd, dispatch_on};
use super::tile::{Product, product, with_rows};

mod weights;

pub use weights::backward_weights;

/// A convolution without bias; the kernel is square and the zero padding is `kernel / 2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Height and width of the kernel.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Channels in.
    pub cin: usize,
    /// Channels out.
    pub cout: usize,
}

impl ConvShape {
    /// Zero pixels that it needs around its input.
    pub fn pad(&self) -> usize {
        self.kernel / 2
    }

    /// Weights in all; their layout is `[kernel, kernel, cin, cout]`.
    pub fn weights(&self) -> usize {
        self.kernel * self.kernel * self.cin * self.cout
    }

    /// Height or width of the output for an input's height or width.
    pub fn output_size(&self, input: usize) -> usize {
        (input + 2 * self.pad() - self.kernel) / self.stride + 1
    }

    /// The output of an input, without a border.
    pub fn output(&self, x: Geometry) -> Geometry {
        Geometry {
            images: x.images,
            height: self.output_size(x.height),
            width: self.output_size(x.width),
            channels: self.cout,
            pad: 0,
        }
    }
}

/// Weights as a matrix `[runs · run_len, channels]`, cut into blocks of one or two vectors of
/// channels, each block contiguous.
struct Packed {
    data: Vec<f32>,
    channels: usize,
    depth: usize,
    lanes: usize,
}

impl Packed {
    /// `fill(first, real, width, block)` writes the columns `first..first + real` of the matrix into
    /// the rows of a block, `width` values apart.
    fn new(
        isa: Isa,
        depth: usize,
        channels: usize,
        fill: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
    ) -> Self {
        let lanes = lanes(isa);
        let mut data = vec![0f32; depth * channels.div_ceil(lanes) * lanes];
        // All blocks but the last are two vectors wide.
        data.par_chunks_mut(2 * lanes * depth).enumerate().for_each(|(i, block)| {
            let first = 2 * lanes * i;
            let width = block.len() / depth;
            fill(first, width.min(channels - first), width, block);
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

fn lanes(isa: Isa) -> usize {
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

fn blocks(channels: usize, lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..channels).step_by(2 * lanes).map(move |first| (first, if channels - first > lanes { 2 } else { 1 }))
}

/// One product over a grid of output pixels. Distances are in values: base, image, row, pixel.
#[derive(Clone, Copy)]
struct Pass {
    images: usize,
    height: usize,
    width: usize,
    input: [usize; 4],
    output: [usize; 4],
    runs: usize,
    run_len: usize,
    run_stride: usize,
    accumulate: bool,
}

/// A pointer that may be shared among the threads of one pass, which write disjoint pixels.
#[derive(Clone, Copy)]
struct Shared<T>(T);
// SAFETY: the passes hand each thread its own images (or its own part of the weights).
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
impl<T: Copy> Shared<T> {
    fn get(&self) -> T {
        self.0
    }
}

/// Images whose pixels one task takes at once: enough pixels to fill tiles well.
fn images_per_task(images: usize, pixels: usize) -> usize {
    256usize.div_ceil(pixels).min(images.div_ceil(2 * rayon::current_num_threads())).max(1)
}

fn run_pass(isa: Isa, pass: &Pass, packed: &Packed, x: &[f32], out: &mut [f32]) {
    let pixels = pass.height * pass.width;
    if pixels == 0 || pass.images == 0 {
        return;
    }
    let last = |at: &[usize; 4]| {
        at[0] + (pass.images - 1) * at[1] + (pass.height - 1) * at[2] + (pass.width - 1) * at[3]
    };
    assert!(last(&pass.input) + (pass.runs - 1) * pass.run_stride + pass.run_len <= x.len());
    assert!(last(&pass.output) + packed.channels <= out.len());
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
            // SAFETY: `run_pass` checked the bounds of the whole pass.
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
        unsafe { product::<S, M, N>(block, &input, &output) }
    }
    // SAFETY: the caller's promise.
    unsafe { with_rows!(m, call, S, N, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], (block, input, output)) }
}

/// Forward: `z = x ∗ w`, all of `z` overwritten.
///
/// `x` has a zero border of at least `shape.pad()`; `w` is `[kernel, kernel, cin, cout]`; `z` is
/// `shape.output(x)`, with any border (which stays as it is).
pub fn forward(shape: ConvShape, xg: Geometry, x: &[f32], w: &[f32], zg: Geometry, z: &mut [f32]) {
    forward_on(Isa::detect(), shape, xg, x, w, zg, z);
}

fn forward_on(isa: Isa, shape: ConvShape, xg: Geometry, x: &[f32], w: &[f32], zg: Geometry, z: &mut [f32]) {
    assert!(xg.pad >= shape.pad() && xg.channels == shape.cin && w.len() == shape.weights());
    assert_eq!(zg.with_pad(0), shape.output(xg));
    let depth = shape.kernel * shape.kernel * shape.cin;
    let packed = Packed::new(isa, depth, shape.cout, |first, real, width, block| {
        for (row, from) in block.chunks_exact_mut(width).zip(w.chunks_exact(shape.cout)) {
            row[..real].copy_from_slice(&from[first..first + real]);
        }
    });
    let pass = Pass {
        images: xg.images,
        height: zg.height,
        width: zg.width,
        input: [
            xg.origin() - shape.pad() * (xg.row_stride() + xg.channels),
            xg.image_stride(),
            shape.stride * xg.row_stride(),
            shape.stride * xg.channels,
        ],
        output: [zg.origin(), zg.image_stride(), zg.row_stride(), zg.channels],
        runs: shape.kernel,
        run_len: shape.kernel * shape.cin,
        run_stride: xg.row_stride(),
        accumulate: false,
    };
    run_pass(isa, &pass, &packed, x, z);
}

/// The taps of one parity class along one axis: kernel indices, in the order of the output's
/// gradient pixels that they meet, and the offset of the first of those pixels.
fn class_taps(shape: ConvShape, parity: usize) -> (Vec<usize>, isize) {
    let (kernel, stride, pad) = (shape.kernel as isize, shape.stride as isize, shape.pad() as isize);
    // Input position i = stride·a + parity meets output o through tap k when stride·o + k − pad = i.
    let mut taps: Vec<(isize, usize)> = (0..kernel)
        .filter(|k| (parity as isize + pad - k).rem_euclid(stride) == 0)
        .map(|k| ((parity as isize + pad - k).div_euclid(stride), k as usize))
        .collect();
    taps.sort_unstable();
    let first = taps.first().map_or(0, |t| t.0);
    (taps.into_iter().map(|t| t.1).collect(), first)
}

/// Gradient of the input: overwrites `dx`, or adds to it if `accumulate`.
///
/// `dz` has a zero border of at least `shape.pad()`; `dx` has the input's height, width and
/// channels, with any border (which stays as it is).
pub fn backward_input(
    shape: ConvShape,
    dzg: Geometry,
    dz: &[f32],
    w: &[f32],
    dxg: Geometry,
    dx: &mut [f32],
    accumulate: bool,
) {
    backward_input_on(Isa::detect(), shape, dzg, dz, w, dxg, dx, accumulate);
}

#[allow(clippy::too_many_arguments)]
fn backward_input_on(
    isa: Isa,
    shape: ConvShape,
    dzg: Geometry,
    dz: &[f32],
    w: &[f32],
    dxg: Geometry,
    dx: &mut [f32],
    accumulate: bool,
) {
    assert!(dzg.pad >= shape.pad() && dzg.channels == shape.cout && w.len() == shape.weights());
    assert_eq!(shape.output(dxg), dzg.with_pad(0));
    for row in 0..shape.stride {
        let (row_taps, row_first) = class_taps(shape, row);
        for column in 0..shape.stride {
            let (column_taps, column_first) = class_taps(shape, column);
            if row_taps.is_empty() || column_taps.is_empty() {
                if !accumulate {
                    clear_class(shape.stride, row, column, dxg, dx);
                }
                continue;
            }
            let depth = row_taps.len() * column_taps.len() * shape.cout;
            let taps: Vec<usize> = row_taps
                .iter()
                .flat_map(|kh| column_taps.iter().map(move |kw| kh * shape.kernel + kw))
                .collect();
            let packed = Packed::new(isa, depth, shape.cin, |first, real, width, block| {
                for (rows, tap) in block.chunks_exact_mut(shape.cout * width).zip(&taps) {
                    for ci in 0..real {
                        let from = &w[(tap * shape.cin + first + ci) * shape.cout..][..shape.cout];
                        rows[ci..].iter_mut().step_by(width).zip(from).for_each(|(to, f)| *to = *f);
                    }
                }
            });
            let offset = row_first * dzg.row_stride() as isize + column_first * dzg.channels as isize;
            let pass = Pass {
                images: dxg.images,
                height: (dxg.height - row).div_ceil(shape.stride),
                width: (dxg.width - column).div_ceil(shape.stride),
                input: [
                    (dzg.origin() as isize + offset) as usize,
                    dzg.image_stride(),
                    dzg.row_stride(),
                    dzg.channels,
                ],
                output: [
                    dxg.origin() + row * dxg.row_stride() + column * dxg.channels,
                    dxg.image_stride(),
                    shape.stride * dxg.row_stride(),
                    shape.stride * dxg.channels,
                ],
                runs: row_taps.len(),
                run_len: column_taps.len() * shape.cout,
                run_stride: dzg.row_stride(),
                accumulate,
            };
            run_pass(isa, &pass, &packed, dz, dx);
        }
    }
}

/// Zeroes the pixels of one parity class that no output ever reads.
fn clear_class(stride: usize, row: usize, column: usize, g: Geometry, dx: &mut [f32]) {
    dx.par_chunks_mut(g.image_stride()).for_each(|image| {
        for y in (row..g.height).step_by(stride) {
            for x in (column..g.width).step_by(stride) {
                let at = g.origin() + y * g.row_stride() + x * g.channels;
                image[at..at + g.channels].fill(0.0);
            }
        }
    });
}

#[cfg(test)]
mod tests;
