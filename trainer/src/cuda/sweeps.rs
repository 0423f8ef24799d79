//! Our own kernels: how each is launched.
//!
//! Norms, pools, loss, optimiser: memory-bound sweeps, for which a kernel that reads and writes each
//! value once is as good as any. `kernels/*.cu` holds them.

mod loss;
mod norm;
mod optim;
mod pool;

use super::device::{Arg, Device, Result};
use crate::device::Precision;

pub use self::loss::{loss, report};
pub use self::norm::{
    NormArrays, NormShape, NormTape, norm_apply, norm_backward, norm_running, norm_statistics,
};
pub use self::optim::{LarsArrays, cast, gather, lars, moving_average};
pub use self::pool::{
    MapShape, average_pool, average_pool_backward, max_pool, max_pool_backward, pack_views,
};

/// The kernels' sources: each file, with what they share before it.
pub const SOURCES: [(&str, &str); 4] = [
    ("norm.cu", include_str!("kernels/norm.cu")),
    ("pool.cu", include_str!("kernels/pool.cu")),
    ("loss.cu", include_str!("kernels/loss.cu")),
    ("optim.cu", include_str!("kernels/optim.cu")),
];
/// What the sources include.
pub const COMMON: &str = include_str!("kernels/common.cuh");

/// Kernels that exist for maps of each kind, singly and in packs.
const OVER_MAPS: [&str; 8] = [
    "norm_sums",
    "norm_apply",
    "norm_backward_sums",
    "norm_backward",
    "max_pool",
    "max_pool_backward",
    "average_pool",
    "average_pool_backward",
];
/// The others.
const SINGLE: [&str; 17] = [
    "norm_moments",
    "norm_running",
    "norm_backward_coefficients",
    "pack_views_f32x4",
    "pack_views_bf16x8",
    "loss_f32",
    "loss_bf16",
    "row_lengths",
    "feature_spread",
    "add_report",
    "gather_f32",
    "gather_bf16",
    "lars_norms",
    "lars_trust",
    "lars_update",
    "moving_average",
    "cast_bf16",
];

/// The names of all kernels.
pub fn names() -> Vec<String> {
    let kinds = ["f32x4", "f32x1", "bf16x8", "bf16x1"];
    let over_maps = OVER_MAPS.iter().flat_map(|name| kinds.iter().map(move |kind| format!("{name}_{kind}")));
    over_maps.chain(SINGLE.iter().map(|name| (*name).to_string())).collect()
}

/// Threads of a block.
const THREADS: usize = 256;

/// Bytes of a value of a map.
pub fn value_bytes(precision: Precision) -> usize {
    if precision == Precision::Bf16 { 2 } else { 4 }
}

/// Values of a map in 16 bytes.
pub fn pack(precision: Precision) -> usize {
    16 / value_bytes(precision)
}

fn kind(precision: Precision) -> &'static str {
    if precision == Precision::Bf16 { "bf16" } else { "f32" }
}

/// `{name}_{kind}x{values}`, with as many values as divide the channels; and how many.
fn over_maps(name: &str, precision: Precision, channels: usize) -> (String, usize) {
    let whole = pack(precision);
    let values = if channels.is_multiple_of(whole) { whole } else { 1 };
    (format!("{name}_{}x{values}", kind(precision)), values)
}

fn long(count: usize) -> Arg {
    Arg::Long(count as i64)
}

fn int(count: usize) -> Arg {
    Arg::Int(i32::try_from(count).unwrap_or(i32::MAX))
}

/// Launches a kernel of this file's list.
fn launch<D: Device>(
    device: &D,
    kernel: &str,
    grid: [usize; 3],
    block: [usize; 3],
    args: &[Arg],
) -> Result<()> {
    // SAFETY: the functions of this module give each kernel its arguments in its order; their callers give
    // buffers of the sizes that the functions name.
    unsafe { device.launch(kernel, grid, block, args) }
}

/// One thread for each of so many values.
fn flat<D: Device>(device: &D, kernel: &str, count: usize, args: &[Arg]) -> Result<()> {
    launch(device, kernel, [count.div_ceil(THREADS), 1, 1], [THREADS, 1, 1], args)
}
