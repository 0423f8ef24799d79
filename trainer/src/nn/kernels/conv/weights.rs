//! Gradient of a convolution's weights, summed in parts that depend on shapes alone.

use std::cell::Cell;

use rayon::prelude::*;

use super::vector::{blocks, lanes};
use super::{ConvShape, Shared, Unit};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::nn::kernels::amx::{Outer, Split};
use crate::nn::kernels::geometry::Geometry;
use crate::nn::kernels::simd::{Isa, Kernel, Simd, dispatch_on};
use crate::nn::kernels::tile::{PixelRows, outer, with_rows};

/// Partial sums of a weight gradient hold at most this many values together.
pub(super) const PARTIAL_VALUES: usize = 10 << 20;
/// Pixels whose products one partial sum holds, at the least: fewer cost more to add up than to compute.
pub(super) const PART_PIXELS: usize = 4096;
/// Input and gradient of the images that one sweep over the weights reads: to stay in the L2 cache.
const SWEEP_BYTES: usize = 512 << 10;
/// A batch is cut into at most this many parts, whatever the number of threads.
const MAX_PARTS: usize = 16;

thread_local! {
    /// Memory of the last partial sums of this thread.
    static SPARE: Cell<Vec<f32>> = Cell::default();
}

/// Gradient of the weights, added to `dw` (`[kernel, kernel, cin, cout]`).
///
/// `x` as in [`forward`]; `dz` has any border.
pub fn backward_weights(
    shape: ConvShape,
    xg: Geometry,
    x: &[f32],
    dzg: Geometry,
    dz: &[f32],
    dw: &mut [f32],
) {
    backward_weights_on(Unit::detect(shape.precision), shape, xg, x, dzg, dz, dw);
}

pub(super) fn backward_weights_on(
    unit: Unit,
    shape: ConvShape,
    xg: Geometry,
    x: &[f32],
    dzg: Geometry,
    dz: &[f32],
    dw: &mut [f32],
) {
    assert!(xg.pad >= shape.pad() && xg.len() == x.len() && dzg.len() == dz.len());
    assert!(dw.len() == shape.weights() && xg.images == dzg.images);
    assert_eq!(dzg.with_pad(0), shape.output(xg));
    match unit.unless_narrow(shape.cin) {
        Unit::Vector(isa) => in_vectors(isa, shape, (xg, x), (dzg, dz), dw),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Unit::Matrix(split) => in_tiles(split, shape, (xg, x), (dzg, dz), dw),
    }
}

/// Parts that a batch is summed in, which follow from shapes alone.
fn parts(shape: ConvShape, dzg: Geometry, units: usize) -> usize {
    let parts = (dzg.images * dzg.pixels() / PART_PIXELS).min(PARTIAL_VALUES / shape.weights());
    parts.clamp(1, MAX_PARTS).min(units.max(1))
}

/// Adds up what `sum(part, group, out, fresh)` makes for every part. It adds to `out`, unless
/// `fresh`: then it overwrites.
fn summed(dw: &mut [f32], parts: usize, groups: usize, sum: impl Fn(usize, usize, *mut f32, bool) + Sync) {
    let len = dw.len();
    if parts == 1 {
        let out = Shared(dw.as_mut_ptr());
        (0..groups).into_par_iter().for_each(|group| sum(0, group, out.get(), false));
        return;
    }
    let mut partial = SPARE.take();
    if partial.len() < parts * len {
        partial.resize(parts * len, 0.0);
    }
    let out = Shared(partial.as_mut_ptr());
    (0..parts * groups).into_par_iter().for_each(|i| {
        let (part, group) = (i / groups, i % groups);
        sum(part, group, out.get().wrapping_add(part * len), true);
    });
    dw.par_chunks_mut(4096).enumerate().for_each(|(chunk, dw)| {
        for part in 0..parts {
            let from = &partial[part * len + chunk * 4096..];
            dw.iter_mut().zip(from).for_each(|(d, p)| *d += p);
        }
    });
    SPARE.set(partial);
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn in_tiles(split: Split, shape: ConvShape, x: (Geometry, &[f32]), dz: (Geometry, &[f32]), dw: &mut [f32]) {
    if dz.0.images * dz.0.pixels() == 0 {
        return;
    }
    let outer = Outer::new(split, shape, x, dz);
    let per_part = outer.units().div_ceil(parts(shape, dz.0, outer.units()));
    let parts = outer.units().div_ceil(per_part);
    // Few parts are shared out by pieces of the weights too, so that every thread has work.
    let groups = rayon::current_num_threads().div_ceil(parts).min(outer.panels());
    let per_group = outer.panels().div_ceil(groups);
    summed(dw, parts, groups, |part, group, out, fresh| {
        let within = |i: usize, each: usize, end: usize| (i * each).min(end)..((i + 1) * each).min(end);
        let (units, panels) =
            (within(part, per_part, outer.units()), within(group, per_group, outer.panels()));
        // SAFETY: tiles are only chosen where they are available; no two calls share part and panel.
        unsafe { outer.sum(units, panels, out, fresh) }
    });
}

fn in_vectors(
    isa: Isa,
    shape: ConvShape,
    (xg, x): (Geometry, &[f32]),
    (dzg, dz): (Geometry, &[f32]),
    dw: &mut [f32],
) {
    let per_part = xg.images.div_ceil(parts(shape, dzg, xg.images));
    let parts = xg.images.div_ceil(per_part.max(1)).max(1);
    let task = WeightsTask { shape, xg, dzg, x: x.as_ptr(), dz: dz.as_ptr(), parts };
    let task = Shared(&task);
    let cells = cells(isa, shape);
    // Few parts are shared out by pieces of the weights too, so that every thread has work.
    let group = match parts {
        1 => 1,
        MAX_PARTS => cells.len(),
        _ => cells.len().div_ceil(4),
    };
    let groups: Vec<_> = cells.chunks(group).collect();
    summed(dw, parts, groups.len(), |part, group, out, fresh| {
        dispatch_on(isa, WeightsCell { task: task.get(), part, cells: groups[group], out, fresh });
    });
}

/// (kernel row, first channel out, vectors) of every piece of the weights.
fn cells(isa: Isa, shape: ConvShape) -> Vec<(usize, usize, usize)> {
    let runs = 0..shape.kernel;
    runs.flat_map(|run| blocks(shape.cout, lanes(isa)).map(move |(first, n)| (run, first, n))).collect()
}

struct WeightsTask {
    shape: ConvShape,
    xg: Geometry,
    dzg: Geometry,
    x: *const f32,
    dz: *const f32,
    parts: usize,
}

struct WeightsCell<'a> {
    task: &'a WeightsTask,
    part: usize,
    cells: &'a [(usize, usize, usize)],
    out: *mut f32,
    fresh: bool,
}

