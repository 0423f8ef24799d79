//! `latentd model quantize`: an encoder's int8 sibling, calibrated on pictures and held against the float one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use latentd_model::quantise::{quantise, write};

use super::Settings;
use super::compare::artefact;
use super::files;

/// The arguments.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// The float encoder: an artefact's folder, or its name in the models folder
    artefact: PathBuf,
    /// Pictures to calibrate and compare on, like those it will serve: folders at any depth, or files.
    /// Some hundreds are enough
    #[arg(long, required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// Least mean overlap of the 10 nearest neighbours, float against int8, on held-out pictures.
    /// Below it nothing is written
    #[arg(long, default_value_t = 0.9, value_parser = share)]
    min_overlap: f64,
    /// Folder to write `<name>-int8-v<N>` into
    #[arg(long, default_value = "models")]
    out: PathBuf,
    #[command(flatten)]
    settings: Box<Settings>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no share: give a number from 0 to 1"))
}

/// Quantizes, and says what was tried and what came out.
///
/// # Errors
/// When the graph cannot be quantized, or its neighbours change too much; nothing is written then.
pub fn run(args: QuantizeArgs) -> anyhow::Result<ExitCode> {
    let config = args.settings.load()?;
    let float = artefact(&config, &args.artefact)?;
    let pictures = files::find(&args.images)?.pictures;
    ensure!(!pictures.is_empty(), "there is no picture in {}", files::show(&args.images));
    super::serve::init_runtime(&config)?;
    let made = quantise(&float, &pictures, args.min_overlap, &|line| eprintln!("{line}"))?;
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let (dir, golden) = write(&float, &made, &args.out, &command)?;
    println!("{}", dir.display());
    let comparison = &made.comparison;
    println!("contract {}, {} KiB", comparison.new.contract, made.onnx.len() >> 10);
    println!(
        "{} convolutions in int8 ({}, ranges by {}), calibrated on {} pictures",
        made.convolutions, made.spared, made.calibration, made.calibrated_on
    );
    println!(
        "overlap@{} with the float encoder {:.4} on {} held-out pictures; the nearest is the same for {:.1} %",
        comparison.k,
        comparison.mean_overlap,
        comparison.pictures.len(),
        100.0 * comparison.same_nearest
    );
    println!(
        "one thread: {:.0} images/s, float {:.0} images/s: {:.2} times",
        made.speed.int8,
        made.speed.float,
        made.speed.int8 / made.speed.float
    );
    println!("golden check: {} pictures, cosine at least {:.6}", golden.cosines.len(), golden.worst);
    println!(
        "serve it with `latentd serve --model {}`; its vectors are its own, not the float one's",
        dir.display()
    );
    Ok(ExitCode::SUCCESS)
}
