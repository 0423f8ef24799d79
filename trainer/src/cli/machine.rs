//! The flags of `train` and `resume` that fit a run to its machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::STOP;
use crate::config::RunConfig;
use crate::data::{BuildOptions, PictureCache};
use crate::device::{Compute, Place};
use crate::memory;
use crate::plan::trial::Bench;
use crate::train::Control;

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
    /// Memory that the run may take in MiB, decoded pictures among it; by default nine tenths of what the machine or
    /// its cgroup has left. A batch that needs more is cut into parts.
    #[arg(long)]
    memory_mib: Option<u64>,
    #[command(flatten)]
    compute: Compute,
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

    /// How a run saves and stops.
    pub fn control(&self, place: Place) -> anyhow::Result<Control<'static>> {
        let minutes = self.checkpoint_minutes;
        anyhow::ensure!(
            (0.0..=1e6).contains(&minutes),
            "--checkpoint-minutes {minutes} is outside 0 to 1000000"
        );
        Ok(Control {
            stop: &STOP,
            checkpoint_every: Duration::from_secs_f64(60.0 * minutes),
            view_threads: self.view_threads,
            place,
            tune: self.compute.tune,
        })
    }

    /// Steps of a configuration's shape, to be tried.
    pub fn bench(&self, config: &RunConfig, cache: Arc<PictureCache>, place: Place) -> Bench {
        Bench::new(config, cache, place, self.view_threads)
    }

    /// Bytes of decoded pictures that are held in memory, at most.
    pub fn cache_bytes(&self) -> u64 {
        self.cache_mib << 20
    }

    /// Bytes that the process may hold, where that is known.
    pub fn memory(&self) -> Option<u64> {
        let offered = || memory::allowed().map(|bytes| (bytes as f64 * MEMORY_SHARE) as u64);
        self.memory_mib.map(|mib| mib << 20).or_else(offered)
    }
}

/// Share of the memory that the machine or its cgroup offers which a run may take.
const MEMORY_SHARE: f64 = 0.9;
