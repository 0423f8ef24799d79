//! `latentd-trainer eval RUN|CKPT|ARTEFACT --labelled DIR`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::readout::ReadoutOptions;
use super::subject::{Evaluated, Which};
use super::{STOP, command_line, progress};
use crate::data::scan_splits;
use crate::eval::{EvalOptions, evaluate};

/// Measure an encoder on labelled pictures, beside raw pixels, hand-made features and random weights.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run's folder, a checkpoint in one, or an artefact.
    subject: PathBuf,
    /// Labelled pictures: DIR/<class>/… or DIR/{train,test}/<class>/….
    #[arg(long)]
    labelled: PathBuf,
    /// Another run, checkpoint or artefact to compare with.
    #[arg(long, value_name = "RUN|CKPT|ARTEFACT")]
    against: Option<PathBuf>,
    /// Leaves out the linear probes, the slowest part.
    #[arg(long)]
    no_probe: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    readout: ReadoutOptions,
    #[command(flatten)]
    which: Which,
    /// Seed of the random encoder, and of the split where the folder has none.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Args {
    /// Measures and prints; a run keeps the result as `eval.json`.
    pub fn run(self) -> anyhow::Result<()> {
        let evaluated = Evaluated::open(&self.subject, self.which)?;
        let splits = scan_splits(&self.labelled, self.seed)?;
        let mut subjects = vec![evaluated.subject(&self.readout)?];
        subjects.extend(evaluated.random(&self.readout, self.seed)?);
        let other = self.against.as_deref().map(|path| Evaluated::open(path, self.which)).transpose()?;
        let mut rival = None;
        if let (Some(other), Some(path)) = (&other, &self.against) {
            let name = path.file_name().map_or_else(|| "the other".into(), |n| n.to_string_lossy());
            subjects.push(other.subject(&self.readout)?.as_rival(name.clone(), other.preprocess()));
            rival = Some(name.into_owned());
        }
        let mut options = EvalOptions { against: rival, command: command_line(), ..EvalOptions::default() };
        if self.no_probe {
            options.probe = None;
        }
        let total = (splits.train.pictures.len() + splits.test.pictures.len()) as u64;
        let bar = progress::bar(total, "embedding");
        let table = evaluate(subjects, &splits, &evaluated.preprocess(), &options, &mut |so_far| {
            bar.set_position(so_far.done as u64);
            if bar.message() != so_far.stage {
                bar.set_message(so_far.stage);
            }
            if STOP.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        bar.finish_and_clear();
        if let Evaluated::Run(run) = &evaluated {
            run.dir.write_json("eval.json", &table)?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&table)?);
        } else {
            println!("{table}");
        }
        Ok(())
    }
}
