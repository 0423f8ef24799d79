//! The optimiser, its schedules and the target's moving average, as sweeps over flat vectors.

pub mod ema;
pub mod lars;
pub mod rules;
pub mod schedule;
