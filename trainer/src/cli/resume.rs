//! `latentd-trainer resume RUN`.

use std::path::PathBuf;

use super::machine::Machine;
use super::pictures;
use super::train::go;
use crate::checkpoint::Checkpoint;
use crate::run::RunDir;

/// Go on with a run that was stopped or killed, from its newest sound checkpoint.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run's folder.
    run: PathBuf,
    /// Folder of the pictures, if they were moved.
    #[arg(long)]
    pictures: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
}

impl Args {
    /// For a run whose pictures are where they were.
    pub fn of(run: PathBuf, machine: Machine) -> Self {
        Self { run, pictures: None, machine }
    }

    /// Reads checkpoint and pictures and trains on.
    pub fn run(self) -> anyhow::Result<()> {
        let (run, info) = RunDir::open(&self.run)?;
        let (start, damaged) = Checkpoint::newest(&run.checkpoints())?;
        damaged.iter().for_each(|line| tracing::warn!("{line}"));
        let header = &start.header;
        tracing::info!("going on at step {} of {}", header.step, header.total_steps);
        if header.step >= header.total_steps {
            tracing::info!("the run is finished");
            return Ok(());
        }
        let place = self.machine.place()?;
        let root = self.pictures.unwrap_or(info.pictures_root);
        let (cache, _) = pictures::load(&root, header.config.shortest_edge(), &self.machine.build_options())?;
        go(&run, start, cache, &self.machine, place)
    }
}
