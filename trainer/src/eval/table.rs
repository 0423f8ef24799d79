//! The result of an evaluation: figures with their uncertainty.

use serde::{Deserialize, Serialize};

use super::compare::{Answer, Comparison};
use super::few::FewLabels;
use super::subject::Measured;
use crate::data::SplitOrigin;

/// What a figure measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of test pictures whose class a weighted kNN finds.
    KnnTop1,
    /// The same with plain majority votes.
    KnnMajorityTop1,
    /// The same with plain votes after the train mean is subtracted from the normalised vectors.
    KnnCentredTop1,
    /// Share of test pictures whose class a linear probe finds.
    LinearTop1,
    /// The same with a tenth of the labels: the mean over several subsets.
    #[serde(rename = "linear_10pct_top1")]
    LinearTenthTop1,
    /// The same with a hundredth of the labels.
    #[serde(rename = "linear_1pct_top1")]
    LinearHundredthTop1,
}

impl Metric {
    /// The figures in which subjects are compared, one of each family.
    pub const COMPARED: [Self; 4] =
        [Self::KnnTop1, Self::LinearTop1, Self::LinearTenthTop1, Self::LinearHundredthTop1];

    /// Whether neighbours vote.
    #[must_use]
    pub fn is_nearest(self) -> bool {
        self.family() == Self::KnnTop1
    }

    /// The figure that stands for this one in comparisons: the ways to vote are one family.
    #[must_use]
    pub fn family(self) -> Self {
        match self {
            Self::KnnTop1 | Self::KnnMajorityTop1 | Self::KnnCentredTop1 => Self::KnnTop1,
            other => other,
        }
    }

    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KnnTop1 => "knn_top1",
            Self::KnnMajorityTop1 => "knn_majority_top1",
            Self::KnnCentredTop1 => "knn_centred_top1",
            Self::LinearTop1 => "linear_top1",
            Self::LinearTenthTop1 => "linear_10pct_top1",
            Self::LinearHundredthTop1 => "linear_1pct_top1",
        }
    }
}

/// How one class fared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassAccuracy {
    /// Name of the class.
    pub class: String,
    /// Test pictures that were recognised.
    pub correct: usize,
    /// Test pictures of the class.
    pub total: usize,
}

impl ClassAccuracy {
    /// The recognised share; 0 for a class without test pictures.
    #[must_use]
    pub fn value(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.correct as f64 / self.total as f64 }
    }
}

/// One figure of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Whose it is.
    pub subject: String,
    /// Whether the subject is there to be compared with.
    pub baseline: bool,
    /// What it measures.
    pub metric: Metric,
    /// Between 0 and 1.
    pub value: f64,
    /// 95 % confidence interval (Wilson, over the test pictures).
    pub interval: [f64; 2],
    /// How it came about, where that varies: the weight decay of a probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The subsets of labels it is the mean of, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsets: Option<Subsets>,
    /// Class by class; empty for a mean over subsets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_class: Vec<ClassAccuracy>,
    /// Share of right answers for every test picture, for comparisons within one evaluation.
    #[serde(skip)]
    pub scores: Vec<f32>,
}

/// Subsets of the labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subsets {
    /// How many.
    pub count: usize,
    /// Labels in each.
    pub labels: usize,
    /// Standard deviation of the figure over them.
    pub std: f64,
}

impl EvalRow {
    /// Compares predictions with the truth.
    #[must_use]
    pub fn from_predictions(
        subject: &str,
        baseline: bool,
        metric: Metric,
        predictions: &[usize],
        labels: &[usize],
        classes: &[String],
    ) -> Self {
        let tally = |(label, class): (usize, &String)| {
            let of_class = || predictions.iter().zip(labels).filter(|p| *p.1 == label);
            let correct = of_class().filter(|(a, b)| a == b).count();
            ClassAccuracy { class: class.clone(), correct, total: of_class().count() }
        };
        let per_class: Vec<ClassAccuracy> = classes.iter().enumerate().map(tally).collect();
        let correct = predictions.iter().zip(labels).filter(|(a, b)| a == b).count();
        let value = correct as f64 / labels.len().max(1) as f64;
        let interval = wilson(correct, labels.len());
        let scores = predictions.iter().zip(labels).map(|(a, b)| f32::from(u8::from(a == b))).collect();
        let subject = subject.to_owned();
        Self { subject, baseline, metric, value, interval, note: None, subsets: None, per_class, scores }
    }

