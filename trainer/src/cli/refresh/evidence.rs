//! New against current on the same pictures: labels where there are some, views and neighbours in any case.

use std::ops::ControlFlow;
use std::path::PathBuf;

use latentd_model::{Embedding, Pixels, Preprocess};

use super::current::Current;
use crate::cli::pictures::sample;
use crate::cli::readout::ReadoutOptions;
use crate::cli::subject::{Evaluated, TrainedRun};
use crate::cli::{STOP, command_line, progress};
use crate::data::{BuildOptions, PictureCache, scan, scan_splits};
use crate::eval::compare::bootstrap;
use crate::eval::{EvalError, EvalOptions, EvalTable, Features, Metric, Subject, evaluate};
use crate::monitor::Watched;
use crate::refresh::gate::{Evidence, Figure};
use crate::refresh::{ViewsOf, overlap};

/// Pictures whose neighbours are compared.
const NEIGHBOUR_PICTURES: usize = 2000;
/// Pictures embedded at a time.
const BATCH: usize = 256;

/// Measures both, prints what was found, and leaves the table of figures with the run.
pub fn gather(run: TrainedRun, current: &Current, labelled: &Option<PathBuf>) -> anyhow::Result<Evidence> {
    let config = run.checkpoint.header.config.clone();
    let (dir, root) = (run.dir.clone(), run.info.pictures_root.clone());
    let (watched, held_out) = watched(&run)?;
    let new = Evaluated::Run(Box::new(run));
    let readout = &current.readout;
    let mut sides = [Side::new(&new, readout)?, Side::new(&current.evaluated, readout)?];

    let views = ViewsOf::render(&watched, &config.views, config.image_size, config.seed);
    let [ours, theirs] = sides.each_mut().map(|s| views.measure(&s.preprocess, &mut |p| s.subject.embed(p)));
    let (ours, theirs) = (ours?, theirs?);
    let shared = sample(&root, config.shortest_edge(), NEIGHBOUR_PICTURES)?;
    let [a, b] = sides.each_mut().map(|s| s.features(&shared));
    let overlap = overlap(&a?, &b?)?;
    let kind = if held_out { "held-out" } else { "trained" };
    let both = |name: &str, a: f64, b: f64| println!("{name:<32} new {a:.4}  current {b:.4}");
    println!("label-free on {} {kind} pictures", watched.len());
    both("  view retrieval", ours.retrieval(), theirs.retrieval());
    both("  alignment (less is better)", ours.alignment, theirs.alignment);
    both("  representation std", ours.std, theirs.std);
    both("  effective rank", ours.effective_rank, theirs.effective_rank);
    println!("overlap of 10 nearest neighbours {overlap:.3} on {} pictures", shared.len());

    let decisive = match labelled {
        Some(labelled) => {
            let table = labels(sides, labelled, current)?;
            let figure = knn(&table)?;
            both(&figure.name, figure.new, figure.current);
            dir.write_json("eval.json", &table)?;
            figure
        }
        None => {
            let differences: Vec<f32> =
                ours.retrieved.iter().zip(&theirs.retrieved).map(|(a, b)| a - b).collect();
            Figure {
                name: format!("view retrieval on {} {kind} pictures", watched.len()),
                new: ours.retrieval(),
                current: theirs.retrieval(),
                interval: bootstrap(&differences, 0),
            }
        }
    };
    Ok(Evidence {
        decisive,
        std: [ours.std, theirs.std],
        effective_rank: [ours.effective_rank, theirs.effective_rank],
        overlap,
    })
}

/// An encoder with what it wants done to a picture first.
struct Side {
    subject: Subject<'static>,
    preprocess: Preprocess,
}

impl Side {
    fn new(evaluated: &Evaluated, readout: &ReadoutOptions) -> anyhow::Result<Self> {
        Ok(Self { subject: evaluated.subject(readout)?, preprocess: evaluated.preprocess() })
    }

    fn features(&mut self, cache: &PictureCache) -> Result<Features, EvalError> {
        let mut all: Vec<Embedding> = Vec::with_capacity(cache.len());
        let shape = |e: &dyn std::fmt::Display| EvalError::Shape(e.to_string());
        for start in (0..cache.len()).step_by(BATCH) {
            let one = |i: usize| {
                let p = cache.get(i);
                let pixels = Pixels::new(p.height as u32, p.width as u32, p.rgb.to_vec());
                self.preprocess.apply(&pixels.map_err(|e| shape(&e))?).map_err(|e| shape(&e))
            };
            let batch: Vec<Pixels> =
                (start..(start + BATCH).min(cache.len())).map(one).collect::<Result<_, _>>()?;
            all.extend(self.subject.embed(&batch)?);
        }
        Features::from_embeddings(&all)
    }
}

/// The pictures that the run watched, and whether it never trained on them.
fn watched(run: &TrainedRun) -> anyhow::Result<(PictureCache, bool)> {
    let header = &run.checkpoint.header;
    let mut found = scan(&run.info.pictures_root)?;
    let skipped: std::collections::BTreeSet<&PathBuf> =
        run.info.skipped_files.iter().map(|(path, _)| path).collect();
    found.pictures.retain(|p| !skipped.contains(p));
    // Without the names of all skipped files, places in the run's order are not known.
    let known = found.pictures.len() == run.info.pictures;
    let chosen = Watched::of(found.pictures.len(), header.held_out);
    found.pictures = chosen.pictures.iter().map(|&i| found.pictures[i as usize].clone()).collect();
    let go_on = &mut |_| ControlFlow::Continue(());
    let edge = header.config.shortest_edge();
    let (cache, _) = PictureCache::build(&found, edge, &BuildOptions::default(), go_on)?;
    Ok((cache, known && chosen.held_out))
}

/// kNN of both on labelled pictures.
fn labels(sides: [Side; 2], labelled: &std::path::Path, current: &Current) -> anyhow::Result<EvalTable> {
    let [new, old] = sides;
    let splits = scan_splits(labelled, 1)?;
    let options = EvalOptions {
        probe: None,
        few: None,
        pixels: false,
        hog: false,
        against: Some(current.label.clone()),
        command: command_line(),
        ..EvalOptions::default()
    };
    let bar = progress::bar((splits.train.pictures.len() + splits.test.pictures.len()) as u64, "embedding");
    let subjects = vec![new.subject, old.subject.as_rival(current.label.clone(), old.preprocess)];
    let table = evaluate(subjects, &splits, &new.preprocess, &options, &mut |so_far| {
        bar.set_position(so_far.done as u64);
        if STOP.load(std::sync::atomic::Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    bar.finish_and_clear();
    Ok(table)
}

fn knn(table: &EvalTable) -> anyhow::Result<Figure> {
    let found = table.comparisons.iter().find(|c| c.metric == Metric::KnnTop1);
    let found = found.ok_or_else(|| anyhow::anyhow!("kNN was not measured"))?;
    let value = |subject: &str| table.value(subject, Metric::KnnTop1).unwrap_or(f64::NAN);
    Ok(Figure {
        name: format!("kNN on {} ({} test pictures)", table.dataset, table.test_pictures),
        new: value(&found.subject),
        current: value(&found.other),
        interval: found.interval,
    })
}
