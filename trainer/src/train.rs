//! The training loop: batches in, checkpoints and metrics out.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::checkpoint::{Checkpoint, CheckpointError, Header};
use crate::config::RunConfig;
use crate::data::{DataError, Loader, LoaderConfig, PictureCache};
use crate::device::Place;
use crate::eval::EvalError;
use crate::init::Networks;
use crate::method::byol::{Byol, StepReport, StepSettings, random_weights};
use crate::method::learner::{self, Learner, LearnerError, Start};
use crate::method::part::PartError;
use crate::monitor::{Collapse, Judge, Watched, Watcher};
use crate::optim::schedule;
use crate::report::MetricRow;
use crate::run::{MetricsLog, RunDir, RunError};

/// Steps that one row of metrics averages.
const ROW_STEPS: u64 = 10;
/// Finished batches that wait for the step.
pub(crate) const AHEAD: usize = 2;

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
    /// The encoder gives all pictures nearly the same vector.
    #[error(
        "the encoder has collapsed at step {step}: {sign}; {cause}; the last checkpoint is from step {saved}"
    )]
    Collapsed {
        /// What is seen.
        sign: String,
        /// The likely cause, and what to do.
        cause: String,
        /// The step.
        step: u64,
        /// Step of the last checkpoint.
        saved: u64,
    },
    /// Vectors that cannot be measured.
    #[error("looking at the watched pictures: {0}")]
    Watch(#[from] EvalError),
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
    /// Nothing got better for as long as the configuration lets a run wait.
    Plateau,
}

/// What the loop shows while it runs.
pub trait Progress {
    /// After every step.
    fn step(&mut self, done: u64, total: u64, row: &MetricRow);

    /// After every look at the watched pictures.
    fn verdict(&mut self, row: &MetricRow);
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
    /// A GPU times its ways to do each convolution first.
    pub tune: bool,
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
    let mut learner = learner::open(control.place, control.tune, &start)?;
    learner.restore_velocity(&arrays.velocity)?;
    let loader =
        Loader::new(cache.clone(), config.views.clone(), loader_config(&header, control.view_threads))?;
    let metrics = run.metrics_from(header.step)?;
    let watched = Watched::of(cache.len(), header.held_out);
    let session = Session {
        checkpoints: &run.checkpoints(),
        saved: header.step,
        every: watched.interval(cache.len() - header.held_out, loader.steps_per_epoch()),
        judge: Judge::new(config, cache.len() - header.held_out, watched.pictures.len(), &run.metrics()?),
        watcher: Watcher::new(
            cache,
            watched,
            config.views.clone(),
            &header.encoder,
            config.seed,
            2 * config.micro_batch(),
        ),
        header,
        learner,
        loader,
        metrics,
    };
    session.run(control, progress)
}

