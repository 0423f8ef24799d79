//! Loss, and what a step reports.

use std::rc::Rc;

use super::super::device::{Arg, Device, Result};
use super::super::memory::{Buffer, Pool};
use super::{THREADS, int, kind, launch};

/// The gradient of `share` · loss into `gradient` `[rows, features]`; each row's loss into `loss`.
///
/// The loss is twice the mean over all rows of 2 − 2·cos(prediction, the other view's projection).
pub fn loss<D: Device>(
    device: &D,
    (predictions, projections): (&Buffer<D>, &Buffer<D>),
    (loss, gradient): (&Buffer<D>, &Buffer<D>),
    (rows, features): (usize, usize),
    share: f32,
) -> Result<()> {
    let kernel = format!("loss_{}", kind(device.precision()));
    let factor = Arg::Float(share * 2.0 / rows as f32);
    let args =
        [predictions.arg(), projections.arg(), loss.arg(), gradient.arg(), int(rows), int(features), factor];
    launch(device, &kernel, [rows, 1, 1], [THREADS, 1, 1], &args)
}

/// Adds `share` of the loss and of the representations' spread to `report`.
pub fn report<D: Device>(
    pool: &Rc<Pool<D>>,
    loss: &Buffer<D>,
    representations: &Buffer<D>,
    (rows, features): (usize, usize),
    share: f32,
    report: &Buffer<D>,
) -> Result<()> {
    let device = pool.device();
    let (lengths, spread) = (pool.take(4 * rows)?, pool.take(4 * features)?);
    let x = representations.arg();
    launch(device, "row_lengths", [rows, 1, 1], [THREADS, 1, 1], &[x, lengths.arg(), int(features)])?;
    let args = [x, lengths.arg(), spread.arg(), int(rows), int(features)];
    launch(device, "feature_spread", [features.div_ceil(32), 1, 1], [32, 8, 1], &args)?;
    let args = [loss.arg(), int(rows), spread.arg(), int(features), Arg::Float(share), report.arg()];
    launch(device, "add_report", [1, 1, 1], [THREADS, 1, 1], &args)
}
