//! Healthy or collapsed, and why.

use super::metrics::{MetricRow, final_value, series};
use crate::eval::{EvalTable, Metric};

/// How a training went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing speaks against the encoder.
    Healthy,
    /// Something needs a look.
    Doubtful,
    /// The encoder is of no use.
    Collapsed,
}

impl Level {
    /// In one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Doubtful => "doubtful",
            Self::Collapsed => "collapsed",
        }
    }
}

/// A judgement with its reasons.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The judgement.
    pub level: Level,
    /// What it rests on, in sentences.
    pub reasons: Vec<String>,
}

/// Below this the representation std is that of a collapse.
const COLLAPSED_STD: f64 = 0.1;
/// Below this it is low.
const LOW_STD: f64 = 0.3;

impl Verdict {
    /// What made the judgement worse is said first.
    fn add(&mut self, level: Level, reason: String) {
        if (level as u8) > (self.level as u8) {
            self.level = level;
            self.reasons.insert(0, reason);
        } else {
            self.reasons.push(reason);
        }
    }
}

/// Judges a run by its curves and, when there is one, its evaluation.
#[must_use]
pub fn verdict(metrics: &[MetricRow], eval: Option<&EvalTable>) -> Verdict {
    let mut verdict = Verdict { level: Level::Healthy, reasons: Vec::new() };
    if metrics.iter().any(|r| r.loss.is_some_and(|l| !l.is_finite())) {
        verdict.add(Level::Collapsed, "The loss became infinite or not a number.".to_owned());
    }
    let losses = series(metrics, |r| r.loss);
    if let (Some(first), Some(last)) = (losses.first(), final_value(&losses)) {
        verdict.add(Level::Healthy, format!("The loss went from {:.3} to {last:.3}.", first.1));
    }
    let measured = eval.and_then(|t| t.representations.first());
    match (measured.map(|r| r.std), final_value(&series(metrics, |r| r.representation_std))) {
        (Some(std), _) => judge_std(&mut verdict, std, "on the labelled pictures"),
        (None, Some(std)) => judge_std(&mut verdict, std, "at the end of training"),
        (None, None) => {
            verdict.add(Level::Doubtful, "The spread of the representation was not measured.".to_owned())
        }
    }
    if let Some(r) = measured {
        let share = r.effective_rank / r.dim as f64;
        let level = if r.effective_rank < 3.0 { Level::Collapsed } else { Level::Healthy };
        let text =
            format!("Its effective rank is {:.1} of {} ({:.0} %).", r.effective_rank, r.dim, share * 100.0);
        verdict.add(level, text);
    }
    match eval {
        Some(table) => judge_figures(&mut verdict, table),
        None => verdict.reasons.push("It was not evaluated on labelled pictures.".to_owned()),
    }
    verdict
}

fn judge_std(verdict: &mut Verdict, std: f64, place: &str) {
    let (level, words) = if std.is_nan() || std < COLLAPSED_STD {
        (Level::Collapsed, "nearly all pictures get the same vector")
    } else if std < LOW_STD {
        (Level::Doubtful, "the vectors crowd into one direction")
    } else {
        (Level::Healthy, "the vectors are spread")
    };
    verdict
        .add(level, format!("The representation std {place} is {std:.2} (1 spread, 0 collapsed): {words}."));
}

/// The encoder's kNN against the best of the baselines' nearest-neighbour figures.
fn judge_figures(verdict: &mut Verdict, table: &EvalTable) {
    let own = table.rows.iter().find(|r| !r.baseline && r.metric == Metric::KnnTop1);
    let best = table
        .rows
        .iter()
        .filter(|r| r.baseline && r.metric.is_nearest())
        .max_by(|a, b| a.value.total_cmp(&b.value));
    let (Some(own), Some(best)) = (own, best) else { return };
    let level = if own.interval[0] > best.value { Level::Healthy } else { Level::Doubtful };
    let conclusion = if level == Level::Healthy { "it clearly beats" } else { "it does not clearly beat" };
    let text = format!(
        "Its kNN finds the class of {:.1} % of the test pictures; {conclusion} the best baseline ({}, {}: {:.1} %).",
        own.value * 100.0,
        best.subject,
        table.metric_label(best.metric),
        best.value * 100.0
    );
    // The answer says the same with the interval of the difference.
    verdict.add(level, table.answer.as_ref().map_or(text, |answer| answer.text.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::table::tests::example;

    fn run(std: f64, loss: f64) -> Vec<MetricRow> {
        let row = |step| MetricRow {
            kind: "step".to_owned(),
            step,
            loss: Some(if step == 0 { 3.9 } else { loss }),
            representation_std: Some(std),
            ..MetricRow::default()
        };
        (0..20).map(row).collect()
    }

    #[test]
    fn the_spread_decides() {
        assert_eq!(verdict(&run(0.8, 1.0), None).level, Level::Healthy);
        assert_eq!(verdict(&run(0.2, 1.0), None).level, Level::Doubtful);
        let collapsed = verdict(&run(0.01, 0.0), None);
        assert_eq!(collapsed.level, Level::Collapsed);
        assert!(collapsed.reasons.iter().any(|r| r.contains("same vector")), "{collapsed:?}");
        assert_eq!(verdict(&run(f64::NAN, 1.0), None).level, Level::Doubtful);
        assert_eq!(verdict(&run(0.8, f64::NAN), None).level, Level::Collapsed);
        assert_eq!(verdict(&[], None).level, Level::Doubtful);
    }

    #[test]
    fn an_encoder_that_does_not_clearly_beat_the_baselines_is_doubtful() {
        // Four test pictures prove nothing.
        let table = example();
        let v = verdict(&run(0.8, 1.0), Some(&table));
        assert_eq!(v.level, Level::Doubtful);
        assert!(v.reasons.iter().any(|r| r.contains("75.0 %") && r.contains("50.0 %")), "{v:?}");
        let mut sure = table.clone();
        sure.rows[0].interval = [0.7, 0.8];
        assert_eq!(verdict(&run(0.8, 1.0), Some(&sure)).level, Level::Healthy);
    }
}
