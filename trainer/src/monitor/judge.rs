//! Whether a run has collapsed, which of its verdicts is the best so far, and whether it still gets better.

use super::health::Health;
use crate::config::RunConfig;
use crate::optim::rules;
use crate::report::MetricRow;

/// Below this spread of the projections all pictures look the same to the loss. Runs that learn, or that have hardly
/// begun, were never seen below 0.3; collapsed ones are below 0.02 after an epoch: see docs/training.md.
const COLLAPSED_PROJECTIONS: f64 = 0.05;
/// The same for representations, whose batch norms keep them apart for longer: seen between 0.05 and 0.3.
const COLLAPSED_REPRESENTATIONS: f64 = 0.03;
/// So many times the learning rate that a run of its length wants is the likely cause of a collapse.
const TOO_HIGH: f64 = 3.0;
/// Batch norms of fewer pictures are mostly noise.
const TOO_FEW: usize = 16;

/// What a verdict means for the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// No verdict before was clearly better: the checkpoint is kept as the best.
    pub best: bool,
    /// Nothing got better for as long as the configuration lets a run wait.
    pub plateau: bool,
    /// The encoder has collapsed.
    pub collapse: Option<Collapse>,
}

/// A collapse, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collapse {
    /// What is seen.
    pub sign: String,
    /// The likely cause, and what to do.
    pub cause: String,
}

/// Judges the verdicts of a run one after the other.
///
/// They are compared by view retrieval, the figure that went best with kNN (docs/training.md). It is a share of so
/// many pictures: a difference counts from one standard error on, and of equals the later is the better, as the learning
/// rate falls.
#[derive(Clone, Debug)]
pub struct Judge {
    config: RunConfig,
    watched: usize,
    /// Pictures that the run sees in all.
    seen: f64,
    /// The highest view retrieval so far, and the epoch since when nothing was clearly better.
    top: Option<(f64, f64)>,
}

impl Judge {
    /// For a run that trains on `trained` and watches `watched` pictures, after the verdicts among `rows`.
    #[must_use]
    pub fn new(config: &RunConfig, trained: usize, watched: usize, rows: &[MetricRow]) -> Self {
        let seen = (trained * config.epochs) as f64;
        let mut judge = Self { config: config.clone(), watched, seen, top: None };
        for row in rows {
            if let Some(health) = Health::of(row) {
                judge.hear(row.step, row.epoch, &health);
            }
        }
        judge
    }

    /// Judges a verdict. That of step 0 is neither good nor bad: its batch norms have seen nothing yet.
    pub fn hear(&mut self, step: u64, epoch: f64, health: &Health) -> Outcome {
        if step == 0 {
            return Outcome { best: false, plateau: false, collapse: None };
        }
        let score = health.view_retrieval;
        let (top, since) = self.top.unwrap_or((f64::NEG_INFINITY, epoch));
        let error = (score * (1.0 - score) / self.watched.max(1) as f64).sqrt();
        let clearly = score > top + error;
        self.top = Some((top.max(score), if clearly { epoch } else { since }));
        let patience = self.config.patience;
        Outcome {
            best: score >= top - error,
            plateau: patience > 0.0 && !clearly && epoch - since >= patience,
            collapse: self.collapse(health),
        }
    }

    fn collapse(&self, health: &Health) -> Option<Collapse> {
        let Health { projection_std, representation_std, .. } = *health;
        let sign = if projection_std < COLLAPSED_PROJECTIONS {
            format!(
                "all pictures get nearly the same projection (std {projection_std:.3}, spread ones have 0.3 to 1)"
            )
        } else if representation_std < COLLAPSED_REPRESENTATIONS {
            format!("all pictures get nearly the same representation (std {representation_std:.3})")
        } else {
            return None;
        };
        Some(Collapse { sign, cause: self.cause() })
    }

