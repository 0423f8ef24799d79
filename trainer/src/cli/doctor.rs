//! `latentd-trainer doctor DIR`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;

use super::{STOP, progress};
use crate::doctor::{Survey, SurveyOptions, examine};

/// Check a folder of pictures before training: what is in it, what is wrong with it, where to begin.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of pictures, nested or flat.
    pictures: PathBuf,
    /// A second folder, such as the pictures to test on, whose pictures should not be in the first.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Pictures to look at, evenly spaced; by default all. Copies are found only among those looked at.
    #[arg(long)]
    limit: Option<usize>,
    /// Writes every file that a finding is about, as tab-separated lines.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Looks at the folder and prints.
    pub fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.limit != Some(0), "--limit must be at least 1");
        let options = SurveyOptions { limit: self.limit, ..SurveyOptions::default() };
        let survey = survey(&self.pictures, &options)?;
        let other = self.against.as_deref().map(|dir| self::survey(dir, &options)).transpose()?;
        let checkup = examine(&survey, other.as_ref());
        if let Some(path) = &self.list {
            std::fs::write(path, checkup.list()).with_context(|| path.display().to_string())?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&checkup)?);
        } else {
            print!("{checkup}");
        }
        Ok(())
    }
}

fn survey(dir: &Path, options: &SurveyOptions) -> anyhow::Result<Survey> {
    let bar = progress::bar(0, "looking at pictures");
    let survey = Survey::of(dir, options, &mut |so_far| {
        bar.set_length(so_far.total as u64);
        bar.set_position(so_far.done as u64);
        if STOP.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    bar.finish_and_clear();
    Ok(survey)
}
