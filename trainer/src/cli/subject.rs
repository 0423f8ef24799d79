//! What `eval`, `export` and `report` work on: a run, a checkpoint or an artefact.

use std::path::Path;

use anyhow::{Context, bail};
use latentd_model::{Artefact, Encoder, Preprocess, SessionOptions};

use crate::checkpoint::Checkpoint;
use crate::encode::PictureEncoder;
use crate::eval::Subject;
use crate::export::eval_preprocess;
use crate::nn::config::{Arch, EncoderConfig};
use crate::nn::weights::Weights;
use crate::run::{RunDir, RunInfo};

/// How the encoder in question is called in tables.
pub const THIS: &str = "this encoder";
/// How the same network with random weights is called.
pub const RANDOM: &str = "random initialisation";

/// A run with the checkpoint to be used.
pub struct TrainedRun {
    /// Its folder.
    pub dir: RunDir,
    /// Where it came from.
    pub info: RunInfo,
    /// Its newest sound checkpoint, or the one asked for.
    pub checkpoint: Checkpoint,
}

impl TrainedRun {
    /// Opens a run's folder, or a checkpoint inside one.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if path.is_file() {
            let root = path.parent().and_then(Path::parent);
            let root = root.with_context(|| format!("{} is not inside a run's folder", path.display()))?;
            let (dir, info) = RunDir::open(root)?;
            return Ok(Self { dir, info, checkpoint: Checkpoint::read(path)? });
        }
        let (dir, info) = RunDir::open(path)?;
        let (checkpoint, damaged) = Checkpoint::newest(&dir.checkpoints())?;
        damaged.iter().for_each(|line| tracing::warn!("{line}"));
        Ok(Self { dir, info, checkpoint })
    }

    /// The online encoder, which BYOL keeps after training.
    pub fn encoder(&self) -> anyhow::Result<PictureEncoder> {
        Ok(PictureEncoder::new(&self.checkpoint.header.encoder, &self.checkpoint.arrays.online)?)
    }
}

/// An encoder to be evaluated.
pub enum Evaluated {
    /// From a run.
    Run(Box<TrainedRun>),
    /// From an artefact, through ONNX Runtime.
    Artefact(Box<Artefact>),
}

impl Evaluated {
    /// Opens what the path names.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if path.join("manifest.json").is_file() {
            return Ok(Self::Artefact(Box::new(Artefact::open(path)?)));
        }
        if path.join("run.json").is_file() || path.is_file() {
            return Ok(Self::Run(Box::new(TrainedRun::open(path)?)));
        }
        bail!(
            "{}: no run (run.json), checkpoint (.safetensors) or artefact (manifest.json) there",
            path.display()
        )
    }

    /// What the encoder wants done to a picture first.
    pub fn preprocess(&self) -> Preprocess {
        match self {
            Self::Run(run) => eval_preprocess(run.checkpoint.header.encoder.image_size),
            Self::Artefact(artefact) => artefact.manifest().preprocess.clone(),
        }
    }

    /// The encoder as a subject.
    pub fn subject(&self) -> anyhow::Result<Subject<'static>> {
        Ok(match self {
            Self::Run(run) => {
                let mut encoder = run.encoder()?;
                Subject::new(THIS, move |pictures: &[_]| Ok(encoder.embed(pictures)?))
            }
            Self::Artefact(artefact) => {
                latentd_model::runtime::init(None)?;
                let threads = rayon::current_num_threads();
                let options = SessionOptions { intra_threads: threads, ..SessionOptions::default() };
                let mut encoder = Encoder::open(artefact, &options)?;
                Subject::new(THIS, move |pictures: &[_]| Ok(encoder.embed(pictures)?))
            }
        })
    }

    /// The same network with random weights; its batch norms at rest.
    pub fn random(&self, seed: u64) -> anyhow::Result<Option<Subject<'static>>> {
        let config = match self {
            Self::Run(run) => run.checkpoint.header.encoder.clone(),
            Self::Artefact(artefact) => {
                let Some(training) = &artefact.manifest().training else { return Ok(None) };
                let Ok(arch) = <Arch as clap::ValueEnum>::from_str(&training.arch, false) else {
                    return Ok(None);
                };
                EncoderConfig::new(arch, training.width, training.image_size)
            }
        };
        let mut encoder = PictureEncoder::new(&config, &Weights::random(&config, seed))?;
        Ok(Some(Subject::baseline(RANDOM, move |pictures: &[_]| Ok(encoder.embed(pictures)?))))
    }
}
