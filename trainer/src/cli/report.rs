//! `latentd-trainer report RUN`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::pictures::sample;
use super::readout::ReadoutOptions;
use super::subject::{TrainedRun, Which};
use crate::doctor::{Checkup, Survey, SurveyOptions, examine};
use crate::eval::{EvalTable, Features};
use crate::nn::layout::{Layout, Role};
use crate::readout::Readout;
use crate::report::{ReportInput, contact_rows, map, render, view_examples};
use crate::run::rfc3339;
use anyhow::Context;

/// Pictures among which neighbours are looked for.
const SHEET_PICTURES: usize = 2000;
const SHEET_ROWS: usize = 8;
const SHEET_NEIGHBOURS: usize = 8;
const VIEW_EXAMPLES: usize = 8;

/// Write a run's report: curves, verdict, figures, neighbours, in one HTML file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run's folder.
    run: PathBuf,
    /// Pictures to show neighbours and views of; by default those trained on.
    #[arg(long)]
    pictures: Option<PathBuf>,
    #[command(flatten)]
    readout: ReadoutOptions,
    #[command(flatten)]
    which: Which,
    /// The file to write; by default REPORT.html in the run's folder.
    #[arg(long, short)]
    out: Option<PathBuf>,
}

impl Args {
    /// Writes the report.
    pub fn run(self) -> anyhow::Result<()> {
        let run = TrainedRun::open(&self.run, self.which)?;
        let pictures = self.pictures.as_deref().unwrap_or(&run.info.pictures_root);
        let readout = self.readout.fit(&run)?;
        let html = build(&run, &readout, pictures, &self.run.display().to_string())?;
        let out = self.out.unwrap_or_else(|| self.run.join("REPORT.html"));
        std::fs::write(&out, html).with_context(|| out.display().to_string())?;
        println!("{}", out.display());
        Ok(())
    }
}

/// The report of a run, with neighbours and views of some pictures of a folder.
pub fn build(run: &TrainedRun, readout: &Readout, pictures: &Path, title: &str) -> anyhow::Result<String> {
    let header = &run.checkpoint.header;
    let cache = sample(pictures, header.config.shortest_edge(), SHEET_PICTURES)?;
    let features = Features::from_embeddings(&run.embed_cache(readout, &cache)?)?;
    let class = |i: usize| {
        let parent = cache.path(i)?.parent()?.file_name()?;
        Some(parent.to_string_lossy().into_owned())
    };
    let sheet = contact_rows(
        &features,
        SHEET_ROWS,
        SHEET_NEIGHBOURS,
        header.config.seed,
        |i| Some(cache.get(i)),
        class,
    )?;
    let map = map(&features, |i| Some(cache.get(i)), class);
    let checkup = checkup(pictures);
    let encoder = &header.encoder;
    let views = view_examples(
        &cache,
        &header.config.views,
        encoder.image_size,
        encoder.mean,
        encoder.std,
        header.config.seed,
        VIEW_EXAMPLES,
    );
    let eval = evaluation(run, readout);
    Ok(render(&ReportInput {
        title: title.into(),
        facts: facts(run, readout),
        config_toml: toml::to_string(&header.config)?,
        command: run.info.command.clone(),
        metrics: &run.dir.metrics()?,
        eval: eval.as_ref(),
        contact_sheet: &sheet,
        views: &views,
        map,
        checkup: checkup.as_ref(),
    }))
}

/// The check-up of a folder, or of a sample of a large one; a report does without when it fails.
fn checkup(pictures: &Path) -> Option<Checkup> {
    let options = SurveyOptions { limit: Some(SHEET_PICTURES), ..SurveyOptions::default() };
    let mut checkup =
        examine(&Survey::of(pictures, &options, &mut |_| ControlFlow::Continue(())).ok()?, None);
    if checkup.pictures + checkup.unreadable < checkup.listed {
        // Of a sample the number of copies says nothing.
        checkup.findings.retain(|f| !f.code.ends_with("duplicates") && f.code != "pictures");
    }
    Some(checkup)
}

/// The run's last evaluation, if it was of this checkpoint and readout.
pub fn evaluation(run: &TrainedRun, readout: &Readout) -> Option<EvalTable> {
    let table: EvalTable = run.dir.read_json("eval.json").ok()?;
    let wanted = run.measured(readout);
    match table.measured {
        Some(measured) if measured != wanted => {
            tracing::warn!(
                "the last `eval` was of {measured}, this is {wanted}: its figures are left out; run `eval` again with \
                 the options given here"
            );
            None
        }
        _ => Some(table),
    }
}

fn facts(run: &TrainedRun, readout: &Readout) -> Vec<(String, String)> {
    let (header, info) = (&run.checkpoint.header, &run.info);
    let config = &header.config;
    let encoder = Layout::of(&run.checkpoint.arrays.online, |role| role != Role::Statistic);
    let parameters: usize =
        encoder.segments().iter().filter(|s| s.name.starts_with("st")).map(|s| s.range.len()).sum();
    let fact = |name: &str, value: String| (name.to_string(), value);
    vec![
        fact(
            "encoder",
            format!("{} width {}, {} dimensions", config.arch.as_str(), config.width, readout.dim()),
        ),
        fact("readout", format!("{0} × {0} cells of the last map", readout.encoder.grid)),
        fact("parameters", parameters.to_string()),
        fact("picture size", format!("{0} × {0} px", config.image_size)),
        fact("pictures", format!("{} ({} files skipped)", info.pictures, info.skipped)),
        fact("data fingerprint", info.fingerprint.clone()),
        fact("steps", format!("{} of {}", header.step, header.total_steps)),
        fact("seed", config.seed.to_string()),
        fact("started", rfc3339(info.started)),
        fact("training time", format!("{:.0} min", header.seconds / 60.0)),
        fact("trainer", format!("latentd-trainer {}", info.trainer)),
    ]
}
