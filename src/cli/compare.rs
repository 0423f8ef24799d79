//! `latentd model compare`: how far the neighbours of the same pictures change between two encoders.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use latentd_model::compare::page;
use latentd_model::neighbours::Near;
use latentd_model::{Artefact, Comparison, PictureChange, compare};
use serde_json::{Value, json};

use super::Settings;
use super::embed::progress;
use super::files;
use crate::config::Config;
use crate::locate;

/// The arguments.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The encoder before: an artefact's folder, or its name in the models folder
    old: PathBuf,
    /// The encoder after
    new: PathBuf,
    /// Pictures to compare the neighbours of: folders at any depth, or files
    #[arg(long, required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// Neighbours of each picture
    #[arg(short, long, default_value_t = 10)]
    k: usize,
    /// Pictures to name, those whose neighbours changed most
    #[arg(long, default_value_t = 24)]
    most: usize,
    /// Write the most changed pictures with their neighbours as an HTML page
    #[arg(long)]
    html: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Box<Settings>,
}

/// Compares, and prints what changed.
///
/// # Errors
/// When an encoder or the pictures cannot be opened.
pub fn run(args: CompareArgs) -> anyhow::Result<ExitCode> {
    let config = args.settings.load()?;
    let (old, new) = (artefact(&config, &args.old)?, artefact(&config, &args.new)?);
    let pictures = files::find(&args.images)?.pictures;
    ensure!(!pictures.is_empty(), "there is no picture in {}", files::show(&args.images));
    super::serve::init_runtime(&config)?;
    let bar = progress(pictures.len().min(latentd_model::gallery::MAX_PICTURES));
    let comparison = compare(&old, &new, &pictures, args.k, &|done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if let Some(path) = &args.html {
        std::fs::write(path, page(&comparison, args.most))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&as_json(&comparison, args.most))? + "\n",
        false => as_text(&comparison, args.most),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        written => Ok(written.map(|()| ExitCode::SUCCESS)?),
    }
}

/// The artefact of a folder, or of a full name in the models folders.
pub fn artefact(config: &Config, path: &Path) -> anyhow::Result<Artefact> {
    let folder = match path.is_dir() {
        true => path.to_owned(),
        false => locate::named(config, path).unwrap_or_else(|| path.to_owned()),
    };
    Artefact::open(&folder).with_context(|| format!("cannot open the encoder {}", path.display()))
}

fn as_json(comparison: &Comparison, most: usize) -> Value {
    let Comparison { old, new, k, mean_overlap, overlap_by_chance, same_nearest, .. } = comparison;
    let path = |row: u32| comparison.pictures[row as usize].display().to_string();
    let list = |list: &[Near]| {
        list.iter().map(|near| json!({"picture": path(near.row), "score": near.cosine})).collect::<Vec<_>>()
    };
    let change = |change: &PictureChange| {
        json!({
            "picture": path(change.row), "overlap": change.overlap,
            "before": list(&change.before), "after": list(&change.after),
        })
    };
    let unreadable = comparison.unreadable.iter();
    json!({
        "old": {"name": old.name, "contract": old.contract},
        "new": {"name": new.name, "contract": new.contract},
        "k": k, "pictures": comparison.pictures.len(), "offered": comparison.offered,
        "mean_overlap": mean_overlap, "overlap_by_chance": overlap_by_chance, "same_nearest": same_nearest,
        "unreadable": unreadable.map(|(path, why)| json!({"picture": path.display().to_string(), "error": why})).collect::<Vec<_>>(),
        "most_changed": comparison.changes.iter().take(most).map(change).collect::<Vec<_>>(),
    })
}

fn as_text(comparison: &Comparison, most: usize) -> String {
    let Comparison { old, new, k, .. } = comparison;
    let count = comparison.pictures.len();
    let mut text = format!("{} ({}) → {} ({})\n", old.name, old.contract, new.name, new.contract);
    let readable = comparison.pictures.len() + comparison.unreadable.len();
    if readable < comparison.offered {
        text += &format!("an evenly spaced sample: {readable} of {} pictures\n", comparison.offered);
    }
    if !comparison.unreadable.is_empty() {
        text += &format!("{} pictures cannot be read\n", comparison.unreadable.len());
    }
    text += &format!(
        "mean overlap@{k} {:.4} on {count} pictures (by chance {:.4}); the nearest is the same for {:.1} %\n",
        comparison.mean_overlap,
        comparison.overlap_by_chance,
        100.0 * comparison.same_nearest
    );
    let changed = || comparison.changes.iter().filter(|change| change.overlap < 1.0).take(most);
    if changed().next().is_some() {
        text += "the pictures whose neighbours changed most:\n";
    }
    let folder = common_folder(&comparison.pictures);
    for change in changed() {
        let path = |row: u32| {
            let path = &comparison.pictures[row as usize];
            path.strip_prefix(&folder).unwrap_or(path).display().to_string()
        };
        let names = |list: &[Near]| list.iter().map(|near| path(near.row)).collect::<Vec<_>>().join(", ");
        text += &format!("  {:.2}  {}\n", change.overlap, path(change.row));
        text += &format!("        before: {}\n", names(&change.before));
        text += &format!("        after:  {}\n", names(&change.after));
    }
    text
}

/// The deepest folder that all paths are in.
fn common_folder(paths: &[PathBuf]) -> PathBuf {
    let mut folder = paths.first().and_then(|path| path.parent()).map(Path::to_owned).unwrap_or_default();
    while !paths.iter().all(|path| path.starts_with(&folder)) && folder.pop() {}
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_by_what_they_share() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(common_folder(&paths(&["a/b/1.jpg", "a/b/c/2.jpg"])), Path::new("a/b"));
        assert_eq!(common_folder(&paths(&["/a/1.jpg", "/b/2.jpg"])), Path::new("/"));
        assert_eq!(common_folder(&paths(&["a/1.jpg", "b/2.jpg"])), Path::new(""));
        assert_eq!(common_folder(&[]), Path::new(""));
    }
}
