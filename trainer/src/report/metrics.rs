//! The rows of metrics.jsonl that a report draws.

use serde::{Deserialize, Serialize};

/// One line of metrics.jsonl. Fields that a row's kind does not have are absent; further ones are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricRow {
    /// "step", or "verdict" for the figures of watched pictures: see `monitor::Health`.
    pub kind: String,
    /// Optimiser steps taken.
    pub step: u64,
    /// Epochs passed.
    #[serde(default)]
    pub epoch: f64,
    /// BYOL's loss, between 0 and 8 when both directions are added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Share of the target that a step keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// 1 well spread, 0 collapsed; see `eval::Spread`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representation_std: Option<f64>,
    /// Spread of the projections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection_std: Option<f64>,
    /// RankMe of the representations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_rank: Option<f64>,
    /// Mean squared distance of two views of a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alignment: Option<f64>,
    /// How evenly pictures lie on the sphere; less is more even.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniformity: Option<f64>,
    /// Share of views whose nearest other view is of the same picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view_retrieval: Option<f64>,
    /// Pictures a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_per_s: Option<f64>,
}

/// Reads metrics.jsonl; also says how many lines were none, such as a last one cut short by a crash.
///
/// A run that was resumed writes some steps again: of rows of one kind and step the last counts.
#[must_use]
pub fn parse_metrics(text: &str) -> (Vec<MetricRow>, usize) {
    let mut rows: Vec<MetricRow> = Vec::new();
    let mut unreadable = 0;
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        match serde_json::from_str::<MetricRow>(line) {
            Ok(row) => {
                while rows.last().is_some_and(|last| last.step > row.step) {
                    rows.pop();
                }
                rows.retain_last_of(&row);
                rows.push(row);
            }
            Err(_) => unreadable += 1,
        }
    }
    (rows, unreadable)
}

trait RetainLast {
    fn retain_last_of(&mut self, row: &MetricRow);
}

impl RetainLast for Vec<MetricRow> {
    /// Drops a row of the same kind and step from the end.
    fn retain_last_of(&mut self, row: &MetricRow) {
        let tail = self.iter().rposition(|r| r.step != row.step).map_or(0, |i| i + 1);
        if let Some(i) = self.iter().skip(tail).position(|r| r.kind == row.kind) {
            self.remove(tail + i);
        }
    }
}

/// `(epoch, value)` of the step rows that have a finite value.
pub(super) fn series(rows: &[MetricRow], value: impl Fn(&MetricRow) -> Option<f64>) -> Vec<(f64, f64)> {
    series_of(rows, "step", value)
}

/// The same of the rows of a kind.
pub(super) fn series_of(
    rows: &[MetricRow],
    kind: &str,
    value: impl Fn(&MetricRow) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let point = |r: &MetricRow| value(r).filter(|v| v.is_finite()).map(|v| (r.epoch, v));
    rows.iter().filter(|r| r.kind == kind).filter_map(point).collect()
}

/// Median of the last tenth of a series, at least of its last value.
pub(super) fn final_value(series: &[(f64, f64)]) -> Option<f64> {
    let tail = series.len() - (series.len() / 10).max(1).min(series.len());
    let mut values: Vec<f64> = series.get(tail..)?.iter().map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_steps_and_epochs_and_survives_a_cut_line() {
        let text = "{\"kind\":\"step\",\"step\":1,\"epoch\":0.1,\"loss\":3.5,\"lr\":0.1,\"other\":1}\n\n\
                    {\"kind\":\"epoch\",\"step\":1,\"epoch\":1.0}\n{\"kind\":\"step\",\"st";
        let (rows, unreadable) = parse_metrics(text);
        assert_eq!((rows.len(), unreadable), (2, 1));
        assert_eq!(rows[0].loss, Some(3.5));
        assert_eq!(rows[0].tau, None);
        assert_eq!(series(&rows, |r| r.loss), [(0.1, 3.5)]);
    }

    #[test]
    fn a_resumed_run_replaces_what_it_did_again() {
        let row = |step: u64, loss: f64| format!("{{\"kind\":\"step\",\"step\":{step},\"loss\":{loss}}}\n");
        let text: String = [row(1, 1.0), row(2, 2.0), row(3, 3.0), row(2, 9.0), row(3, 8.0)].concat();
        let (rows, _) = parse_metrics(&text);
        let losses: Vec<_> = rows.iter().map(|r| (r.step, r.loss.unwrap())).collect();
        assert_eq!(losses, [(1, 1.0), (2, 9.0), (3, 8.0)]);
    }

    #[test]
    fn final_values_are_medians_of_the_end() {
        let s: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), f64::from(i))).collect();
        assert_eq!(final_value(&s), Some(95.0));
        assert_eq!(final_value(&s[..1]), Some(0.0));
        assert_eq!(final_value(&[]), None);
    }
}
