//! 2-D convolution, channels last: forward, gradient of the input, gradient of the weights.
//!
//! Direct convolution: a kernel row covers `kernel · channels_in` contiguous values of a
//! channels-last map, so an output pixel is the sum of `kernel` dot products over contiguous
//! memory and no im2col buffer is written. The gradient of the input is the same product over the
//! output's gradient with the weights turned round; at stride 2 the input splits into its four
//! parity classes, each a small stride-1 product. Results do not depend on the number of threads.

use rayon::prelude::*;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::geometry::Geometry;
use super::precision::Precision;
use super::simd::Isa;

mod pass;
mod vector;
mod weights;

pub(super) use pass::{Matrix, Pass, Shared};
pub use weights::backward_weights;

/// Products of fewer values than this are left to the vector unit: a tile takes 32 at a time.
const NARROW: usize = 12;

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
    /// How exactly its passes multiply.
    pub precision: Precision,
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

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// The vector unit, in f32.
    Vector(Isa),
    /// The matrix unit, in bfloat16.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Matrix(amx::Split),
}

impl Unit {
    /// The fastest one that is as exact as asked for.
    fn detect(precision: Precision) -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if Isa::matrix_allowed() && amx::available() {
            match precision {
                Precision::Highest => {}
                Precision::High => return Unit::Matrix(amx::Split::Three),
                Precision::Medium => return Unit::Matrix(amx::Split::One),
            }
        }
        let _ = precision;
        Unit::Vector(Isa::detect())
    }

    /// The vector unit instead of the matrix unit where little of a tile would be used.
    fn unless_narrow(self, depth: usize) -> Self {
        if depth < NARROW { Unit::Vector(Isa::detect()) } else { self }
    }

    fn product(self, pass: &Pass, matrix: &Matrix, channels: usize, x: &[f32], out: &mut [f32]) {
        match self.unless_narrow(pass.run_len) {
            Unit::Vector(isa) => vector::product(isa, pass, matrix, channels, x, out),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Unit::Matrix(split) => amx::product(split, pass, matrix, channels, x, out),
        }
    }
}

/// Forward: `z = x ∗ w`, all of `z` overwritten.
///
/// `x` has a zero border of at least `shape.pad()`; `w` is `[kernel, kernel, cin, cout]`; `z` is
/// `shape.output(x)`, with any border (which stays as it is).
pub fn forward(shape: ConvShape, xg: Geometry, x: &[f32], w: &[f32], zg: Geometry, z: &mut [f32]) {
    forward_on(Unit::detect(shape.precision), shape, xg, x, w, zg, z);
}

fn forward_on(unit: Unit, shape: ConvShape, xg: Geometry, x: &[f32], w: &[f32], zg: Geometry, z: &mut [f32]) {
    assert!(xg.pad >= shape.pad() && xg.channels == shape.cin && w.len() == shape.weights());
    assert_eq!(zg.with_pad(0), shape.output(xg));
    let depth = shape.kernel * shape.kernel * shape.cin;
    let matrix = Matrix { values: w, rows: (0..depth).map(|k| k * shape.cout).collect(), stride: 1 };
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
    unit.product(&pass, &matrix, shape.cout, x, z);
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
    backward_input_on(Unit::detect(shape.precision), shape, dzg, dz, w, dxg, dx, accumulate);
}

#[allow(clippy::too_many_arguments)]
fn backward_input_on(
    unit: Unit,
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
            let taps =
                row_taps.iter().flat_map(|kh| column_taps.iter().map(move |kw| kh * shape.kernel + kw));
            let rows = taps.flat_map(|tap| {
                let first = tap * shape.cin * shape.cout;
                first..first + shape.cout
            });
            let matrix = Matrix { values: w, rows: rows.collect(), stride: shape.cout };
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
            unit.product(&pass, &matrix, shape.cin, dz, dx);
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