    /// The mean over several probes of few labels each. The interval adds the spread over the subsets to that over the
    /// test pictures, by the normal approximation.
    #[must_use]
    pub fn from_subsets(
        subject: &str,
        baseline: bool,
        metric: Metric,
        found: &FewLabels,
        labels: &[usize],
    ) -> Self {
        let (n, k) = (labels.len().max(1) as f64, found.predictions.len().max(1) as f64);
        let right = |p: &Vec<usize>| p.iter().zip(labels).filter(|(a, b)| a == b).count() as f64 / n;
        let values: Vec<f64> = found.predictions.iter().map(right).collect();
        let value = values.iter().sum::<f64>() / k;
        let over_subsets = values.iter().map(|v| (v - value).powi(2)).sum::<f64>() / (k - 1.0).max(1.0);
        let hits = |i: usize| found.predictions.iter().filter(|p| p.get(i) == labels.get(i)).count();
        let scores: Vec<f32> = (0..labels.len()).map(|i| (hits(i) as f64 / k) as f32).collect();
        let over_pictures = scores.iter().map(|&s| (f64::from(s) - value).powi(2)).sum::<f64>() / n;
        let half = 1.96 * (over_pictures / n + over_subsets / k).sqrt();
        Self {
            subject: subject.to_owned(),
            baseline,
            metric,
            value,
            interval: [(value - half).max(0.0), (value + half).min(1.0)],
            note: None,
            subsets: Some(Subsets {
                count: found.predictions.len(),
                labels: found.labels,
                std: over_subsets.sqrt(),
            }),
            per_class: Vec::new(),
            scores,
        }
    }

    /// What is said behind the figure: how the probe came about, or the subsets.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        let subsets = |s: &Subsets| {
            format!("{} subsets of {} labels, standard deviation {:.1}", s.count, s.labels, s.std * 100.0)
        };
        self.subsets.as_ref().map(subsets).or_else(|| self.note.clone())
    }
}

/// The 95 % confidence interval of a share (Wilson, 1927).
#[must_use]
pub fn wilson(correct: usize, total: usize) -> [f64; 2] {
    if total == 0 {
        return [0.0, 1.0];
    }
    const Z: f64 = 1.959_963_984_540_054;
    let n = total as f64;
    let p = correct as f64 / n;
    let scale = 1.0 / (1.0 + Z * Z / n);
    let centre = (p + Z * Z / (2.0 * n)) * scale;
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt() * scale;
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

/// How a subject's vectors spread, without labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Representation {
    /// Whose vectors.
    pub subject: String,
    /// Their length.
    pub dim: usize,
    /// See [`Spread::std`](super::Spread): 1 well spread, 0 collapsed.
    pub std: f64,
    /// See [`Spread::effective_rank`](super::Spread): between 1 and `dim`.
    pub effective_rank: f64,
}

/// All figures of one evaluation, from one run over the same pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalTable {
    /// The labelled folder.
    pub dataset: String,
    /// Class names.
    pub classes: Vec<String>,
    /// Pictures learned from.
    pub train_pictures: usize,
    /// Pictures asked.
    pub test_pictures: usize,
    /// Files that could not be read.
    pub skipped: usize,
    /// How the two were told apart.
    pub split: SplitOrigin,
    /// Neighbours that vote.
    pub k: usize,
    /// Temperature of the weighted vote.
    pub temperature: f64,
    /// The figures, subject by subject in the order given, baselines after.
    pub rows: Vec<EvalRow>,
    /// Spread of each subject's train vectors.
    pub representations: Vec<Representation>,
    /// The other encoder that it was asked to be compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// The encoder in question against every other subject.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// Whether training helped; none where there was nothing to compare with.
    #[serde(default)]
    pub answer: Option<Answer>,
    /// Which state of a run the encoder in question was; none of an artefact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// The command that made this.
    pub command: String,
    /// The machine it ran on.
    pub machine: String,
    /// How long it took.
    pub seconds: f64,
}

