//! `latentd embed`: picture files to a numpy file, with a JSON line per picture beside it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use latentd_model::ImageBytes;

use super::Settings;
use super::files::{self, Found};
use super::serve::{Opened, open_model};
use crate::admission::Admission;
use crate::config::Config;
use crate::embedder::{Embedder, Shared};
use crate::outcome::{EmbedError, Embedded};
use crate::telemetry::{self, Metrics};
use crate::{config, npy};

/// The arguments.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// Picture files, and folders whose pictures are taken at any depth
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The numpy file to write: float32, one row per picture that could be embedded.
    /// Beside it, under the same name with .jsonl, goes a line per picture with its path and its row or error
    #[arg(long, short)]
    out: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// Embeds the pictures. Exits 0 when at least one could be embedded.
///
/// # Errors
/// When the model cannot be opened, there is no picture, or the files cannot be written.
pub fn run(args: EmbedArgs) -> anyhow::Result<ExitCode> {
    let config = Config { log: quiet(&args.settings), ..args.settings.clone().load()? };
    telemetry::start_log(&config);
    let Found { pictures, skipped } = files::find(&args.paths)?;
    ensure!(!pictures.is_empty(), "there is no picture in {}", files::show(&args.paths));
    let lines = args.out.with_extension("jsonl");
    ensure!(lines != args.out, "--out is the numpy file: give it another extension than .jsonl");
    let embedder = embedder(&config)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(config::cores()).enable_all().build()?;
    let mut out = Output::create(&args.out, &lines, &embedder)?;
    let (done, failed) = runtime.block_on(embed_files(&embedder, &config, &pictures, &mut out))?;
    out.finish()?;
    embedder.close();
    for path in &skipped {
        eprintln!("skipped {}: not a picture by its extension", path.display());
    }
    eprintln!(
        "{done} embedded, {failed} failed, {} skipped: {}, {}",
        skipped.len(),
        args.out.display(),
        lines.display()
    );
    Ok(if done > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The log level: only what is wrong, unless asked for more.
fn quiet(settings: &Settings) -> String {
    settings.layer.log.clone().unwrap_or_else(|| "warn".to_owned())
}

fn embedder(config: &Config) -> anyhow::Result<Embedder> {
    let Opened { artefact, backends, .. } = open_model(config)?;
    let metrics = Arc::new(Metrics::new()?);
    let admission = Admission::new(config.queue_images, config.queue_bytes);
    Ok(Embedder::start(config, artefact, backends, Shared { admission, metrics, cache: None })?)
}

/// Embeds in order, some ahead; Ctrl-C stops after the pictures in hand, and what was done is kept.
async fn embed_files(
    embedder: &Embedder,
    config: &Config,
    pictures: &[PathBuf],
    out: &mut Output,
) -> anyhow::Result<(usize, usize)> {
    let bar = progress(pictures.len());
    let ahead = (2 * config.max_batch()).max(4 * embedder.sessions()).min(config.queue_images);
    let mut waiting = VecDeque::with_capacity(ahead);
    let mut next = pictures.iter();
    let mut stopped = std::pin::pin!(tokio::signal::ctrl_c());
    let mut stop = false;
    let (mut done, mut failed) = (0, 0);
    loop {
        while !stop && waiting.len() < ahead {
            let Some(path) = next.next() else { break };
            let (embedder, file, max) = (embedder.clone(), path.clone(), config.max_image_bytes);
            waiting.push_back((path, tokio::spawn(async move { embed_file(&embedder, &file, max).await })));
        }
        let Some((path, task)) = waiting.front_mut() else { break };
        let outcome = tokio::select! {
            outcome = task => outcome.context("embedding a picture panicked")?,
            _ = &mut stopped, if !stop => { stop = true; continue; }
        };
        match &outcome {
            Ok(_) => done += 1,
            Err(_) => failed += 1,
        }
        out.push(path, outcome)?;
        waiting.pop_front();
        bar.inc(1);
    }
    bar.finish_and_clear();
    ensure!(!stop || done + failed == pictures.len(), "stopped after {done} pictures; they are written");
    Ok((done, failed))
}

async fn embed_file(embedder: &Embedder, path: &Path, max: usize) -> Result<Embedded, FileError> {
    let size = tokio::fs::metadata(path).await?.len();
    if size > max as u64 {
        return Err(FileError::TooLarge { size, max });
    }
    let bytes = tokio::fs::read(path).await?;
    Ok(embedder.embed(ImageBytes::from(bytes)).await?)
}

/// Why a file has no embedding.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(transparent)]
    Read(#[from] std::io::Error),
    #[error("the file is {size} bytes, but at most {max} are taken")]
    TooLarge { size: u64, max: usize },
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

impl FileError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "unreadable_file",
            Self::TooLarge { .. } => "image_too_large",
            Self::Embed(error) => error.code(),
        }
    }
}

/// The two files, written as results come.
struct Output {
    npy: BufWriter<File>,
    lines: BufWriter<File>,
    rows: usize,
    dim: usize,
    contract: String,
}

impl Output {
    fn create(npy: &Path, lines: &Path, embedder: &Embedder) -> anyhow::Result<Self> {
        let create =
            |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
        let manifest = embedder.artefact().manifest();
        let dim = manifest.output.dim;
        let mut npy = BufWriter::new(create(npy)?);
        npy.write_all(&npy::header(0, dim))?;
        let lines = BufWriter::new(create(lines)?);
        Ok(Self { npy, lines, rows: 0, dim, contract: manifest.contract.to_string() })
    }

    fn push(&mut self, path: &Path, outcome: Result<Embedded, FileError>) -> std::io::Result<()> {
        let path = path.display().to_string();
        let line = match outcome {
            Ok(embedded) => {
                let mut row = Vec::with_capacity(4 * self.dim);
                npy::push_row(&mut row, embedded.embedding.as_slice());
                self.npy.write_all(&row)?;
                self.rows += 1;
                serde_json::json!({ "path": path, "row": self.rows - 1, "contract": self.contract })
            }
            Err(error) => {
                let error = serde_json::json!({ "code": error.code(), "message": error.to_string() });
                serde_json::json!({ "path": path, "error": error })
            }
        };
        writeln!(self.lines, "{line}")
    }

    /// Writes the number of rows, which is known only now.
    fn finish(mut self) -> std::io::Result<()> {
        self.npy.seek(SeekFrom::Start(0))?;
        self.npy.write_all(&npy::header(self.rows, self.dim))?;
        self.npy.flush()?;
        self.lines.flush()
    }
}

/// A progress bar on a terminal, nothing otherwise.
pub fn progress(total: usize) -> ProgressBar {
    let template = "{bar:32} {pos}/{len} {per_sec} {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style)
}
