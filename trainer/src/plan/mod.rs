//! How to spend a budget of time and memory: epochs, batch, accumulation, learning rate, warm-up and τ, chosen together.

pub mod fit;
pub mod trial;

use serde::Serialize;

use crate::config::RunConfig;
use crate::monitor::Watched;
use crate::optim::rules;

pub use fit::{FitError, Need, fit};
pub use trial::{Trial, TrialError};

/// What a person asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// Hours of training.
    pub hours: Option<f64>,
    /// Values that were given by hand, and stay.
    pub fixed: Fixed,
}

/// Which values of a configuration stay as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed {
    /// Passes over the pictures.
    pub epochs: bool,
    /// Pictures in a step.
    pub batch: bool,
    /// Learning rate for a batch of 256.
    pub base_learning_rate: bool,
    /// Warm-up.
    pub warmup_epochs: bool,
    /// τ at the first step.
    pub tau_base: bool,
}

/// A configuration with the reasons for it.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What to run.
    pub config: RunConfig,
    /// Pictures that it trains on.
    pub trained: usize,
    /// Pictures that it looks at instead.
    pub held_out: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Measured speed, pictures a second.
    pub images_per_s: f64,
    /// How long that takes.
    pub hours: f64,
    /// Why so, in sentences.
    pub reasons: Vec<String>,
}

/// A budget that does not suffice.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PlanError {
    /// Not even one epoch.
    #[error(
        "{hours} h are less than one epoch: {pictures} pictures take {epoch:.2} h at {images_per_s:.0} pictures/s; give \
         more --hours, or a smaller --image-size or --width"
    )]
    TooShort {
        /// Hours asked for.
        hours: f64,
        /// Pictures of an epoch.
        pictures: usize,
        /// Hours of an epoch.
        epoch: f64,
        /// Measured speed.
        images_per_s: f64,
    },
}

/// The schedule for `pictures` pictures at `images_per_s`, from `config` with everything that is not fixed chosen anew.
///
/// # Errors
/// When the hours do not suffice for one epoch.
pub fn plan(
    config: &RunConfig,
    pictures: usize,
    images_per_s: f64,
    budget: Budget,
) -> Result<Plan, PlanError> {
    let Budget { hours, fixed } = budget;
    let mut config = config.clone();
    let mut reasons = Vec::new();
    let batch_at_most = rules::largest_batch(pictures);
    // Held-out pictures depend on the batch only where there are hardly enough for one.
    let held_out = Watched::hold_out(pictures, if fixed.batch { config.batch } else { batch_at_most });
    let trained = pictures - held_out;
    let epoch_hours = trained as f64 / images_per_s / 3600.0;
    if let Some(hours) = hours.filter(|_| !fixed.epochs) {
        let affordable = hours / epoch_hours;
        if affordable < 1.0 {
            return Err(PlanError::TooShort { hours, pictures: trained, epoch: epoch_hours, images_per_s });
        }
        config.epochs = (affordable as usize).min(rules::MOST_EPOCHS);
        reasons.push(if config.epochs == rules::MOST_EPOCHS {
            format!("epochs {}: as long as the paper trains; the hours would allow more", config.epochs)
        } else {
            format!(
                "epochs {}: what {hours} h allow at {images_per_s:.0} pictures/s, measured",
                config.epochs
            )
        });
    }
    let seen = (trained * config.epochs) as f64;
    if !fixed.batch {
        config.batch = rules::batch(seen, batch_at_most);
        config.accumulate = 1;
        reasons.push(format!(
            "batch {}: about {} steps in all, and no more than an eighth of the pictures; the paper's figures are flat from \
             256 to 4096 (figure 3a)",
            config.batch,
            rules::WANTED_STEPS
        ));
    }
    let steps = (trained / config.batch * config.epochs) as u64;
    if !fixed.base_learning_rate {
        config.base_learning_rate = rules::base_learning_rate(seen);
        reasons.push(format!(
            "base_learning_rate {}: for {:.2} million pictures seen, between the bundled encoder's 3.0 for half a million \
             and the paper's 0.2 for 1,281 million; times batch / 256 it is {:.2}",
            config.base_learning_rate,
            seen / 1e6,
            config.learning_rate()
        ));
    }
    if !fixed.tau_base {
        config.tau_base = rules::tau_base(steps as f64);
        reasons.push(format!(
            "tau_base {}: for {steps} steps; a short run wants a faster target (paper: 0.996 for 312,000 steps, 0.99 for a \
             tenth of them)",
            config.tau_base
        ));
    }
    if !fixed.warmup_epochs {
        config.warmup_epochs = rules::warmup_epochs(config.epochs);
        reasons.push(format!("warmup_epochs {}: a twentieth, at most the paper's 10", config.warmup_epochs));
    }
    config.warmup_epochs = config.warmup_epochs.min(config.epochs as f64);
    let hours = config.epochs as f64 * epoch_hours;
    Ok(Plan { config, trained, held_out, steps, images_per_s, hours, reasons })
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { config, trained, held_out, steps, images_per_s, hours, reasons } = self;
        writeln!(
            f,
            "plan: {} width {} at {} px, {trained} pictures ({held_out} more are watched), {steps} steps, {} at \
             {images_per_s:.0} pictures/s",
            config.arch.as_str(),
            config.width,
            config.image_size,
            duration(*hours)
        )?;
        reasons.iter().try_for_each(|reason| writeln!(f, "  {reason}"))
    }
}

