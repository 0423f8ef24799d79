//! `latentd-trainer train DIR`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::progress::TrainProgress;
use super::subject::TrainedRun;
use super::{STOP, command_line, pictures};
use crate::checkpoint::Checkpoint;
use crate::config::RunConfig;
use crate::data::{BuildOptions, PictureCache};
use crate::device::{Compute, Place};
use crate::nn::config::Arch;
use crate::nn::kernels::precision::Precision;
use crate::run::{RunDir, RunInfo, now};
use crate::train::{Control, Ended, first_checkpoint, train};

/// Train an encoder on a folder of pictures.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of pictures, nested or flat; sub-folders' names are not used.
    pictures: PathBuf,
    /// Folder for the run: checkpoints, metrics, configuration.
    #[arg(long, short, default_value = "runs/byol")]
    out: PathBuf,
    /// Configuration to start from (TOML); the flags below override it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Start from the networks of a run or a checkpoint of the same shape, instead of random ones.
    #[arg(long)]
    init: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    machine: Machine,
}

/// Values that override the configuration file.
#[derive(Debug, clap::Args)]
pub struct Overrides {
    /// Passes over the pictures.
    #[arg(long)]
    epochs: Option<usize>,
    /// Pictures in a step.
    #[arg(long)]
    batch: Option<usize>,
    /// Parts that a step's batch is cut into to need less memory.
    #[arg(long)]
    accumulate: Option<usize>,
    /// Height and width of a view in pixels.
    #[arg(long)]
    image_size: Option<usize>,
    /// Which ResNet.
    #[arg(long)]
    arch: Option<Arch>,
    /// Channel multiplier of the ResNet.
    #[arg(long)]
    width: Option<f64>,
    /// Learning rate for a batch of 256.
    #[arg(long)]
    base_learning_rate: Option<f64>,
    /// Epochs of linear warm-up.
    #[arg(long)]
    warmup_epochs: Option<f64>,
    /// τ at the first step.
    #[arg(long)]
    tau_base: Option<f64>,
    /// Features of the hidden layers of projector and predictor.
    #[arg(long)]
    hidden: Option<usize>,
    /// Features of projections.
    #[arg(long)]
    projection: Option<usize>,
    /// Leaves the predictor out: with --tau-base 0 this collapses, for seeing that it is noticed.
    #[arg(long)]
    no_predictor: bool,
    /// How exactly convolutions and linear layers multiply (PyTorch's float32 matmul precision).
    #[arg(long)]
    precision: Option<Precision>,
    /// Everything random follows from it.
    #[arg(long)]
    seed: Option<u64>,
}

/// Settings of this machine, which do not change what is learnt.
#[derive(Debug, clap::Args)]
pub struct Machine {
    /// Minutes between checkpoints.
    #[arg(long, default_value_t = 5.0)]
    checkpoint_minutes: f64,
    /// Memory for decoded pictures in MiB; above it they lie in a temporary file.
    #[arg(long, default_value_t = 4096)]
    cache_mib: u64,
    /// Folder of that temporary file; by default the system's.
    #[arg(long)]
    spill_dir: Option<PathBuf>,
    /// Threads that render views; by default what the machine offers.
    #[arg(long, default_value_t = 0)]
    view_threads: usize,
    #[command(flatten)]
    compute: Compute,
}

impl Overrides {
    fn apply(&self, config: &mut RunConfig) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                *to = value.clone();
            }
        }
        set(&mut config.epochs, &self.epochs);
        set(&mut config.batch, &self.batch);
        set(&mut config.accumulate, &self.accumulate);
        config.heads.predictor &= !self.no_predictor;
        set(&mut config.image_size, &self.image_size);
        set(&mut config.arch, &self.arch);
        set(&mut config.width, &self.width);
        set(&mut config.base_learning_rate, &self.base_learning_rate);
        set(&mut config.warmup_epochs, &self.warmup_epochs);
        set(&mut config.tau_base, &self.tau_base);
        set(&mut config.heads.hidden, &self.hidden);
        set(&mut config.heads.projection, &self.projection);
        set(&mut config.precision, &self.precision);
        set(&mut config.seed, &self.seed);
    }
}

