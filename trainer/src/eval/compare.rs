//! Two subjects on the same test pictures: the difference of their figures, and whether training helped.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::table::{EvalRow, EvalTable, Metric};
use crate::data::random::{Purpose, below, stream};

/// Resamples of the test pictures.
const RESAMPLES: u64 = 2000;

/// How the same network with random weights is called.
pub const RANDOM: &str = "random initialisation";

/// How far the encoder in question is ahead of another subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The encoder in question.
    pub subject: String,
    /// What is compared.
    pub metric: Metric,
    /// The other subject.
    pub other: String,
    /// Its figure: of several nearest-neighbour figures the best.
    pub other_metric: Metric,
    /// Difference of the two shares; above 0 the encoder is ahead.
    pub difference: f64,
    /// 95 % interval by a paired bootstrap over the test pictures.
    pub interval: [f64; 2],
}

impl Comparison {
    /// 1 clearly ahead, −1 clearly behind, 0 when the interval holds 0.
    #[must_use]
    pub fn sign(&self) -> i8 {
        i8::from(self.interval[0] > 0.0) - i8::from(self.interval[1] < 0.0)
    }

    /// In words: "16.2 points (15.0 – 17.4) above".
    #[must_use]
    pub fn words(&self) -> String {
        let [low, high] = self.interval.map(|v| v * 100.0);
        let points = self.difference * 100.0;
        let (side, low, high) = if points < 0.0 { ("below", -high, -low) } else { ("above", low, high) };
        format!("{:.1} points ({low:.1} – {high:.1}) {side}", points.abs())
    }
}

/// Whether training helped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Helped {
    /// Clearly ahead of every baseline in every figure compared.
    Yes,
    /// Ahead of some, or not clearly.
    Partly,
    /// Clearly ahead of the best baseline in no figure.
    No,
}

/// The answer with what it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The answer.
    pub helped: Helped,
    /// In a sentence or two.
    pub text: String,
}

/// The interval of the mean of `differences` (one a test picture), by a seeded bootstrap.
#[must_use]
pub fn bootstrap(differences: &[f32], seed: u64) -> [f64; 2] {
    let n = differences.len();
    if n == 0 {
        return [-1.0, 1.0];
    }
    let mean = |resample: u64| {
        let mut rng = stream(seed, Purpose::Split, 4, resample);
        (0..n).map(|_| f64::from(differences[below(&mut rng, n)])).sum::<f64>() / n as f64
    };
    let mut means: Vec<f64> = (0..RESAMPLES).into_par_iter().map(mean).collect();
    means.sort_by(f64::total_cmp);
    let at = |p: f64| means[((p * means.len() as f64) as usize).min(means.len() - 1)];
    [at(0.025), at(0.975)]
}

/// Compares two rows that were measured on the same test pictures.
#[must_use]
pub fn compare(own: &EvalRow, other: &EvalRow) -> Comparison {
    let differences: Vec<f32> = own.scores.iter().zip(&other.scores).map(|(a, b)| a - b).collect();
    Comparison {
        subject: own.subject.clone(),
        metric: own.metric,
        other: other.subject.clone(),
        other_metric: other.metric,
        difference: own.value - other.value,
        interval: bootstrap(&differences, 0),
    }
}

/// The first subject that is no baseline against every other, figure by figure.
#[must_use]
pub fn comparisons(table: &EvalTable) -> Vec<Comparison> {
    let Some(first) = table.rows.iter().find(|r| !r.baseline) else { return Vec::new() };
    let own = |metric: Metric| table.rows.iter().find(|r| r.subject == first.subject && r.metric == metric);
    let mut found = Vec::new();
    for metric in Metric::COMPARED {
        let Some(own) = own(metric) else { continue };
        for other in table.subjects().into_iter().filter(|s| *s != first.subject) {
            let rows = table.rows.iter().filter(|r| r.subject == other && r.metric.family() == metric);
            if let Some(best) = rows.max_by(|a, b| a.value.total_cmp(&b.value)) {
                found.push(compare(own, best));
            }
        }
    }
    found
}

/// Did training help? By kNN and, where it was fitted, the linear probe, against every baseline.
#[must_use]
pub fn answer(table: &EvalTable) -> Option<Answer> {
    let rival = table.against.as_deref();
    let mut parts = Vec::new();
    let mut signs = Vec::new();
    for metric in [Metric::KnnTop1, Metric::LinearTop1] {
        let against =
            table.comparisons.iter().filter(|c| c.metric == metric && Some(c.other.as_str()) != rival);
        let Some(closest) = against.min_by(|a, b| a.difference.total_cmp(&b.difference)) else { continue };
        let unclear = if closest.sign() == 0 { ", which is not clear" } else { "" };
        let name = if metric == Metric::KnnTop1 { "kNN" } else { "the linear probe" };
        parts.push(format!("{name} is {} the best baseline ({}){unclear}", closest.words(), closest.other));
        signs.push(closest.sign());
    }
    let helped = match (signs.iter().all(|s| *s > 0), signs.iter().any(|s| *s > 0)) {
        _ if signs.is_empty() => return None,
        (true, _) => Helped::Yes,
        (_, true) => Helped::Partly,
        _ => Helped::No,
    };
    let lead = match helped {
        Helped::Yes => "Training helped",
        Helped::Partly => "Training helped in part",
        Helped::No => "Training did not clearly help",
    };
    let mut text = format!("{lead}: {}.", parts.join("; "));
    for beside in [Some(RANDOM), rival].into_iter().flatten() {
        let one = |c: &Comparison| {
            let name = if c.metric == Metric::KnnTop1 { "kNN" } else { "linear probe" };
            format!("{name} {}{}", c.words(), if c.sign() == 0 { " (not clear)" } else { "" })
        };
        let known = [Metric::KnnTop1, Metric::LinearTop1];
        let found = table.comparisons.iter().filter(|c| c.other == beside && known.contains(&c.metric));
        let found: Vec<String> = found.map(one).collect();
        if !found.is_empty() {
            text += &format!(" Beside {beside}: {}.", found.join(", "));
        }
    }
    Some(Answer { helped, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_intervals_are_narrow_where_both_are_right_together() {
        // 1000 pictures, both right on the same 600, one on 30 more.
        let scores = |right: usize| (0..1000).map(|i| f32::from(u8::from(i < right))).collect::<Vec<f32>>();
        let differences: Vec<f32> = scores(630).iter().zip(scores(600)).map(|(a, b)| a - b).collect();
        let [low, high] = bootstrap(&differences, 0);
        // The binomial interval of 30 in 1000: 0.0205 to 0.0406.
        assert!((low - 0.020).abs() < 0.002 && (high - 0.041).abs() < 0.002, "{low} {high}");
        assert_eq!(bootstrap(&differences, 0), [low, high]);
        assert_eq!(bootstrap(&[], 0), [-1.0, 1.0]);
    }

    #[test]
    fn words_say_which_side() {
        let c = |difference: f64, interval| Comparison {
            subject: "a".into(),
            metric: Metric::KnnTop1,
            other: "b".into(),
            other_metric: Metric::KnnTop1,
            difference,
            interval,
        };
        assert_eq!(c(0.162, [0.15, 0.174]).words(), "16.2 points (15.0 – 17.4) above");
        assert_eq!(c(-0.01, [-0.03, 0.01]).words(), "1.0 points (-1.0 – 3.0) below");
        assert_eq!(
            [c(0.1, [0.05, 0.2]).sign(), c(0.0, [-0.1, 0.1]).sign(), c(-0.1, [-0.2, -0.01]).sign()],
            [1, 0, -1]
        );
    }
}