/// Hours, for a person.
#[must_use]
pub fn duration(hours: f64) -> String {
    match hours * 60.0 {
        minutes if minutes < 1.5 => format!("{:.0} s", minutes * 60.0),
        minutes if minutes < 90.0 => format!("{minutes:.0} min"),
        minutes if minutes < 48.0 * 60.0 => format!("{hours:.1} h"),
        _ => format!("{:.1} days", hours / 24.0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn planned(pictures: usize, speed: f64, hours: f64) -> RunConfig {
        let budget = Budget { hours: Some(hours), fixed: Fixed::default() };
        let plan = plan(&RunConfig::default(), pictures, speed, budget).unwrap();
        plan.config.validate().unwrap();
        assert!(plan.hours <= hours && plan.steps > 0, "{plan}");
        plan.config
    }

    #[test]
    fn it_finds_the_bundled_encoders_schedule_and_the_papers() {
        // 50,000 pictures for 53 minutes at 157 pictures/s: trained with 10 epochs, batch 128, 3.0, 0.98, 0.5.
        let ours = planned(50_000, 157.0, 53.0 / 60.0);
        assert_eq!((ours.epochs, ours.batch, ours.warmup_epochs), (10, 128, 0.5));
        assert!(
            (ours.base_learning_rate - 3.0).abs() < 0.05 && (ours.tau_base - 0.98).abs() < 0.002,
            "{ours:?}"
        );
        // ImageNet without end.
        let paper = planned(1_281_167, 10_000.0, 1000.0);
        assert_eq!((paper.epochs, paper.batch, paper.warmup_epochs), (1000, 4096, 10.0));
        assert!(
            (paper.base_learning_rate - 0.2).abs() < 0.01 && (paper.tau_base - 0.996).abs() < 0.0005,
            "{paper:?}"
        );
    }

    #[test]
    fn any_budget_makes_a_valid_run() {
        for pictures in [2, 17, 100, 1300, 5000, 1_000_000] {
            for hours in [1.0, 10.0, 1000.0] {
                planned(pictures, 500.0, hours);
            }
        }
    }

    #[test]
    fn what_is_given_by_hand_stays() {
        let config =
            RunConfig { epochs: 3, batch: 32, tau_base: 0.5, warmup_epochs: 9.0, ..RunConfig::default() };
        let fixed =
            Fixed { epochs: true, batch: true, tau_base: true, warmup_epochs: true, ..Fixed::default() };
        let plan = plan(&config, 5000, 100.0, Budget { hours: Some(9.0), fixed }).unwrap();
        assert_eq!((plan.config.epochs, plan.config.batch, plan.config.tau_base), (3, 32, 0.5));
        assert_eq!(plan.config.warmup_epochs, 3.0, "no longer than the run");
        assert_eq!(plan.reasons.len(), 1, "{plan}");
    }

    #[test]
    fn too_few_hours_say_what_an_epoch_takes() {
        let budget = Budget { hours: Some(0.1), fixed: Fixed::default() };
        let error = plan(&RunConfig::default(), 50_000, 10.0, budget).unwrap_err().to_string();
        assert!(
            error.contains("less than one epoch") && error.contains("1.37 h") && error.contains("--hours"),
            "{error}"
        );
    }
}
