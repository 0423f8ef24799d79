//! The whole evaluation: every subject and the baselines over the same pictures, in one run.

use std::ops::ControlFlow;
use std::time::Instant;

use latentd_model::{DecodeLimits, Preprocess};

use super::collect::{Views, collect};
use super::compare::{answer, comparisons};
use super::error::EvalError;
use super::features::Features;
use super::few::{FewOptions, few_label_probe};
use super::knn::{Similarity, Vote, neighbours, neighbours_by, vote};
use super::machine::machine;
use super::probe::{ProbeOptions, linear_probe};
use super::spread::spread;
use super::subject::Subject;
use super::table::{EvalRow, EvalTable, Metric, Representation};
use crate::data::LabelledSplits;

/// Name of the raw-pixel baseline.
pub const RAW_PIXELS: &str = "raw pixels";
/// Name of the baseline of hand-made features.
pub const HOG: &str = "HOG";

/// What is measured.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// Neighbours that vote.
    pub k: usize,
    /// Temperature of the weighted vote.
    pub temperature: f64,
    /// The linear probe, if wanted.
    pub probe: Option<ProbeOptions>,
    /// The linear probe with few labels, if wanted.
    pub few: Option<FewOptions>,
    /// Whether raw pixels are measured too.
    pub pixels: bool,
    /// Whether histograms of oriented gradients are measured too.
    pub hog: bool,
    /// Name of the subject that is another encoder rather than a baseline.
    pub against: Option<String>,
    /// Rows that the spread is measured on, at most.
    pub spread_rows: usize,
    /// What a file may hold; larger ones are skipped.
    pub limits: DecodeLimits,
    /// The command that asked for this, for the record.
    pub command: String,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            k: 20,
            temperature: 0.07,
            probe: Some(ProbeOptions::default()),
            few: Some(FewOptions::default()),
            pixels: true,
            hog: true,
            against: None,
            spread_rows: 25_600,
            limits: DecodeLimits::default(),
            command: String::new(),
        }
    }
}

/// How far an evaluation has come.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalProgress {
    /// What is being done.
    pub stage: String,
    /// Pictures embedded so far; all of them in the later stages.
    pub done: usize,
    /// Pictures in all.
    pub total: usize,
}

type Progress<'p> = &'p mut dyn FnMut(EvalProgress) -> ControlFlow<()>;

