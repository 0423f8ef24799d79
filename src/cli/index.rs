//! `latentd index`: a folder of pictures becomes items, each under its path in the folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};

use super::files::{self, Found};
use super::target::{Picture, Target, TargetArgs};
use crate::config::{self, Config};
use crate::store::{ContentHash, ItemId};

/// The arguments.
#[derive(Debug, Args)]
pub struct IndexArgs {
    /// The folder whose pictures are indexed, at any depth
    dir: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
}

/// Calls that are on their way at once: while one is embedded the next is read.
const AHEAD: usize = 3;
/// Bytes of files in one call, unless one file alone is larger.
const CALL_BYTES: u64 = 16 << 20;
/// Failures that are told one by one.
const TOLD: usize = 20;

/// Indexes the pictures. Exits 0 when every readable picture is indexed; Ctrl-C keeps what was written so far.
///
/// # Errors
/// When the folder or the target cannot be opened, or a write as a whole fails.
pub fn run(args: &IndexArgs) -> anyhow::Result<ExitCode> {
    let config = args.target.config()?;
    ensure!(args.dir.is_dir(), "{} is no folder", args.dir.display());
    let Found { pictures, skipped } = files::find(std::slice::from_ref(&args.dir))?;
    ensure!(!pictures.is_empty(), "there is no picture in {}", args.dir.display());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(config::cores()).enable_all().build()?;
    runtime.block_on(async {
        let target = args.target.open(&config).await?;
        let outcome = index(&target, &config, &args.dir, &pictures, skipped.len()).await;
        target.close().await?;
        outcome
    })
}

/// What was done so far.
#[derive(Default)]
struct Tally {
    indexed: usize,
    unchanged: usize,
    failed: usize,
}

async fn index(
    target: &Target,
    config: &Config,
    dir: &Path,
    pictures: &[PathBuf],
    skipped: usize,
) -> anyhow::Result<ExitCode> {
    target.check_contract().await?;
    let known = target.known().await?;
    let bar = progress(pictures.len());
    let calls = split(pictures, target.batch(config));
    let stopped = tokio::signal::ctrl_c();
    let work = futures::stream::iter(calls).map(|call| one_call(target, config, dir, call, &known));
    // After Ctrl-C nothing more is begun, and what is on its way is finished.
    let mut done = std::pin::pin!(work.take_until(stopped).buffer_unordered(AHEAD));
    let mut tally = Tally::default();
    while let Some(results) = done.next().await {
        for (path, result) in results? {
            tally.count(path, result, &bar)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let Tally { indexed, unchanged, failed } = tally;
    eprintln!("{indexed} indexed, {unchanged} unchanged, {failed} failed, {skipped} other files skipped");
    let stopped = indexed + unchanged + failed < pictures.len();
    ensure!(!stopped, "stopped; what was indexed is kept, and the same command goes on from there");
    Ok(if indexed + unchanged > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Tally {
    fn count(&mut self, path: &Path, result: Done, bar: &ProgressBar) -> anyhow::Result<()> {
        match result {
            Done::Indexed => self.indexed += 1,
            Done::Unchanged => self.unchanged += 1,
            Done::Failed { code, message } if code == "contract_mismatch" => bail!("{message}"),
            Done::Failed { code, message } => {
                self.failed += 1;
                if self.failed <= TOLD {
                    bar.suspend(|| eprintln!("{}: {message} ({code})", path.display()));
                } else if self.failed == TOLD + 1 {
                    bar.suspend(|| eprintln!("further failures are only counted"));
                }
            }
        }
        Ok(())
    }
}

/// What became of a file.
enum Done {
    Indexed,
    Unchanged,
    Failed { code: String, message: String },
}

/// Calls of at most `most` files and [`CALL_BYTES`] each.
fn split(pictures: &[PathBuf], most: usize) -> Vec<Vec<&Path>> {
    let mut calls: Vec<Vec<&Path>> = Vec::new();
    let mut bytes = 0;
    for path in pictures {
        let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        bytes += size;
        match calls.last_mut() {
            Some(call) if call.len() < most && bytes <= CALL_BYTES => call.push(path),
            _ => {
                calls.push(vec![path]);
                bytes = size;
            }
        }
    }
    calls
}

async fn one_call<'a>(
    target: &Target,
    config: &Config,
    dir: &Path,
    paths: Vec<&'a Path>,
    known: &HashMap<ItemId, ContentHash>,
) -> anyhow::Result<Vec<(&'a Path, Done)>> {
    let mut results = Vec::with_capacity(paths.len());
    let (mut pictures, mut waiting) = (Vec::new(), Vec::new());
    for path in paths {
        match read(dir, path, config.max_image_bytes).await {
            Ok(picture) if known.get(&picture.id) == Some(&ContentHash::of(&picture.bytes)) => {
                results.push((path, Done::Unchanged));
            }
            Ok(picture) => {
                pictures.push(picture);
                waiting.push(path);
            }
            Err(error) => {
                let (code, message) = ("unreadable_file".to_owned(), format!("{error:#}"));
                results.push((path, Done::Failed { code, message }));
            }
        }
    }
    if !pictures.is_empty() {
        let outcomes = target.put(pictures).await?;
        for (path, outcome) in waiting.into_iter().zip(outcomes) {
            let failed = |(code, message)| Done::Failed { code, message };
            results.push((path, outcome.map_or_else(failed, |()| Done::Indexed)));
        }
    }
    Ok(results)
}

async fn read(dir: &Path, path: &Path, max: usize) -> anyhow::Result<Picture> {
    let relative = path.strip_prefix(dir).unwrap_or(path);
    let parts: Option<Vec<&str>> = relative.iter().map(|part| part.to_str()).collect();
    let id = ItemId::new(&parts.context("its name is no UTF-8, so that it cannot be an id")?.join("/"))?;
    let size = tokio::fs::metadata(path).await?.len();
    ensure!(size <= max as u64, "the file is {size} bytes, but at most {max} are taken");
    Ok(Picture { id, bytes: Bytes::from(tokio::fs::read(path).await?) })
}

/// A progress bar on a terminal, nothing otherwise.
fn progress(total: usize) -> ProgressBar {
    let template = "{bar:32} {pos}/{len} {per_sec} {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style)
}
