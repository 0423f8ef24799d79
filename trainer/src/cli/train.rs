//! `latentd-trainer train DIR`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::machine::Machine;
use super::overrides::Overrides;
use super::progress::TrainProgress;
use super::{command_line, pictures};
use crate::checkpoint::Checkpoint;
use crate::config::RunConfig;
use crate::data::{PictureCache, scan};
use crate::device::Place;
use crate::init::Init;
use crate::memory;
use crate::plan::{self, Budget, Fixed, Need, Plan};
use crate::preset::Preset;
use crate::run::{RunDir, RunInfo, now};
use crate::train::{Ended, first_checkpoint, train};

/// Pictures that a plan is made from.
const PLAN_PICTURES: usize = 512;

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
    /// Configuration that comes with the program to start from.
    #[arg(long, value_enum, conflicts_with = "config")]
    preset: Option<Preset>,
    /// Hours to train: steps are tried, and epochs, batch, learning rate, warm-up and tau chosen for them. With
    /// --epochs instead, the same for so many epochs.
    #[arg(long, conflicts_with = "epochs")]
    hours: Option<f64>,
    /// Only prints the plan, from a sample of the pictures.
    #[arg(long)]
    plan_only: bool,
    /// Prints the plan as JSON.
    #[arg(long, requires = "plan_only")]
    json: bool,
    /// Start from trained networks of the same shape instead of random ones: a run, a checkpoint, an artefact, or
    /// torchvision's ResNet weights as .safetensors.
    #[arg(long)]
    init: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    machine: Machine,
}

impl Args {
    /// A run that goes on from what there is, with new pictures.
    pub fn going_on(
        pictures: &Path,
        out: PathBuf,
        init: &Path,
        hours: Option<f64>,
        overrides: Overrides,
        machine: Machine,
    ) -> Self {
        let (pictures, init) = (pictures.to_owned(), Some(init.to_owned()));
        let (config, preset, plan_only, json) = (None, None, false, false);
        Self { pictures, out, config, preset, hours, plan_only, json, init, overrides, machine }
    }

    /// Reads the pictures, plans and trains.
    pub fn run(self) -> anyhow::Result<()> {
        if let Some(hours) = self.hours {
            anyhow::ensure!(hours > 0.0 && hours <= 1e5, "--hours {hours} is outside 0 to 100000");
        }
        let init = self.init.as_deref().map(Init::open).transpose()?;
        let mut config = self.configuration(init.as_ref())?;
        config.validate()?;
        if self.plan_only {
            return self.show_plan(config);
        }
        anyhow::ensure!(
            !self.out.join("run.json").exists(),
            "{0} holds a run already: go on with `latentd-trainer resume {0}`, or choose another --out",
            self.out.display()
        );
        writable(&self.out)?;
        let place = self.machine.place()?;
        let (cache, skipped) =
            pictures::load(&self.pictures, config.shortest_edge(), &self.machine.build_options())?;
        let (plan, _) = self.plan(&mut config, cache.clone(), cache.len(), 0, place)?;
        for line in plan.to_string().lines() {
            tracing::info!("{line}");
        }
        anyhow::ensure!(
            cache.len() >= config.batch,
            "{} pictures are fewer than one batch of {}: use a smaller --batch or more pictures",
            cache.len(),
            config.batch
        );
        let init = init.map(|init| init.networks(&config)).transpose()?;
        let start = first_checkpoint(&config, &cache, init)?;
        let mut info = self.info(&cache);
        info.set_skipped(skipped.into_iter().map(|s| (s.path, s.reason)));
        let run = RunDir::create(&self.out, &info, &config)
            .with_context(|| format!("making the run's folder {}", self.out.display()))?;
        start.write(&run.checkpoints())?;
        tracing::info!("the run is in {}", self.out.display());
        go(&run, start, cache, &self.machine, place)
    }

    /// The configuration before any planning.
    fn configuration(&self, init: Option<&Init>) -> anyhow::Result<RunConfig> {
        let mut config = match (&self.config, self.preset, init.and_then(Init::config)) {
            (Some(path), ..) => RunConfig::read(path)?,
            (None, Some(preset), _) => preset.config()?,
            // The shape that the weights have; how to train goes on from there.
            (None, None, Some(trained)) => RunConfig {
                arch: trained.arch,
                width: trained.width,
                image_size: trained.image_size,
                heads: trained.heads,
                views: trained.views.clone(),
                precision: trained.precision,
                ..RunConfig::default()
            },
            (None, None, None) => RunConfig::default(),
        };
        self.overrides.apply(&mut config);
        // A short run with the default warm-up would warm up to its end.
        config.warmup_epochs = config.warmup_epochs.min(config.epochs as f64);
        Ok(config)
    }