    /// The most likely cause in the configuration.
    fn cause(&self) -> String {
        let RunConfig { tau_base, base_learning_rate, ref heads, .. } = self.config;
        let (wanted, part) = (rules::base_learning_rate(self.seen), self.config.micro_batch());
        if !heads.predictor {
            format!(
                "likely cause: no predictor (tau_base {tau_base}), so that online and target network agree on one point: \
                 start again with the predictor"
            )
        } else if tau_base < 0.5 {
            format!(
                "likely cause: tau_base {tau_base} lets the target follow the online network at once: start again with 0.97 \
                 to 0.996"
            )
        } else if base_learning_rate > TOO_HIGH * wanted {
            format!(
                "likely cause: base_learning_rate {base_learning_rate} is too high: start again with about {wanted}"
            )
        } else if part < TOO_FEW {
            format!(
                "likely cause: batch norms over {part} pictures: start again with a larger batch or less accumulate"
            )
        } else {
            "the likely cause is the learning rate: start again with half the base_learning_rate".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::byol::HeadConfig;

    fn health(view_retrieval: f64) -> Health {
        Health {
            representation_std: 0.5,
            projection_std: 0.7,
            effective_rank: 10.0,
            alignment: 0.5,
            uniformity: -1.0,
            view_retrieval,
        }
    }

    #[test]
    fn the_later_of_equals_is_the_best_and_noise_does_not_let_it_drift() {
        let mut judge = Judge::new(&RunConfig::default(), 5000, 100, &[]);
        let mut best = |step: u64, score: f64| judge.hear(step, step as f64, &health(score)).best;
        assert!(!best(0, 0.9), "before the first step it means nothing");
        assert!(best(1, 0.2) && best(2, 0.5));
        assert!(best(3, 0.46), "within a standard error of 0.05");
        assert!(!best(4, 0.42), "clearly below the highest, if not below the one before");
        assert!(best(5, 0.5));
    }

    #[test]
    fn a_plateau_is_as_long_as_the_patience_and_known_after_a_restart() {
        let config = RunConfig { patience: 3.0, ..RunConfig::default() };
        let scores = [0.1, 0.3, 0.32, 0.31, 0.33, 0.3];
        let plateau =
            |judge: &mut Judge, i: usize| judge.hear(i as u64 + 1, i as f64, &health(scores[i])).plateau;
        let mut judge = Judge::new(&config, 5000, 100, &[]);
        let found: Vec<_> = (0..6).map(|i| plateau(&mut judge, i)).collect();
        assert_eq!(found, [false, false, false, false, true, true]);
        let rows: Vec<_> = (0..4).map(|i| health(scores[i]).row(i as u64 + 1, i as f64)).collect();
        assert!(plateau(&mut Judge::new(&config, 5000, 100, &rows), 4));
        let endless = RunConfig { patience: 0.0, ..config };
        assert!(!plateau(&mut Judge::new(&endless, 5000, 100, &rows), 5));
    }

    #[test]
    fn a_collapse_names_the_likely_cause() {
        let flat = Health { projection_std: 0.006, ..health(0.0) };
        let cause = |config: RunConfig| {
            let mut judge = Judge::new(&config, 5000, 100, &[]);
            assert_eq!(judge.hear(1, 1.0, &health(0.0)).collapse, None, "poor is not collapsed");
            let collapse = judge.hear(2, 1.0, &flat).collapse;
            collapse.map(|c| format!("{}; {}", c.sign, c.cause)).unwrap_or_default()
        };
        let base = RunConfig::default();
        let bare = HeadConfig { predictor: false, ..base.heads };
        for (config, expected) in [
            (RunConfig { heads: bare, tau_base: 0.0, ..base.clone() }, "no predictor (tau_base 0)"),
            (RunConfig { tau_base: 0.0, ..base.clone() }, "tau_base 0 lets the target follow"),
            (RunConfig { base_learning_rate: 100.0, ..base.clone() }, "base_learning_rate 100 is too high"),
            (RunConfig { accumulate: 16, ..base.clone() }, "batch norms over 8 pictures"),
            (base.clone(), "half the base_learning_rate"),
        ] {
            let said = cause(config);
            assert!(said.contains(expected) && said.contains("std 0.006"), "{said}");
        }
        let point = Health { representation_std: 0.01, ..health(0.0) };
        let sign = Judge::new(&base, 5000, 100, &[]).hear(1, 1.0, &point).collapse.map(|c| c.sign);
        assert!(sign.is_some_and(|s| s.contains("same representation")));
    }
}
