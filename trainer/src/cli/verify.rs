//! `latentd-trainer bench --verify`: a device's step beside the CPU's in f32.

use super::bench::synthetic;
use crate::config::RunConfig;
use crate::device::{Compute, Place};
use crate::method::byol::{Snapshot, StepReport, StepSettings, random_weights};
use crate::method::learner::{self, Learner, Start};
use crate::nn::config::EncoderConfig;
use crate::nn::kernels::precision::Precision;
use crate::nn::weights::Weights;

/// Steps whose losses are printed; the first is compared in all its results.
const STEPS: usize = 3;

/// What may differ in a first step, at most: the loss (relative), the direction of the update, and
/// those of the networks after it (1 − cosine).
struct Bounds {
    loss: f64,
    update: f64,
    networks: f64,
}

/// Rounding to 8 bits adds up over tens of layers, and LARS makes each layer count alike, so that a
/// bf16 update turns visibly; the loss does not move much.
fn bounds(precision: Precision) -> Bounds {
    match precision {
        // A bit behind a ReLU decides whether a gradient passes: one rounding turns a deep network's by 1e-3.
        Precision::Highest => Bounds { loss: 1e-4, update: 5e-3, networks: 1e-6 },
        Precision::High => Bounds { loss: 5e-3, update: 2e-2, networks: 1e-4 },
        Precision::Medium => Bounds { loss: 3e-2, update: 0.2, networks: 1e-3 },
    }
}

struct Outcome {
    reports: Vec<StepReport>,
    first: Snapshot,
}

fn steps(mut learner: Box<dyn Learner>, batch: usize, size: usize) -> anyhow::Result<Outcome> {
    let view = |seed: u32| synthetic(batch * size * size * 3, seed);
    let settings = StepSettings { learning_rate: 0.1, tau: 0.99, accumulate: 1 };
    let (mut reports, mut first) = (Vec::new(), None);
    for step in 0..STEPS as u32 {
        reports.extend(learner.step(&view(2 * step + 1), &view(2 * step + 2), settings)?);
        if first.is_none() {
            reports.extend(learner.finish()?);
            first = Some(learner.snapshot()?);
        }
    }
    reports.extend(learner.finish()?);
    anyhow::ensure!(reports.len() == STEPS, "{} reports of {STEPS} steps", reports.len());
    let first = first.ok_or_else(|| anyhow::anyhow!("no step was made"))?;
    Ok(Outcome { reports, first })
}

/// 1 − cosine of two networks' arrays as one vector each.
fn turned(found: &Weights, expected: &Weights) -> f64 {
    let (mut ff, mut ee, mut fe) = (0f64, 0f64, 0f64);
    for (found, expected) in found.0.values().zip(expected.0.values()) {
        for (f, e) in found.data.iter().zip(&expected.data) {
            let (f, e) = (f64::from(*f), f64::from(*e));
            (ff, ee, fe) = (ff + f * f, ee + e * e, fe + f * e);
        }
    }
    1.0 - fe / (ff * ee).sqrt()
}

/// Compares and prints; an error if a bound is passed.
pub fn run(compute: &Compute, encoder: &EncoderConfig, config: &RunConfig) -> anyhow::Result<()> {
    let heads = config.heads;
    let (online, target) = (random_weights(encoder, heads, 1), random_weights(encoder, heads, 2));
    let exact = EncoderConfig { precision: Precision::Highest, ..encoder.clone() };
    let run = |encoder: &EncoderConfig, place| {
        let (lars, target) = (config.lars, Some(&target));
        let start = Start { encoder, heads, lars, online: &online, target };
        steps(learner::open(place, compute.tune, &start)?, config.batch, config.image_size)
    };
    let place = compute.place()?;
    let (found, expected) = (run(encoder, place)?, run(&exact, Place::Cpu)?);
    let (f, e) = (&found.reports[0], &expected.reports[0]);
    let relative = |f: f64, e: f64| (f - e).abs() / e.abs().max(1e-9);
    let bounds = bounds(encoder.precision);
    let checks = [
        ("loss", relative(f.loss, e.loss), bounds.loss),
        ("representation_std", relative(f.representation_std, e.representation_std), bounds.loss),
        ("update", turned(&found.first.velocity, &expected.first.velocity), bounds.update),
        ("online", turned(&found.first.online, &expected.first.online), bounds.networks),
        ("target", turned(&found.first.target, &expected.first.target), bounds.networks),
    ];
    let row = |(name, error, bound): &(&str, f64, f64)| {
        (name.to_string(), serde_json::json!({ "error": error, "bound": bound }))
    };
    let rows: serde_json::Map<_, _> = checks.iter().map(row).collect();
    let losses = |of: &Outcome| of.reports.iter().map(|r| r.loss).collect::<Vec<_>>();
    let json = serde_json::json!({
        "device": place.to_string(), "precision": encoder.precision, "checks": rows,
        "losses": losses(&found), "cpu_losses": losses(&expected),
    });
    println!("{json:#}");
    // A NaN is not within a bound.
    let passed =
        checks.iter().filter(|(_, error, bound)| !matches!(error.partial_cmp(bound), Some(o) if o.is_le()));
    let passed: Vec<_> = passed.map(|(name, ..)| *name).collect();
    anyhow::ensure!(
        passed.is_empty(),
        "differs from the CPU by more than its precision explains: {passed:?}"
    );
    Ok(())
}