impl EvalTable {
    /// One figure.
    #[must_use]
    pub fn value(&self, subject: &str, metric: Metric) -> Option<f64> {
        self.rows.iter().find(|r| r.subject == subject && r.metric == metric).map(|r| r.value)
    }

    /// Subjects in order, each once.
    #[must_use]
    pub fn subjects(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !names.contains(&row.subject.as_str()) {
                names.push(&row.subject);
            }
        }
        names
    }

    /// How the encoder in question compares with a row, where they were compared.
    #[must_use]
    pub fn comparison(&self, row: &EvalRow) -> Option<&Comparison> {
        self.comparisons.iter().find(|c| c.other == row.subject && c.other_metric == row.metric)
    }

    /// What a metric is called in print, with its settings.
    #[must_use]
    pub fn metric_label(&self, metric: Metric) -> String {
        match metric {
            Metric::KnnTop1 => format!("kNN (k={}, T={})", self.k, self.temperature),
            Metric::KnnMajorityTop1 => format!("kNN, plain vote (k={})", self.k),
            Metric::KnnCentredTop1 => format!("kNN, mean-centred, plain vote (k={})", self.k),
            Metric::LinearTop1 => "linear probe".to_owned(),
            Metric::LinearTenthTop1 => "linear probe, 10 % of labels".to_owned(),
            Metric::LinearHundredthTop1 => "linear probe, 1 % of labels".to_owned(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> EvalTable {
        let classes: Vec<String> = vec!["cat".into(), "dog".into()];
        let labels = [0, 0, 1, 1];
        let row = |s, b, m, p: &[usize]| EvalRow::from_predictions(s, b, m, p, &labels, &classes);
        let mut linear = row("this encoder", false, Metric::LinearTop1, &[0, 0, 1, 1]);
        linear.note = Some("weight decay 0.001".into());
        EvalTable {
            dataset: "pets <&> more".into(),
            train_pictures: 10,
            test_pictures: 4,
            skipped: 1,
            split: SplitOrigin::Seeded { seed: 3 },
            k: 20,
            temperature: 0.07,
            rows: vec![
                row("this encoder", false, Metric::KnnTop1, &[0, 0, 1, 0]),
                linear,
                row("raw pixels", true, Metric::KnnTop1, &[0, 1, 1, 0]),
                row("raw pixels", true, Metric::KnnCentredTop1, &[1, 1, 1, 0]),
            ],
            representations: vec![Representation {
                subject: "this encoder".into(),
                dim: 256,
                std: 0.81,
                effective_rank: 130.2,
            }],
            against: None,
            comparisons: Vec::new(),
            answer: None,
            measured: None,
            classes,
            command: "latentd-trainer eval x --labelled y".into(),
            machine: "a machine".into(),
            seconds: 12.0,
        }
    }

    #[test]
    fn counts_classes_and_gives_figures_by_name() {
        let table = example();
        assert_eq!(table.value("this encoder", Metric::KnnTop1), Some(0.75));
        assert_eq!(table.value("nobody", Metric::KnnTop1), None);
        assert_eq!(table.subjects(), ["this encoder", "raw pixels"]);
        let dogs = &table.rows[0].per_class[1];
        assert_eq!((dogs.correct, dogs.total, dogs.value()), (1, 2, 0.5));
    }

    #[test]
    fn wilson_matches_known_values() {
        // 81 of 263: 0.2553 to 0.3662 (Newcombe, 1998, table I, method 3).
        let [low, high] = wilson(81, 263);
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5);
        let [low, high] = wilson(0, 20);
        assert!(low == 0.0 && (high - 0.1611).abs() < 5e-5);
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
    }

    #[test]
    fn prints_and_survives_json() {
        let table = example();
        let text = table.to_string();
        assert!(text.contains("this encoder  kNN (k=20, T=0.07)"), "{text}");
        assert!(text.contains("(weight decay 0.001)") && text.contains("80/20"));
        let json = serde_json::to_string(&table).unwrap();
        assert!(json.contains("\"metric\":\"knn_centred_top1\""));
        assert!(json.contains(&format!("\"metric\":\"{}\"", Metric::LinearTop1.name())));
        // serde_json may be off by the last digit of a float, print is not.
        assert_eq!(serde_json::from_str::<EvalTable>(&json).unwrap().to_string(), text);
    }
}
