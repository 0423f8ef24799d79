//! The training loop: batches in, checkpoints and metrics out.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::checkpoint::{Checkpoint, CheckpointError, Header};
use crate::data::{DataError, Loader, LoaderConfig, PictureCache};
use crate::device::Place;
use crate::method::byol::{Byol, StepReport, StepSettings, random_weights};
use crate::method::learner::{self, Learner, LearnerError, Start};
use crate::method::part::PartError;
use crate::optim::schedule;
use crate::report::MetricRow;
use crate::run::{MetricsLog, RunDir, RunError};

/// Steps that one row of metrics averages.
const ROW_STEPS: u64 = 10;
/// Finished batches that wait for the step.
const AHEAD: usize = 2;

/// Why training stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The pictures.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The run's folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The network.
    #[error(transparent)]
    Part(#[from] PartError),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A step, or the device that it runs on.
    #[error(transparent)]
    Learner(#[from] LearnerError),
    /// The loss is no number any more.
    #[error(
        "the loss became {loss} at step {step}: lower base_learning_rate; the last checkpoint is from step {saved}"
    )]
    Diverged {
        /// The loss.
        loss: f64,
        /// The step.
        step: u64,
        /// Step of the last checkpoint.
        saved: u64,
    },
    /// The pictures are not those that the run began with.
    #[error(
        "the pictures changed since the run began (fingerprint {found:.12}, not {expected:.12}): \
         restore the folder, or start a new run"
    )]
    OtherPictures {
        /// The folder's fingerprint.
        found: String,
        /// The run's.
        expected: String,
    },
}

/// Where a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps done.
    Finished,
    /// Stopped on request; `resume` goes on.
    Stopped,
}

/// What the loop shows while it runs.
pub trait Progress {
    /// After every step.
    fn step(&mut self, done: u64, total: u64, row: &MetricRow);
}

/// How a run saves and stops.
pub struct Control<'a> {
    /// Set from outside to stop after the step at hand.
    pub stop: &'a AtomicBool,
    /// Time between checkpoints, which are also written after the last step and on a stop.
    pub checkpoint_every: Duration,
    /// Threads that render views; 0 takes what the machine offers.
    pub view_threads: usize,
    /// Where to compute.
    pub place: Place,
}

/// Trains from a checkpoint of step 0 (or any other) to the end of its schedule.
pub fn train(
    run: &RunDir,
    start: Checkpoint,
    cache: Arc<PictureCache>,
    control: &Control,
    progress: &mut dyn Progress,
) -> Result<Ended, TrainError> {
    let Checkpoint { header, arrays } = start;
    if cache.fingerprint() != header.data {
        let found = cache.fingerprint().to_string();
        return Err(TrainError::OtherPictures { found, expected: header.data });
    }
    let config = &header.config;
    let start = Start {
        encoder: &header.encoder,
        heads: config.heads,
        lars: config.lars,
        online: &arrays.online,
        target: Some(&arrays.target),
    };
    let mut learner = learner::open(control.place, config.precision.into(), &start)?;
    learner.restore_velocity(&arrays.velocity)?;
    let loader = Loader::new(cache, config.views.clone(), loader_config(&header, control.view_threads))?;
    let metrics = run.metrics_from(header.step)?;
    Session { checkpoints: &run.checkpoints(), saved: header.step, header, learner, loader, metrics }
        .run(control, progress)
}

fn loader_config(header: &Header, threads: usize) -> LoaderConfig {
    let config = &header.config;
    LoaderConfig {
        image_size: config.image_size,
        batch: config.batch,
        seed: config.seed,
        epochs: config.epochs,
        threads,
        ahead: AHEAD,
        start_step: header.step,
        mean: header.encoder.mean,
        std: header.encoder.std,
    }
}

/// The checkpoint from which a new run starts.
///
/// With `init` it starts from that checkpoint's networks and normalisation, with the optimiser at rest.
pub fn first_checkpoint(
    config: &crate::config::RunConfig,
    cache: &PictureCache,
    init: Option<&Checkpoint>,
) -> Result<Checkpoint, TrainError> {
    let total = (cache.len() / config.batch * config.epochs) as u64;
    if let Some(Checkpoint { header, arrays }) = init {
        let encoder = config.encoder(header.encoder.mean, header.encoder.std);
        let byol = Byol::new(&encoder, config.heads, config.lars, &arrays.online, Some(&arrays.target))?;
        let header = Checkpoint::header(config, &encoder, 0, total, cache.fingerprint());
        return Ok(Checkpoint { header, arrays: byol.snapshot()? });
    }
    let round = |values: [f32; 3]| values.map(|v| (v * 1e4).round() / 1e4);
    let (mean, std) = cache.channel_statistics(10_000);
    let encoder = config.encoder(round(mean), round(std).map(|s| s.max(1e-3)));
    let online = random_weights(&encoder, config.heads, config.seed);
    let byol = Byol::new(&encoder, config.heads, config.lars, &online, None)?;
    let header = Checkpoint::header(config, &encoder, 0, total, cache.fingerprint());
    Ok(Checkpoint { header, arrays: byol.snapshot()? })
}

