//! `latentd-trainer bench`: whole training steps on synthetic views.

use std::time::Instant;

use super::verify;
use crate::config::RunConfig;
use crate::device::{Compute, Place};
use crate::memory;
use crate::method::byol::{HeadConfig, StepSettings, random_weights};
use crate::method::learner::{self, Start};
use crate::nn::clock;
use crate::nn::config::{Arch, EncoderConfig, Norm};
use crate::nn::kernels::precision::Precision;

/// Steps that are not timed: memory and algorithms are chosen in them, and a GPU comes up to speed.
fn warmup_steps(place: Place) -> usize {
    if place == Place::Cpu { 2 } else { 10 }
}

/// Time whole training steps on synthetic views (no decoding, no augmentation).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which ResNet.
    #[arg(long, default_value = "resnet18")]
    arch: Arch,
    /// Channel multiplier of the ResNet.
    #[arg(long, default_value_t = 0.25)]
    width: f64,
    /// Height and width of a view in pixels.
    #[arg(long, default_value_t = 32)]
    image_size: usize,
    /// Pictures in a step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Steps to time, after two (on a GPU ten) that are not.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Features of the hidden layers of projector and predictor.
    #[arg(long, default_value_t = 1024)]
    hidden: usize,
    /// Features of projections.
    #[arg(long, default_value_t = 128)]
    projection: usize,
    #[command(flatten)]
    compute: Compute,
    /// How exactly convolutions and linear layers multiply.
    #[arg(long, default_value = "high")]
    precision: Precision,
    /// What normalises.
    #[arg(long, default_value = "batch")]
    norm: Norm,
    /// Computes a block's inner maps again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Parts that a batch is cut into, whose gradients are added up.
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
    /// Instead of timing, compares a step's results with those of the CPU in f32; fails if they differ
    /// by more than the precision explains.
    #[arg(long)]
    verify: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Times the steps and prints.
    pub fn run(self) -> anyhow::Result<()> {
        let heads = HeadConfig::new(self.hidden, self.projection);
        let config = RunConfig {
            arch: self.arch,
            width: self.width,
            image_size: self.image_size,
            batch: self.batch,
            heads,
            precision: self.precision,
            norm: self.norm,
            recompute: self.recompute,
            accumulate: self.accumulate,
            ..RunConfig::default()
        };
        config.validate()?;
        anyhow::ensure!(self.steps > 0, "--steps must be at least 1");
        let encoder = config.encoder(EncoderConfig::IMAGENET_MEAN, EncoderConfig::IMAGENET_STD);
        let weights = random_weights(&encoder, heads, 0);
        if self.verify {
            return verify::run(&self.compute, &encoder, &config);
        }
        let start = Start { encoder: &encoder, heads, lars: config.lars, online: &weights, target: None };
        let place = self.compute.place()?;
        let mut learner = learner::open(place, self.compute.tune, &start)?;
        let view = |seed: u32| synthetic(self.batch * self.image_size * self.image_size * 3, seed);
        let (view1, view2) = (view(1), view(2));
        let settings = StepSettings { learning_rate: 0.1, tau: 0.996, accumulate: self.accumulate };
        for _ in 0..warmup_steps(place) {
            learner.step(&view1, &view2, settings)?;
        }
        learner.finish()?;
        clock::take();
        let (start, mut lap, mut best) = (Instant::now(), Instant::now(), f64::MAX);
        for _ in 0..self.steps {
            learner.step(&view1, &view2, settings)?;
            best = best.min(lap.elapsed().as_secs_f64());
            lap = Instant::now();
        }
        learner.finish()?;
        let seconds = start.elapsed().as_secs_f64();
        let speed = (self.batch * self.steps) as f64 / seconds;
        let phases = (place == Place::Cpu).then(|| clock::take().per_step(self.steps, 1e3 * seconds));
        // A GPU runs behind: only all steps together have a time.
        let best = (place == Place::Cpu).then_some(self.batch as f64 / best);
        let rss = memory::peak().map(|bytes| bytes as f64 / 1048576.0);
        let threads = rayon::current_num_threads();
        if self.json {
            let json = serde_json::json!({
                "images_per_s": speed, "images_per_s_best": best, "peak_rss_mib": rss, "threads": threads,
                "device": place.to_string(), "precision": self.precision, "step_ms": phases,
            });
            println!("{json}");
        } else {
            let memory = rss.map_or("unknown".into(), |m| format!("{m:.0} MiB"));
            let best = best.map_or(String::new(), |best| format!(" (best step {best:.1})"));
            println!("{speed:.1} images/s{best} on {place}, peak memory {memory}, {threads} threads");
            if let Some(phases) = phases {
                println!("milliseconds a step: {phases}");
            }
        }
        Ok(())
    }
}

/// Values spread evenly over [-1, 1), the same each time.
pub(super) fn synthetic(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(next).collect()
}
