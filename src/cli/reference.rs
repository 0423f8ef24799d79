//! `latentd model reference` and `latentd model drift`: what an encoder's embeddings look like together on the pictures
//! it was trained on, and how far from those other pictures' are.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use latentd_model::artefact::next_version;
use latentd_model::gallery::Subject;
use latentd_model::reference::{MAX_PICTURES, drift, measure};
use latentd_model::{Artefact, verify};

use super::Settings;
use super::compare::artefact;
use super::embed::progress;
use super::files;
use crate::config::Config;

/// The arguments of `reference`.
#[derive(Debug, Args)]
pub struct ReferenceArgs {
    /// The encoder: an artefact's folder, or its name in the models folder
    artefact: PathBuf,
    /// Pictures like those that it was trained on: folders at any depth, or files. An evenly spaced sample of 20,000 is
    /// measured, and 640 are the least
    #[arg(long, required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// Folder to write `<name>-v<N>` into
    #[arg(long, default_value = "models")]
    out: PathBuf,
    /// Its version; by default the next free one
    #[arg(long)]
    version: Option<u32>,
    #[command(flatten)]
    settings: Box<Settings>,
}

/// The arguments of `drift`.
#[derive(Debug, Args)]
pub struct DriftArgs {
    /// The encoder: an artefact's folder, or its name in the models folder
    artefact: PathBuf,
    /// Pictures to compare with those that it was trained on: folders at any depth, or files
    #[arg(long, required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    settings: Box<Settings>,
}

/// Measures, and writes the next version of the artefact: the same encoder, with its reference.
///
/// # Errors
/// When the artefact or too many of the pictures cannot be read, or the version exists.
pub fn reference(args: ReferenceArgs) -> anyhow::Result<ExitCode> {
    let config = args.settings.load()?;
    let (encoder, pictures) = open(&config, &args.artefact, &args.images)?;
    let name = &encoder.manifest().name;
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let version = match args.version {
        Some(version) => version,
        None => next_version(&args.out, name)?.max(encoder.manifest().version + 1),
    };
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let bar = progress(pictures.len().min(MAX_PICTURES));
    let measured = measure((&encoder).into(), &pictures, &command, &|done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let known = measured.reference.clone();
    let dir = encoder.write_with_reference(&args.out, version, measured)?;
    // As it will be served.
    let written = Artefact::open(&dir)?;
    verify::<anyhow::Error>(&written)?;
    println!("{}", dir.display());
    println!("contract {}, as before: its vectors are the same", written.contract());
    println!(
        "{} pictures; {} held out are {:.5} from them in windows of {} (95 % below {:.5})",
        known.pictures, known.held_out, known.distance_mean, known.window, known.distance_p95
    );
    Ok(ExitCode::SUCCESS)
}

/// Says how far pictures are from those that the encoder was trained on.
///
/// # Errors
/// When the artefact has no reference, or there are too few pictures.
pub fn run_drift(args: DriftArgs) -> anyhow::Result<ExitCode> {
    let config = args.settings.load()?;
    let (encoder, pictures) = open(&config, &args.artefact, &args.images)?;
    let known = encoder.reference()?;
    let known = known.with_context(|| {
        let name = encoder.manifest().full_name();
        format!(
            "{name} does not tell what it was trained on: `latentd model reference` makes a version that does"
        )
    })?;
    let bar = progress(pictures.len().min(MAX_PICTURES));
    let subject = Subject::from(&encoder);
    let found = drift(subject, &known, &pictures, &|done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    println!(
        "{} pictures in windows of {}: distance {:.5}, {:.2} times that of pictures like those trained on",
        found.pictures,
        known.reference.window,
        found.distance,
        found.distance / known.reference.distance_mean
    );
    Ok(ExitCode::SUCCESS)
}

fn open(config: &Config, path: &Path, images: &[PathBuf]) -> anyhow::Result<(Artefact, Vec<PathBuf>)> {
    let encoder = artefact(config, path)?;
    let pictures = files::find(images)?.pictures;
    ensure!(!pictures.is_empty(), "there is no picture in {}", files::show(images));
    super::serve::init_runtime(config)?;
    Ok((encoder, pictures))
}
