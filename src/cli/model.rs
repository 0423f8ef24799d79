//! `latentd model`: the artefacts at hand, and whether they are sound.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use latentd_model::Artefact;

use super::Settings;
use super::compare::{self, CompareArgs};
use super::quantize::{self, QuantizeArgs};
use super::reference::{self, DriftArgs, ReferenceArgs};
use super::revise::{self, ReviseArgs};
use crate::config::Config;
use crate::locate;

/// The arguments.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// List the artefacts in the models folder, the newest last
    List(Box<Settings>),
    /// Check an artefact: every file's SHA-256, the contract, and the golden pictures
    Verify {
        /// Its folder; the one that would be served when left out
        dir: Option<PathBuf>,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Compare two encoders: how far the neighbours of the same pictures change
    Compare(CompareArgs),
    /// Write an encoder's next version, which tells what its embeddings look like on the pictures it was trained on
    Reference(ReferenceArgs),
    /// Tell how far pictures are from those that an encoder was trained on
    Drift(DriftArgs),
    /// Write an encoder's int8 sibling: smaller, faster on a CPU, calibrated on pictures
    Quantize(QuantizeArgs),
    /// Write an encoder once more with its files decoded in another way: faster, or in the right colours
    Revise(ReviseArgs),
}

/// Runs the command.
///
/// # Errors
/// When an artefact is missing or not sound.
pub fn run(args: ModelArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        ModelCommand::List(settings) => list(&settings.load()?),
        ModelCommand::Verify { dir, settings } => verify(dir.as_deref(), &settings.load()?),
        ModelCommand::Compare(args) => compare::run(args),
        ModelCommand::Reference(args) => reference::reference(args),
        ModelCommand::Drift(args) => reference::run_drift(args),
        ModelCommand::Quantize(args) => quantize::run(args),
        ModelCommand::Revise(args) => revise::run(args),
    }
}

fn list(config: &Config) -> anyhow::Result<ExitCode> {
    let folders = locate::folders(config);
    let paths: Vec<_> = folders.iter().flat_map(|folder| locate::list(folder)).collect();
    if paths.is_empty() {
        let looked_at = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>();
        anyhow::bail!("no artefact in {}", looked_at.join(", "));
    }
    for path in paths {
        match Artefact::manifest_of(&path) {
            Ok(manifest) => println!(
                "{}\t{}\tdim {}\t{}x{}\t{}",
                manifest.full_name(),
                manifest.contract,
                manifest.output.dim,
                manifest.preprocess.width,
                manifest.preprocess.height,
                path.display()
            ),
            Err(error) => println!("{}\tunreadable: {error}", path.display()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(dir: Option<&Path>, config: &Config) -> anyhow::Result<ExitCode> {
    let artefact = match dir {
        Some(dir) => Artefact::open(dir)?,
        None => locate::open(config)?,
    };
    let manifest = artefact.manifest();
    println!(
        "{}: {} files and the contract {} are sound",
        manifest.full_name(),
        manifest.files.len(),
        manifest.contract
    );
    super::serve::init_runtime(config)?;
    let report = latentd_model::verify::<anyhow::Error>(&artefact)?;
    println!("{} golden pictures pass, the worst at cosine {:.6}", report.cosines.len(), report.worst);
    Ok(ExitCode::SUCCESS)
}
