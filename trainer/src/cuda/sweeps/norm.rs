//! Batch norm with the addition and the ReLU that follow it.

use std::rc::Rc;

use super::super::device::{Address, Arg, Device, Result};
use super::super::memory::{Buffer, Pool};
use super::{THREADS, flat, int, launch, long, over_maps};
use crate::nn::kernels::norm::EPSILON;
use crate::nn::unit::RUNNING_MOMENTUM;

/// Maps to normalise: `[views, rows, channels]`, rows being a view's pixels.
#[derive(Debug, Clone, Copy)]
pub struct NormShape {
    /// Views with statistics of their own.
    pub views: usize,
    /// Pixels of a view.
    pub rows: usize,
    /// Channels.
    pub channels: usize,
}

/// A sweep's blocks: (grid, block); what it sums is cut into `grid[1]` splits.
fn sweep<D: Device>(device: &D, of: NormShape, values: usize) -> ([usize; 3], [usize; 3]) {
    let packs = of.channels / values;
    let wide = packs.next_power_of_two().min(32);
    let high = THREADS / wide;
    let tiles = packs.div_ceil(wide);
    // Enough blocks to fill the device a few times, and at least eight pixels for each thread.
    let wanted = (8 * device.multiprocessors()).div_ceil(tiles * of.views);
    let splits = wanted.min(of.rows.div_ceil(8 * high)).clamp(1, 1024);
    ([tiles, splits, of.views], [wide, high, 1])
}

/// Where a norm's arrays are: trained scale and shift, running mean and variance.
#[derive(Debug, Clone, Copy)]
pub struct NormArrays {
    /// Scale.
    pub gamma: Address,
    /// Shift.
    pub beta: Address,
    /// Running mean.
    pub mean: Address,
    /// Running variance.
    pub variance: Address,
}

/// Statistics of the batch, `[4][views][channels]` f32 (scale, shift, mean, 1/σ); moves the running ones.
pub fn norm_statistics<D: Device>(
    pool: &Rc<Pool<D>>,
    z: &Buffer<D>,
    of: NormShape,
    arrays: NormArrays,
) -> Result<Buffer<D>> {
    let device = pool.device();
    let (kernel, values) = over_maps("norm_sums", device.precision(), of.channels);
    let (grid, block) = sweep(device, of, values);
    let all = of.views * of.channels;
    let partial = pool.take(4 * 2 * grid[1] * all)?;
    let pivots = pool.take(4 * all)?;
    let statistics = pool.take(4 * 4 * all)?;
    let args = [z.arg(), partial.arg(), pivots.arg(), long(of.rows), int(of.channels)];
    launch(device, &kernel, grid, block, &args)?;
    let args = [
        partial.arg(),
        pivots.arg(),
        int(grid[1]),
        long(of.rows),
        int(of.views),
        int(of.channels),
        Arg::At(arrays.gamma),
        Arg::At(arrays.beta),
        Arg::At(arrays.mean),
        Arg::At(arrays.variance),
        Arg::Float(RUNNING_MOMENTUM),
        Arg::Float(EPSILON),
        statistics.arg(),
    ];
    launch(device, "norm_moments", [of.channels.div_ceil(8), 1, 1], [8, 32, 1], &args)?;
    Ok(statistics)
}

/// The running statistics' affine map, `[2][channels]` f32.
pub fn norm_running<D: Device>(pool: &Rc<Pool<D>>, channels: usize, arrays: NormArrays) -> Result<Buffer<D>> {
    let statistics = pool.take(4 * 2 * channels)?;
    let args = [
        Arg::At(arrays.mean),
        Arg::At(arrays.variance),
        Arg::At(arrays.gamma),
        Arg::At(arrays.beta),
        int(channels),
        Arg::Float(EPSILON),
        statistics.arg(),
    ];
    flat(pool.device(), "norm_running", channels, &args)?;
    Ok(statistics)
}

/// `y = scale · z + shift (+ residual)`, then ReLU if asked.
pub fn norm_apply<D: Device>(
    device: &D,
    (z, statistics): (&Buffer<D>, &Buffer<D>),
    residual: Option<&Buffer<D>>,
    relu: bool,
    y: &Buffer<D>,
    of: NormShape,
) -> Result<()> {
    let (kernel, values) = over_maps("norm_apply", device.precision(), of.channels);
    let (grid, block) = sweep(device, of, values);
    let residual = Arg::At(residual.map_or(0, Buffer::at));
    let relu = Arg::Int(i32::from(relu));
    let args = [z.arg(), statistics.arg(), residual, relu, y.arg(), long(of.rows), int(of.channels)];
    launch(device, &kernel, grid, block, &args)
}

/// What a norm's backward pass reads.
pub struct NormTape<'a, D: Device> {
    /// The convolution's output.
    pub z: &'a Buffer<D>,
    /// What [`norm_statistics`] gave.
    pub statistics: &'a Buffer<D>,
    /// The output of the ReLU, where something was added before it.
    pub y: Option<&'a Buffer<D>>,
    /// Whether there was a ReLU.
    pub relu: bool,
}

/// Backward through ReLU and norm: `dy` (+ `dy2`) becomes the gradient of `z` in place; `skip`, which
/// may be `dy2`, the gradient behind the ReLU. The gradients of scale and shift are written to
/// (gamma, beta), or added.
pub fn norm_backward<D: Device>(
    pool: &Rc<Pool<D>>,
    tape: &NormTape<D>,
    (dy, dy2): (&Buffer<D>, Option<&Buffer<D>>),
    skip: Option<&Buffer<D>>,
    (gamma, beta, add): (Address, Address, bool),
    of: NormShape,
) -> Result<()> {
    let device = pool.device();
    let (kernel, values) = over_maps("norm_backward_sums", device.precision(), of.channels);
    let (grid, block) = sweep(device, of, values);
    let all = of.views * of.channels;
    let partial = pool.take(4 * 2 * grid[1] * all)?;
    let coefficients = pool.take(4 * 3 * all)?;
    let dy2 = Arg::At(dy2.map_or(0, Buffer::at));
    let y = Arg::At(tape.y.map_or(0, Buffer::at));
    // Where nothing was added, the sign of the normalised z tells as much as the output, unread.
    let mask = Arg::Int(match (tape.relu, tape.y) {
        (false, _) => 0,
        (true, None) => 1,
        (true, Some(_)) => 2,
    });
    let (z, statistics) = (tape.z.arg(), tape.statistics.arg());
    let (rows, channels) = (long(of.rows), int(of.channels));
    let args = [dy.arg(), dy2, z, y, mask, statistics, partial.arg(), rows, channels];
    launch(device, &kernel, grid, block, &args)?;
    let (kernel, _) = over_maps("norm_backward", device.precision(), of.channels);
    let args = [
        partial.arg(),
        int(grid[1]),
        rows,
        int(of.views),
        channels,
        statistics,
        coefficients.arg(),
        Arg::At(gamma),
        Arg::At(beta),
        Arg::Int(i32::from(add)),
    ];
    let columns = [of.channels.div_ceil(8), 1, 1];
    launch(device, "norm_backward_coefficients", columns, [8, 32, 1], &args)?;
    let skip = Arg::At(skip.map_or(0, Buffer::at));
    let args = [dy.arg(), dy2, z, y, mask, statistics, coefficients.arg(), dy.arg(), skip, rows, channels];
    launch(device, &kernel, grid, block, &args)
}