    /// Tries steps, chooses what the budget and the memory ask for, and says what memory that needs.
    ///
    /// `later` bytes are not held yet and will be.
    fn plan(
        &self,
        config: &mut RunConfig,
        cache: Arc<PictureCache>,
        pictures: usize,
        later: u64,
        place: Place,
    ) -> anyhow::Result<(Plan, Option<Memory>)> {
        // A file says what it wants; the rest is asked for by its budget.
        let asked = self.hours.is_some() || (self.overrides.fixed().epochs && self.config.is_none());
        let all = Fixed {
            epochs: true,
            batch: true,
            base_learning_rate: true,
            warmup_epochs: true,
            tau_base: true,
        };
        let fixed = if asked { self.overrides.fixed() } else { all };
        let bench = self.machine.bench(config, cache, place);
        let bound = self.machine.memory().map(|bound| bound.saturating_sub(later));
        let trial = bench.measure(bound).context("trying a step")?;
        // Without hours the number of epochs is the budget.
        let fixed = Fixed { epochs: fixed.epochs || self.hours.is_none(), ..fixed };
        let budget = Budget { hours: self.hours, fixed };
        let mut plan = plan::plan(config, pictures, trial.images_per_s, budget)?;
        let mut share = None;
        if let (Some(need), Some(bound)) = (Need::of(&trial, &plan.config), bound) {
            let (before, part) = (plan.config.accumulate, plan.config.micro_batch());
            let needed = plan::fit(&mut plan.config, need, bound, &bench)?;
            share = Some(Memory { needed_mib: (needed + later) >> 20, allowed_mib: (bound + later) >> 20 });
            if plan.config.accumulate != before {
                plan.reasons.push(format!(
                    "accumulate {}: {part} pictures at a time do not fit into {} MiB, {} do; each part has batch-norm \
                     statistics of its own",
                    plan.config.accumulate,
                    (bound + later) >> 20,
                    plan.config.micro_batch()
                ));
            }
        }
        plan.config.validate()?;
        *config = plan.config.clone();
        Ok((plan, share))
    }

    /// Prints what a run would do, from a sample of the pictures.
    fn show_plan(&self, mut config: RunConfig) -> anyhow::Result<()> {
        let found = scan(&self.pictures)?;
        let count = found.pictures.len();
        let (sample, bytes) = pictures::sample_of(found, config.shortest_edge(), PLAN_PICTURES)?;
        // What the whole cache will hold more than the sample.
        let later = (bytes * (count / sample.len().max(1)) as u64).min(self.machine.cache_bytes());
        let place = self.machine.place()?;
        let (plan, memory) = self.plan(&mut config, Arc::new(sample), count, later, place)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&Printed { plan: &plan, memory })?);
            return Ok(());
        }
        print!("{plan}");
        if let Some(Memory { needed_mib, allowed_mib }) = memory {
            println!("  memory: about {needed_mib} MiB of the {allowed_mib} MiB that it may take");
        }
        Ok(())
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

/// A plan as JSON.
#[derive(serde::Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    memory: Option<Memory>,
}

/// What a run takes of the memory that it may take.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Memory {
    needed_mib: u64,
    allowed_mib: u64,
}

/// Says at once, and not after an hour of decoding, that a folder cannot be written.
fn writable(out: &Path) -> anyhow::Result<()> {
    let probe = || {
        std::fs::create_dir_all(out)?;
        let file = out.join(".writable");
        std::fs::write(&file, b"")?;
        std::fs::remove_file(&file)
    };
    probe().with_context(|| format!("{} cannot be written: choose another --out", out.display()))
}

/// Trains on from a checkpoint, and says how it ended.
pub fn go(
    run: &RunDir,
    start: Checkpoint,
    cache: Arc<PictureCache>,
    machine: &Machine,
    place: Place,
) -> anyhow::Result<()> {
    let control = machine.control(place)?;
    let patience = start.header.config.patience;
    let mut progress = TrainProgress::new(start.header.step, start.header.total_steps);
    let at = |path: &Path| path.display().to_string();
    memory::reset_peak();
    let ended = train(run, start, cache, &control, &mut progress)?;
    if let Some(bytes) = memory::peak() {
        tracing::info!("peak memory {} MiB", bytes >> 20);
    }
    match ended {
        Ended::Finished => tracing::info!(
            "done; evaluate with `latentd-trainer eval {0} --labelled DIR`, export with `latentd-trainer export {0}`",
            at(run.path())
        ),
        Ended::Plateau => tracing::info!(
            "stopped: nothing got better for {} epochs; the best checkpoint is {}",
            patience,
            at(&run.checkpoints().join("best.safetensors"))
        ),
        Ended::Stopped => {
            tracing::info!("stopped; go on with `latentd-trainer resume {}`", at(run.path()));
        }
    }
    Ok(())
}
