//! `latentd model revise`: an encoder as a new version that decodes its files in another way.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use latentd_model::artefact::next_version;
use latentd_model::revise::revise;
use latentd_model::{Colour, Decoding};

use super::Settings;
use super::compare::artefact;
use super::files;

/// What happens to colours.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ColourChoice {
    /// An embedded profile is applied
    Srgb,
    /// Numbers are taken as if they were sRGB
    AsStored,
}

/// The arguments.
#[derive(Debug, Args)]
pub struct ReviseArgs {
    /// The encoder: an artefact's folder, or its name in the models folder
    artefact: PathBuf,
    /// Decode JPEG files at a fraction of their size, as long as each side stays this many times what it is resized
    /// to: 1 to 8; 0 decodes whole
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=i64::from(Decoding::MAX_GAP)))]
    reducing_gap: u32,
    /// What happens to colours that a file declares
    #[arg(long, value_enum, default_value = "srgb")]
    colour: ColourChoice,
    /// Pictures to compare the neighbours of, like those it serves: folders at any depth, or files
    #[arg(long, required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// The new version; by default the next free one
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    version: Option<u32>,
    /// Folder to write `<name>-v<N>` into
    #[arg(long, default_value = "models")]
    out: PathBuf,
    #[command(flatten)]
    settings: Box<Settings>,
}

/// Writes the revision, and says how far neighbours move.
///
/// # Errors
/// When nothing would change, or the artefact or the pictures cannot be read.
pub fn run(args: ReviseArgs) -> anyhow::Result<ExitCode> {
    let config = args.settings.load()?;
    let old = artefact(&config, &args.artefact)?;
    let pictures = files::find(&args.images)?.pictures;
    ensure!(!pictures.is_empty(), "there is no picture in {}", files::show(&args.images));
    super::serve::init_runtime(&config)?;
    let colour = match args.colour {
        ColourChoice::Srgb => Colour::Srgb,
        ColourChoice::AsStored => Colour::AsStored,
    };
    let decoding = Decoding { reducing_gap: Some(args.reducing_gap).filter(|&gap| gap > 0), colour };
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let version = match args.version {
        Some(version) => version,
        None => next_version(&args.out, &old.manifest().name)?.max(old.manifest().version + 1),
    };
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let made = revise(&old, decoding, version, &pictures, &args.out, &command)?;
    let comparison = &made.comparison;
    println!("{}", made.dir.display());
    println!("contract {}, before {}", comparison.new.contract, comparison.old.contract);
    println!(
        "overlap@{} with {} {:.4} on {} pictures; the nearest is the same for {:.1} %",
        comparison.k,
        comparison.old.name,
        comparison.mean_overlap,
        comparison.pictures.len(),
        100.0 * comparison.same_nearest
    );
    println!(
        "golden check: {} pictures, cosine at least {:.6}",
        made.golden.cosines.len(),
        made.golden.worst
    );
    if old.manifest().reference.is_some() {
        println!("it has no reference of its embeddings: measure one with `latentd model reference`");
    }
    println!(
        "a server that holds vectors of {} changes over with POST /models/…/activate",
        comparison.old.name
    );
    Ok(ExitCode::SUCCESS)
}