/// Measures `subjects`, raw pixels and HOG features on a labelled folder, and compares the first subject with the others.
///
/// Every subject gets pictures brought to `preprocess`'s size unless it has a preprocessing of its own; raw pixels are
/// the same pictures squeezed to 32 × 32 by a box filter, those for HOG to 32 × 32 or 64 × 64. `progress` may stop the
/// evaluation.
///
/// # Errors
/// When nothing can be read, a subject fails, or `progress` asked to stop.
pub fn evaluate(
    mut subjects: Vec<Subject<'_>>,
    splits: &LabelledSplits,
    preprocess: &Preprocess,
    options: &EvalOptions,
    progress: Progress<'_>,
) -> Result<EvalTable, EvalError> {
    let started = Instant::now();
    let total = splits.train.pictures.len() + splits.test.pictures.len();
    let mut report =
        |stage: &str, done: usize| match progress(EvalProgress { stage: stage.to_owned(), done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(EvalError::Cancelled),
        };
    let views = Views::new(&subjects, preprocess, options, &splits.train);
    let train = collect(&splits.train, &mut subjects, &views, &mut |done| report("embedding", done))?;
    let seen = splits.train.pictures.len();
    let test = collect(&splits.test, &mut subjects, &views, &mut |done| report("embedding", seen + done))?;
    let mut table = EvalTable {
        dataset: dataset_name(splits),
        classes: splits.train.classes.clone(),
        train_pictures: train.labels.len(),
        test_pictures: test.labels.len(),
        skipped: train.skipped + test.skipped + splits.train.skipped.len() + splits.test.skipped.len(),
        split: splits.origin.clone(),
        k: options.k,
        temperature: options.temperature,
        rows: Vec::new(),
        representations: Vec::new(),
        against: options.against.clone(),
        comparisons: Vec::new(),
        answer: None,
        measured: subjects.iter().find(|s| !s.baseline).and_then(|s| s.measured),
        command: options.command.clone(),
        machine: machine(),
        seconds: 0.0,
    };
    let (train_labels, test_labels) = (train.labels, test.labels);
    for (subject, (train, test)) in subjects.iter().zip(train.features.into_iter().zip(test.features)) {
        report(&format!("measuring {}", subject.name), total)?;
        let s = spread(&train, options.spread_rows)?;
        table.representations.push(Representation {
            subject: subject.name.clone(),
            dim: train.dim(),
            std: s.std,
            effective_rank: s.effective_rank,
        });
        let mut judge = Judge {
            table: &mut table,
            name: &subject.name,
            baseline: subject.baseline,
            options,
            train_labels: &train_labels,
            test_labels: &test_labels,
        };
        judge.nearest(&train, &test)?;
        judge.linear(train, test)?;
    }
    if options.pixels {
        report("measuring raw pixels", total)?;
        let mut judge = Judge {
            table: &mut table,
            name: RAW_PIXELS,
            baseline: true,
            options,
            train_labels: &train_labels,
            test_labels: &test_labels,
        };
        judge.nearest_pixels(&train.pixels, &test.pixels)?;
        judge.linear(train.pixels, test.pixels)?;
    }
    if let Some(side) = views.hog_side() {
        let name = format!("{HOG} at {side} px");
        report(&format!("measuring {name}"), total)?;
        let mut judge = Judge {
            table: &mut table,
            name: &name,
            baseline: true,
            options,
            train_labels: &train_labels,
            test_labels: &test_labels,
        };
        judge.nearest(&train.hog, &test.hog)?;
        judge.linear(train.hog, test.hog)?;
    }
    // Stable: baselines move behind, each group keeps its order.
    table.rows.sort_by_key(|r| r.baseline);
    table.comparisons = comparisons(&table);
    table.answer = answer(&table);
    table.seconds = started.elapsed().as_secs_f64();
    Ok(table)
}

/// The folder's own name; the path of a machine says nothing to others.
fn dataset_name(splits: &LabelledSplits) -> String {
    let root = match splits.origin {
        crate::data::SplitOrigin::Folders { .. } => splits.train.root.parent().unwrap_or(&splits.train.root),
        crate::data::SplitOrigin::Seeded { .. } => &splits.train.root,
    };
    root.file_name().map_or_else(|| root.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// Adds one subject's figures to the table.
struct Judge<'a> {
    table: &'a mut EvalTable,
    name: &'a str,
    baseline: bool,
    options: &'a EvalOptions,
    train_labels: &'a [usize],
    test_labels: &'a [usize],
}

impl Judge<'_> {
    fn add(&mut self, metric: Metric, predictions: &[usize], note: Option<String>) {
        let classes = &self.table.classes;
        let row = EvalRow::from_predictions(
            self.name,
            self.baseline,
            metric,
            predictions,
            self.test_labels,
            classes,
        );
        self.table.rows.push(EvalRow { note, ..row });
    }

    fn nearest(&mut self, train: &Features, test: &Features) -> Result<(), EvalError> {
        let found = neighbours(train, test, self.options.k)?;
        let rule = Vote::Weighted { temperature: self.options.temperature };
        let predictions = vote(&found, self.train_labels, self.table.classes.len(), rule);
        self.add(Metric::KnnTop1, &predictions, None);
        Ok(())
    }

    fn nearest_pixels(&mut self, train: &Features, test: &Features) -> Result<(), EvalError> {
        let both = [Similarity::cosine(train, test), Similarity::centred_cosine(train, test)];
        let mut found = neighbours_by(train, test, self.options.k, &both)?.into_iter();
        let (plain, centred) = (found.next().unwrap_or_default(), found.next().unwrap_or_default());
        let weighted = Vote::Weighted { temperature: self.options.temperature };
        for (metric, found, rule) in [
            (Metric::KnnTop1, &plain, weighted),
            (Metric::KnnMajorityTop1, &plain, Vote::Majority),
            (Metric::KnnCentredTop1, &centred, Vote::Majority),
        ] {
            let predictions = vote(found, self.train_labels, self.table.classes.len(), rule);
            self.add(metric, &predictions, None);
        }
        Ok(())
    }

    fn few(&mut self, train: &Features, test: &Features) -> Result<(), EvalError> {
        let Some(few) = &self.options.few else { return Ok(()) };
        for &share in &few.shares {
            let metric = if share > 0.05 { Metric::LinearTenthTop1 } else { Metric::LinearHundredthTop1 };
            let classes = self.table.classes.len();
            let found = few_label_probe(train, self.train_labels, test, classes, share, few)?;
            let row = EvalRow::from_subsets(self.name, self.baseline, metric, &found, self.test_labels);
            self.table.rows.push(row);
        }
        Ok(())
    }

    fn linear(&mut self, train: Features, test: Features) -> Result<(), EvalError> {
        if let Some(probe) = &self.options.probe {
            self.few(&train, &test)?;
            let found = linear_probe(train, self.train_labels, test, self.table.classes.len(), probe)?;
            let limit = if found.converged { "" } else { ", stopped at its iteration limit" };
            let note = format!("weight decay {}{limit}", found.weight_decay);
            self.add(Metric::LinearTop1, &found.predictions, Some(note));
            // The most labels first.
            let own = self.table.rows.iter().rposition(|r| r.subject != self.name).map_or(0, |i| i + 1);
            self.table.rows[own..].sort_by_key(|r| !r.metric.is_nearest() && r.metric != Metric::LinearTop1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::scan_splits;
    use latentd_model::{Embedding, Filter, Pixels};

    /// Two classes of pictures, reddish and bluish, and one broken file.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (class, tone) in [("red", [200, 30]), ("blue", [30, 200])] {
            std::fs::create_dir(dir.path().join(class)).unwrap();
            for i in 0..30u8 {
                let pixel =
                    |x: u32, y: u32| image::Rgb([tone[0] + i % 7, (x * 4 + y) as u8, tone[1] - i % 5]);
                let picture = image::RgbImage::from_fn(40, 24, pixel);
                picture.save(dir.path().join(class).join(format!("{i:02}.png"))).unwrap();
            }
        }
        std::fs::write(dir.path().join("red/broken.jpg"), b"\xff\xd8\xff nonsense").unwrap();
        dir
    }

    fn mean_colour(pictures: &[Pixels]) -> Result<Vec<Embedding>, crate::eval::EmbedError> {
        let mean = |p: &Pixels| {
            assert_eq!((p.height(), p.width()), (16, 16));
            let channel =
                |c: usize| p.as_bytes().iter().skip(c).step_by(3).map(|&v| f32::from(v)).sum::<f32>();
            Ok(Embedding::from_unnormalised(vec![channel(0), channel(1), channel(2)])?)
        };
        pictures.iter().map(mean).collect()
    }

    #[test]
    fn every_subject_and_the_pixels_get_their_rows_from_one_run() {
        let dir = folder();
        let splits = scan_splits(dir.path(), 1).unwrap();
        let preprocess = Preprocess::squash(16, 16, Filter::Bilinear);
        let subjects = vec![
            Subject::baseline("constant", |p: &[Pixels]| {
                Ok(p.iter().map(|_| Embedding::from_unnormalised(vec![1.0, 1.0]).unwrap()).collect())
            }),
            Subject::new("mean colour", mean_colour),
        ];
        let mut stages = Vec::new();
        let options = EvalOptions { command: "test".to_owned(), ..EvalOptions::default() };
        let table = evaluate(subjects, &splits, &preprocess, &options, &mut |p| {
            stages.push(p.stage);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((table.train_pictures, table.test_pictures, table.skipped), (48, 12, 1), "{table}");
        assert_eq!(table.value("mean colour", Metric::KnnTop1), Some(1.0));
        assert_eq!(table.value("mean colour", Metric::LinearTop1), Some(1.0));
        assert_eq!(table.value("constant", Metric::KnnTop1), Some(0.5));
        assert_eq!(table.value(RAW_PIXELS, Metric::KnnTop1), Some(1.0));
        assert_eq!(table.subjects(), ["mean colour", "constant", RAW_PIXELS, "HOG at 32 px"]);
        let metrics: Vec<_> = table.rows.iter().take(4).map(|r| r.metric).collect();
        assert_eq!(metrics, Metric::COMPARED);
        assert!(table.rows[3].subsets.as_ref().is_some_and(|s| s.count == 5 && s.labels == 2), "{table}");
        let against = |other: &str| table.comparisons.iter().find(|c| c.other == other).unwrap();
        assert_eq!((against("constant").difference, against("constant").sign()), (0.5, 1));
        assert_eq!(against(RAW_PIXELS).interval, [0.0, 0.0]);
        let answer = table.answer.as_ref().unwrap();
        assert_eq!(answer.helped, crate::eval::Helped::No, "{}", answer.text);
        assert!(table.representations[0].std < 1e-3, "one vector for all is collapse");
        assert!(stages.contains(&"measuring raw pixels".to_owned()), "{stages:?}");
    }

    #[test]
    fn stops_on_request() {
        let dir = folder();
        let splits = scan_splits(dir.path(), 1).unwrap();
        let preprocess = Preprocess::squash(16, 16, Filter::Bilinear);
        let stopped = evaluate(Vec::new(), &splits, &preprocess, &EvalOptions::default(), &mut |_| {
            ControlFlow::Break(())
        });
        assert!(matches!(stopped, Err(EvalError::Cancelled)));
    }
}