impl Machine {
    /// Where to compute; a device that was asked for and is not there is refused.
    pub fn place(&self) -> anyhow::Result<Place> {
        Ok(self.compute.place()?)
    }

    /// How the pictures are kept.
    pub fn build_options(&self) -> BuildOptions {
        BuildOptions {
            memory_budget_bytes: self.cache_mib << 20,
            spill_dir: self.spill_dir.clone(),
            ..BuildOptions::default()
        }
    }
}

impl Args {
    /// Reads the pictures and trains.
    pub fn run(self) -> anyhow::Result<()> {
        let mut config = match &self.config {
            Some(path) => RunConfig::read(path)?,
            None => RunConfig::default(),
        };
        self.overrides.apply(&mut config);
        // A short run with the default warm-up would warm up to its end.
        config.warmup_epochs = config.warmup_epochs.min(config.epochs as f64);
        config.validate()?;
        anyhow::ensure!(
            !self.out.join("run.json").exists(),
            "{0} holds a run already: go on with `latentd-trainer resume {0}`, or choose another --out",
            self.out.display()
        );
        let place = self.machine.place()?;
        let (cache, skipped) =
            pictures::load(&self.pictures, config.shortest_edge(), &self.machine.build_options())?;
        anyhow::ensure!(
            cache.len() >= config.batch,
            "{} pictures are fewer than one batch of {}: use a smaller --batch or more pictures",
            cache.len(),
            config.batch
        );
        let init = self.init.as_deref().map(TrainedRun::open).transpose()?;
        let start = first_checkpoint(&config, &cache, init.as_ref().map(|run| &run.checkpoint))
            .with_context(|| {
                self.init.as_ref().map_or(String::new(), |p| format!("starting from {}", p.display()))
            })?;
        let mut info = self.info(&cache);
        info.set_skipped(skipped.into_iter().map(|s| (s.path, s.reason)));
        let run = RunDir::create(&self.out, &info, &config)
            .with_context(|| format!("making the run's folder {}", self.out.display()))?;
        start.write(&run.checkpoints())?;
        tracing::info!(
            "{} width {} at {} px, {} steps of {} pictures, run in {}",
            config.arch.as_str(),
            config.width,
            config.image_size,
            start.header.total_steps,
            config.batch,
            self.out.display()
        );
        go(&run, start, cache, &self.machine, place)
    }

    fn info(&self, cache: &PictureCache) -> RunInfo {
        RunInfo {
            trainer: env!("CARGO_PKG_VERSION").into(),
            command: command_line(),
            pictures_root: std::path::absolute(&self.pictures).unwrap_or_else(|_| self.pictures.clone()),
            pictures: cache.len(),
            fingerprint: cache.fingerprint().into(),
            skipped: 0,
            skipped_files: Vec::new(),
            started: now(),
        }
    }
}

/// Trains on from a checkpoint, and says how it ended.
pub fn go(
    run: &RunDir,
    start: Checkpoint,
    cache: std::sync::Arc<PictureCache>,
    machine: &Machine,
    place: Place,
) -> anyhow::Result<()> {
    let minutes = machine.checkpoint_minutes;
    anyhow::ensure!((0.0..=1e6).contains(&minutes), "--checkpoint-minutes {minutes} is outside 0 to 1000000");
    let control = Control {
        stop: &STOP,
        checkpoint_every: Duration::from_secs_f64(60.0 * minutes),
        view_threads: machine.view_threads,
        place,
    };
    let mut progress = TrainProgress::new(start.header.step, start.header.total_steps);
    let at = |path: &Path| path.display().to_string();
    match train(run, start, cache, &control, &mut progress)? {
        Ended::Finished => tracing::info!(
            "done; evaluate with `latentd-trainer eval {0} --labelled DIR`, export with `latentd-trainer export {0}`",
            at(run.path())
        ),
        Ended::Stopped => {
            tracing::info!("stopped; go on with `latentd-trainer resume {}`", at(run.path()));
        }
    }
    Ok(())
}