struct Session<'a> {
    checkpoints: &'a Path,
    saved: u64,
    header: Header,
    learner: Box<dyn Learner>,
    loader: Loader,
    metrics: MetricsLog,
}

impl Session<'_> {
    fn run(mut self, control: &Control, progress: &mut dyn Progress) -> Result<Ended, TrainError> {
        let (total, per_epoch) = (self.header.total_steps, self.loader.steps_per_epoch());
        let warmup = (self.header.config.warmup_epochs * per_epoch as f64).round() as u64;
        let mut clock = Clock::new();
        let mut means = Means::default();
        while let Some(batch) = self.loader.next_batch()? {
            let step = batch.step;
            let settings = StepSettings {
                learning_rate: schedule::learning_rate(
                    self.header.config.learning_rate(),
                    step,
                    warmup,
                    total,
                ),
                tau: schedule::tau(self.header.config.tau_base, step, total),
                accumulate: self.header.config.accumulate,
            };
            let mut reports = self.learner.step(&batch.view1, &batch.view2, settings)?;
            self.loader.recycle(batch);
            let stop = control.stop.load(Ordering::Relaxed);
            let save = stop || step + 1 == total || clock.since_save.elapsed() >= control.checkpoint_every;
            let full = means.steps + 1 == ROW_STEPS || step + 1 == total;
            if save || full {
                reports.extend(self.learner.finish()?);
            }
            if let Some(report) = reports.iter().find(|report| !report.loss.is_finite()) {
                return Err(TrainError::Diverged { loss: report.loss, step, saved: self.saved });
            }
            self.header.step = step + 1;
            let seconds = clock.lap();
            self.header.seconds += seconds;
            means.add(&reports, seconds);
            let row = means.row(&self.header, settings, per_epoch);
            progress.step(step + 1, total, &row);
            if full {
                self.metrics.push(&row)?;
                means = Means::default();
            }
            if save {
                self.save()?;
                clock.since_save = Instant::now();
            }
            if stop && step + 1 < total {
                return Ok(Ended::Stopped);
            }
        }
        Ok(Ended::Finished)
    }

    fn save(&mut self) -> Result<(), TrainError> {
        let checkpoint = Checkpoint { header: self.header.clone(), arrays: self.learner.snapshot()? };
        checkpoint.write(self.checkpoints)?;
        self.saved = self.header.step;
        Ok(())
    }
}

struct Clock {
    since_lap: Instant,
    since_save: Instant,
}

impl Clock {
    fn new() -> Self {
        Self { since_lap: Instant::now(), since_save: Instant::now() }
    }

    fn lap(&mut self) -> f64 {
        let seconds = self.since_lap.elapsed().as_secs_f64();
        self.since_lap = Instant::now();
        seconds
    }
}

/// Sums over the steps of one row.
#[derive(Default)]
struct Means {
    steps: u64,
    reports: u64,
    loss: f64,
    spread: f64,
    seconds: f64,
}

impl Means {
    fn add(&mut self, reports: &[StepReport], seconds: f64) {
        self.steps += 1;
        self.reports += reports.len() as u64;
        self.loss += reports.iter().map(|r| r.loss).sum::<f64>();
        self.spread += reports.iter().map(|r| r.representation_std).sum::<f64>();
        self.seconds += seconds;
    }

    fn row(&self, header: &Header, settings: StepSettings, per_epoch: u64) -> MetricRow {
        let steps = self.steps as f64;
        let mean = |sum: f64| (self.reports > 0).then(|| sum / self.reports as f64);
        MetricRow {
            kind: "step".into(),
            step: header.step,
            epoch: header.step as f64 / per_epoch.max(1) as f64,
            loss: mean(self.loss),
            lr: Some(settings.learning_rate),
            tau: Some(settings.tau),
            representation_std: mean(self.spread),
            images_per_s: Some(steps * header.config.batch as f64 / self.seconds.max(1e-9)),
        }
    }
}
