//! What `eval`, `export` and `report` work on: a run, a checkpoint or an artefact.

use std::path::Path;

use anyhow::{Context, bail};
use latentd_model::{Artefact, Embedding, Encoder, Pixels, Preprocess, SessionOptions};

use super::readout::ReadoutOptions;
use crate::checkpoint::Checkpoint;
use crate::data::PictureCache;
use crate::encode::PictureEncoder;
use crate::eval::compare::RANDOM;
use crate::eval::{Measured, Subject};
use crate::export::eval_preprocess;
use crate::nn::config::{Arch, EncoderConfig};
use crate::nn::weights::Weights;
use crate::readout::Readout;
use crate::run::{RunDir, RunInfo};

/// How the encoder in question is called in tables.
pub const THIS: &str = "this encoder";

/// Pictures embedded at a time.
const EMBED_BATCH: usize = 256;

/// Which checkpoint of a run is meant.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Which {
    /// Takes the last checkpoint of a run, not the best by its label-free verdicts.
    #[arg(long)]
    last: bool,
}

/// A run with the checkpoint to be used.
pub struct TrainedRun {
    /// Its folder.
    pub dir: RunDir,
    /// Where it came from.
    pub info: RunInfo,
    /// Its best checkpoint, its last, or the one asked for.
    pub checkpoint: Checkpoint,
}

impl TrainedRun {
    /// Opens a run's folder, or a checkpoint inside one.
    pub fn open(path: &Path, which: Which) -> anyhow::Result<Self> {
        if path.is_file() {
            let root = path.parent().and_then(Path::parent);
            let root = root.with_context(|| format!("{} is not inside a run's folder", path.display()))?;
            let (dir, info) = RunDir::open(root)?;
            return Ok(Self { dir, info, checkpoint: Checkpoint::read(path)? });
        }
        let (dir, info) = RunDir::open(path)?;
        let folder = dir.checkpoints();
        let (checkpoint, damaged) =
            if which.last { Checkpoint::newest(&folder)? } else { Checkpoint::best(&folder)? };
        damaged.iter().for_each(|line| tracing::warn!("{line}"));
        Ok(Self { dir, info, checkpoint })
    }

    /// The online encoder, which BYOL keeps after training, with its readout.
    pub fn encoder(&self, readout: &Readout) -> anyhow::Result<PictureEncoder> {
        Ok(readout.encoder(&self.checkpoint.arrays.online)?)
    }

    /// What figures of that readout are of.
    pub fn measured(&self, readout: &Readout) -> Measured {
        Measured {
            step: self.checkpoint.header.step,
            grid: readout.encoder.grid,
            dims: readout.dim(),
            whitened: readout.whitening.is_some(),
        }
    }

    /// Embeddings of all pictures of a cache.
    pub fn embed_cache(&self, readout: &Readout, cache: &PictureCache) -> anyhow::Result<Vec<Embedding>> {
        let preprocess = eval_preprocess(self.checkpoint.header.encoder.image_size);
        let mut encoder = self.encoder(readout)?;
        let mut embeddings = Vec::with_capacity(cache.len());
        let mut batch = Vec::with_capacity(EMBED_BATCH);
        for i in 0..cache.len() {
            let picture = cache.get(i);
            let pixels = Pixels::new(picture.height as u32, picture.width as u32, picture.rgb.to_vec())?;
            batch.push(preprocess.apply(&pixels)?);
            if batch.len() == EMBED_BATCH || i + 1 == cache.len() {
                embeddings.extend(encoder.embed(&batch)?);
                batch.clear();
            }
        }
        Ok(embeddings)
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
    pub fn open(path: &Path, which: Which) -> anyhow::Result<Self> {
        if path.join("manifest.json").is_file() {
            return Ok(Self::Artefact(Box::new(Artefact::open(path)?)));
        }
        if path.join("run.json").is_file() || path.is_file() {
            return Ok(Self::Run(Box::new(TrainedRun::open(path, which)?)));
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
    pub fn subject(&self, readout: &ReadoutOptions) -> anyhow::Result<Subject<'static>> {
        Ok(match self {
            Self::Run(run) => {
                let readout = readout.fit(run)?;
                let mut encoder = run.encoder(&readout)?;
                Subject::new(THIS, move |pictures: &[_]| Ok(encoder.embed(pictures)?))
                    .of_run(run.measured(&readout))
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

    /// The same network with random weights, read out by the same grid; its batch norms at rest.
    pub fn random(&self, readout: &ReadoutOptions, seed: u64) -> anyhow::Result<Option<Subject<'static>>> {
        let config = match self {
            Self::Run(run) => readout.encoder(run)?,
            Self::Artefact(artefact) => match trained_shape(artefact) {
                Some(config) => config,
                None => return Ok(None),
            },
        };
        let mut encoder = PictureEncoder::new(&config, &Weights::random(&config, seed))?;
        Ok(Some(Subject::baseline(RANDOM, move |pictures: &[_]| Ok(encoder.embed(pictures)?))))
    }
}

/// The network that an artefact was trained as, where its manifest tells.
pub fn trained_shape(artefact: &Artefact) -> Option<EncoderConfig> {
    let training = artefact.manifest().training.as_ref()?;
    let arch = <Arch as clap::ValueEnum>::from_str(&training.arch, false).ok()?;
    let shape = EncoderConfig::new(arch, training.width, training.image_size);
    Some(EncoderConfig { grid: training.grid, ..shape })
}
