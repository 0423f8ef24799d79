//! Gradients, LARS and moving average over flat vectors.

use std::rc::Rc;

use super::super::device::{Arg, Device, Result};
use super::super::memory::{Buffer, Pool};
use super::{THREADS, flat, int, kind, launch, long};

/// Gradients of convolutions, as [`Device::convolve`] gives them, into those in f32, or added to them.
pub fn gather<D: Device>(
    device: &D,
    from: &Buffer<D>,
    to: &Buffer<D>,
    (chunks, count): (&Buffer<D>, usize),
    add: bool,
) -> Result<()> {
    let kernel = format!("gather_{}", kind(device.precision()));
    let args = [from.arg(), to.arg(), chunks.arg(), Arg::Int(i32::from(add))];
    launch(device, &kernel, [count, 1, 1], [THREADS, 1, 1], &args)
}

/// The arrays of [`lars`], flat, f32 but for `narrowed`.
pub struct LarsArrays<'a, D: Device> {
    /// Weights.
    pub weights: &'a Buffer<D>,
    /// Their gradients.
    pub gradients: &'a Buffer<D>,
    /// The optimiser's velocity.
    pub velocity: &'a Buffer<D>,
    /// The weights as bf16 layers read them.
    pub narrowed: Option<&'a Buffer<D>>,
    /// The chunks' table.
    pub chunks: &'a Buffer<D>,
    /// The arrays' table.
    pub arrays: &'a Buffer<D>,
    /// (chunks, arrays).
    pub counts: (usize, usize),
}

/// One update by LARS.
pub fn lars<D: Device>(
    pool: &Rc<Pool<D>>,
    of: &LarsArrays<D>,
    config: crate::optim::lars::LarsConfig,
    learning_rate: f32,
) -> Result<()> {
    let (device, (chunks, arrays)) = (pool.device(), of.counts);
    let (norms, scale) = (pool.take(4 * 2 * chunks)?, pool.take(4 * arrays)?);
    let decay = Arg::Float(config.weight_decay as f32);
    let args = [of.weights.arg(), of.gradients.arg(), of.chunks.arg(), decay, norms.arg()];
    launch(device, "lars_norms", [chunks, 1, 1], [THREADS, 1, 1], &args)?;
    let trust = Arg::Float(config.trust as f32);
    let args = [norms.arg(), of.arrays.arg(), int(chunks), trust, scale.arg()];
    launch(device, "lars_trust", [arrays, 1, 1], [THREADS, 1, 1], &args)?;
    let args = [
        of.weights.arg(),
        of.gradients.arg(),
        of.velocity.arg(),
        Arg::At(of.narrowed.map_or(0, Buffer::at)),
        of.chunks.arg(),
        of.arrays.arg(),
        scale.arg(),
        Arg::Float(config.momentum as f32),
        decay,
        Arg::Float(learning_rate),
    ];
    launch(device, "lars_update", [chunks, 1, 1], [THREADS, 1, 1], &args)
}

/// Moves the target towards the online network by 1 − `tau`.
pub fn moving_average<D: Device>(
    device: &D,
    (target, online): (&Buffer<D>, &Buffer<D>),
    narrowed: Option<&Buffer<D>>,
    count: usize,
    tau: f64,
) -> Result<()> {
    let narrowed = Arg::At(narrowed.map_or(0, Buffer::at));
    let share = Arg::Float(1.0 - tau as f32);
    flat(device, "moving_average", count, &[target.arg(), online.arg(), narrowed, long(count), share])
}

/// f32 to bf16.
pub fn cast<D: Device>(device: &D, from: &Buffer<D>, to: &Buffer<D>, count: usize) -> Result<()> {
    flat(device, "cast_bf16", count, &[from.arg(), to.arg(), long(count)])
}