fn loader_config(header: &Header, threads: usize) -> LoaderConfig {
    let config = &header.config;
    LoaderConfig {
        image_size: config.image_size,
        batch: config.batch,
        held_out: header.held_out,
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
/// With `init` it starts from those networks and their normalisation, with the optimiser at rest.
pub fn first_checkpoint(
    config: &RunConfig,
    cache: &PictureCache,
    init: Option<Networks>,
) -> Result<Checkpoint, TrainError> {
    let held_out = Watched::hold_out(cache.len(), config.batch);
    let total = ((cache.len() - held_out) / config.batch * config.epochs) as u64;
    let networks = init.unwrap_or_else(|| {
        let round = |values: [f32; 3]| values.map(|v| (v * 1e4).round() / 1e4);
        let (mean, std) = cache.channel_statistics(10_000);
        let encoder = config.encoder(round(mean), round(std).map(|s| s.max(1e-3)));
        let online = random_weights(&encoder, config.heads, config.seed);
        Networks { encoder, online, target: None }
    });
    let Networks { encoder, online, target } = networks;
    let byol = Byol::new(&encoder, config.heads, config.lars, &online, target.as_ref())?;
    let header = Checkpoint::header(config, &encoder, 0, total, cache.fingerprint(), held_out);
    Ok(Checkpoint { header, arrays: byol.snapshot()? })
}

struct Session<'a> {
    checkpoints: &'a Path,
    saved: u64,
    header: Header,
    learner: Box<dyn Learner>,
    loader: Loader,
    metrics: MetricsLog,
    watcher: Watcher,
    judge: Judge,
    /// Steps from one verdict to the next.
    every: u64,
}

impl Session<'_> {
    fn run(mut self, control: &Control, progress: &mut dyn Progress) -> Result<Ended, TrainError> {
        let (total, per_epoch) = (self.header.total_steps, self.loader.steps_per_epoch());
        let warmup = (self.header.config.warmup_epochs * per_epoch as f64).round() as u64;
        let mut clock = Clock::new();
        let mut means = Means::default();
        if self.header.step == 0 {
            self.look(per_epoch, progress)?;
        }
        while let Some(batch) = self.loader.next_batch()? {
            let step = batch.step;
            let settings = self.settings(step, warmup);
            let mut reports = self.learner.step(&batch.view1, &batch.view2, settings)?;
            self.loader.recycle(batch);
            let last = step + 1 == total;
            let stop = control.stop.load(Ordering::Relaxed);
            let save = stop || last || clock.since_save.elapsed() >= control.checkpoint_every;
            // By the step's number, so that the rows of a resumed run are those of an uninterrupted one.
            let full = (step + 1).is_multiple_of(ROW_STEPS) || last;
            let look = (step + 1).is_multiple_of(self.every) || last;
            if save || full || look {
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
            let plateau = look && self.look(per_epoch, progress)?;
            if save || plateau {
                self.save()?;
                clock.since_save = Instant::now();
            }
            if (stop || plateau) && !last {
                return Ok(if plateau { Ended::Plateau } else { Ended::Stopped });
            }
        }
        Ok(Ended::Finished)
    }

    fn settings(&self, step: u64, warmup: u64) -> StepSettings {
        let (config, total) = (&self.header.config, self.header.total_steps);
        StepSettings {
            learning_rate: schedule::learning_rate(config.learning_rate(), step, warmup, total),
            tau: schedule::tau(config.tau_base, step, total),
            accumulate: config.accumulate,
        }
    }

    /// Looks at the watched pictures: notes the verdict, keeps the best checkpoint, and says whether a plateau is
    /// reached. A collapse is an error.
    fn look(&mut self, per_epoch: u64, progress: &mut dyn Progress) -> Result<bool, TrainError> {
        let learner = &mut self.learner;
        let health = self.watcher.look(|views| learner.encode(views).map_err(TrainError::from))?;
        let step = self.header.step;
        let row = health.row(step, step as f64 / per_epoch.max(1) as f64);
        let outcome = self.judge.hear(step, row.epoch, &health);
        if outcome.best && outcome.collapse.is_none() {
            // Before its row: a run that goes on after a crash knows from the rows which verdict was the best.
            self.checkpoint()?.write_best(self.checkpoints)?;
        }
        self.metrics.push(&row)?;
        progress.verdict(&row);
        match outcome.collapse {
            Some(Collapse { sign, cause }) if self.header.config.ignore_collapse => {
                tracing::warn!("the encoder has collapsed at step {step}: {sign}; {cause}");
                Ok(false)
            }
            Some(Collapse { sign, cause }) => {
                Err(TrainError::Collapsed { sign, cause, step, saved: self.saved })
            }
            None => Ok(outcome.plateau),
        }
    }

    fn checkpoint(&mut self) -> Result<Checkpoint, TrainError> {
        Ok(Checkpoint { header: self.header.clone(), arrays: self.learner.snapshot()? })
    }

    fn save(&mut self) -> Result<(), TrainError> {
        self.checkpoint()?.write(self.checkpoints)?;
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
            ..MetricRow::default()
        }
    }
}