impl Kernel for WeightsCell<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let t = self.task;
        let per_part = t.xg.images.div_ceil(t.parts);
        let start = (self.part * per_part).min(t.xg.images);
        let end = (start + per_part).min(t.xg.images);
        let bytes = 4 * (t.xg.image_stride() + t.dzg.image_stride());
        let sweep = (SWEEP_BYTES / bytes).max(1);
        if self.fresh {
            // SAFETY: as below.
            self.cells.iter().for_each(|&cell| unsafe { self.clear(cell, S::LANES) });
        }
        for first in (start..end).step_by(sweep) {
            let images = sweep.min(end - first);
            for &cell in self.cells {
                // SAFETY: `backward_weights_on` checked both maps against their geometries.
                unsafe { self.cell::<S>(cell, first, images) }
            }
        }
    }
}

impl WeightsCell<'_> {
    unsafe fn clear(&self, (run, channel, vectors): (usize, usize, usize), lanes: usize) {
        let shape = self.task.shape;
        let run_len = shape.kernel * shape.cin;
        let channels = (shape.cout - channel).min(vectors * lanes);
        for row in run * run_len..(run + 1) * run_len {
            // SAFETY: the caller's promise.
            unsafe { self.out.add(row * shape.cout + channel).write_bytes(0, channels) };
        }
    }

    #[inline(always)]
    unsafe fn cell<S: Simd>(
        &self,
        (run, channel, vectors): (usize, usize, usize),
        first: usize,
        images: usize,
    ) {
        let WeightsTask { shape, xg, dzg, x, dz, .. } = *self.task;
        let pixels = PixelRows {
            images,
            height: dzg.height,
            width: dzg.width,
            input: [xg.image_stride(), shape.stride * xg.row_stride(), shape.stride * xg.channels],
            grad: [dzg.image_stride(), dzg.row_stride(), dzg.channels],
        };
        let border = xg.origin() - shape.pad() * (xg.row_stride() + xg.channels);
        let run_len = shape.kernel * shape.cin;
        let input = x.wrapping_add(border + run * xg.row_stride() + first * xg.image_stride());
        let grad = dz.wrapping_add(dzg.origin() + channel + first * dzg.image_stride());
        let out = self.out.wrapping_add(run * run_len * shape.cout + channel);
        let channels = (shape.cout - channel).min(vectors * S::LANES);
        let rows = if vectors == 2 { S::ROWS } else { S::ROWS_NARROW };
        let tiles = run_len.div_ceil(rows);
        let (base, extra) = (run_len / tiles, run_len % tiles);
        let mut k = 0;
        for tile in 0..tiles {
            let m = base + usize::from(tile < extra);
            let (input, out) = (input.wrapping_add(k), out.wrapping_add(k * shape.cout));
            // SAFETY: the caller's promise.
            unsafe {
                if vectors == 2 {
                    with_rows!(m, outer, S, 2, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], (&pixels, input, grad, out, shape.cout, channels));
                } else {
                    with_rows!(m, outer, S, 1, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], (&pixels, input, grad, out, shape.cout, channels));
                }
            }
            k += m;
        }
    }
}
