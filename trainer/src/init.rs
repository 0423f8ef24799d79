//! What a run can start from instead of random weights: a run, a checkpoint, an artefact, or torchvision's weights.

use std::path::{Path, PathBuf};

use latentd_model::{Artefact, ArtefactError};

use crate::checkpoint::{Checkpoint, CheckpointError, Header};
use crate::config::RunConfig;
use crate::method::byol::random_weights;
use crate::nn::config::EncoderConfig;
use crate::nn::weights::{Weights, WeightsError};
use crate::torchvision::{self, TorchvisionError};

/// The file of an artefact that holds the networks, for training on.
pub const WEIGHTS_FILE: &str = "weights.safetensors";

/// Networks to start from.
#[derive(Debug)]
pub struct Init {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Encoder and heads, with the configuration that they were trained with.
    Checkpoint(Box<Checkpoint>),
    /// An encoder under torchvision's names.
    Torchvision(Weights),
}

/// Why a run cannot start from there.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Nothing that a run can start from.
    #[error(
        "{0}: no run (run.json), checkpoint or torchvision weights (.safetensors), or artefact (manifest.json) there"
    )]
    Unknown(String),
    /// A checkpoint that cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An artefact that cannot be read.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// An artefact of folded weights alone.
    #[error(
        "{0} holds no {WEIGHTS_FILE}, and its graph's batch norms are folded: start from the run that it was exported from"
    )]
    NoWeights(String),
    /// No weights of torchvision's.
    #[error(transparent)]
    Torchvision(#[from] TorchvisionError),
    /// Weights of another shape.
    #[error("{path}: {source}; {hint}")]
    Shape {
        /// Where they are from.
        path: String,
        /// The first array that does not fit.
        source: WeightsError,
        /// What would fit.
        hint: String,
    },
}

/// What a run starts from.
#[derive(Debug)]
pub struct Networks {
    /// The encoder's configuration, with the normalisation that the weights were trained with.
    pub encoder: EncoderConfig,
    /// Encoder and heads.
    pub online: Weights,
    /// The target, where it is not the online network.
    pub target: Option<Weights>,
}

impl Init {
    /// Reads what the path names.
    ///
    /// # Errors
    /// See [`InitError`].
    pub fn open(path: &Path) -> Result<Self, InitError> {
        let source = if path.join("manifest.json").is_file() {
            let artefact = Artefact::open(path)?;
            if !artefact.manifest().files.contains_key(WEIGHTS_FILE) {
                return Err(InitError::NoWeights(path.display().to_string()));
            }
            Source::Checkpoint(Box::new(Checkpoint::read(&path.join(WEIGHTS_FILE))?))
        } else if path.join("run.json").is_file() {
            let (checkpoint, damaged) = Checkpoint::best(&path.join("checkpoints"))?;
            damaged.iter().for_each(|line| tracing::warn!("{line}"));
            Source::Checkpoint(Box::new(checkpoint))
        } else if !path.is_file() {
            return Err(InitError::Unknown(path.display().to_string()));
        } else if Checkpoint::is_one(path)? {
            Source::Checkpoint(Box::new(Checkpoint::read(path)?))
        } else {
            Source::Torchvision(torchvision::read(path)?)
        };
        Ok(Self { path: path.to_path_buf(), source })
    }

    /// The configuration that the networks were trained with, where it is known.
    #[must_use]
    pub fn config(&self) -> Option<&RunConfig> {
        match &self.source {
            Source::Checkpoint(checkpoint) => Some(&checkpoint.header.config),
            Source::Torchvision(_) => None,
        }
    }

    /// The networks for a run of that configuration; heads that are not there are random.
    ///
    /// # Errors
    /// The first array that does not fit.
    pub fn networks(self, config: &RunConfig) -> Result<Networks, InitError> {
        let path = self.path.display().to_string();
        let fit = |weights: &Weights, expected: &Weights, hint: String| match expected
            .0
            .iter()
            .find_map(|(name, t)| weights.get(name, &t.shape).err())
        {
            Some(source) => Err(InitError::Shape { path: path.clone(), source, hint }),
            None => Ok(()),
        };
        match self.source {
            Source::Checkpoint(checkpoint) => {
                let Checkpoint { header, arrays } = *checkpoint;
                let encoder = config.encoder(header.encoder.mean, header.encoder.std);
                let expected = random_weights(&encoder, config.heads, config.seed);
                fit(&arrays.online, &expected, shape_of(&header))?;
                let target = (!arrays.target.0.is_empty()).then_some(arrays.target);
                Ok(Networks { encoder, online: arrays.online, target })
            }
            Source::Torchvision(weights) => {
                let encoder = config.encoder(EncoderConfig::IMAGENET_MEAN, EncoderConfig::IMAGENET_STD);
                let expected = Weights::random(&encoder, config.seed);
                fit(&weights, &expected, torchvision::hint(&weights))?;
                let mut online = random_weights(&encoder, config.heads, config.seed);
                online.0.extend(weights.0);
                Ok(Networks { encoder, online, target: None })
            }
        }
    }
}

/// The flags that give a checkpoint's shape.
fn shape_of(header: &Header) -> String {
    let RunConfig { arch, width, image_size, heads, .. } = &header.config;
    format!(
        "it was trained with --arch {} --width {width} --image-size {image_size} --hidden {} --projection {}",
        arch.as_str(),
        heads.hidden,
        heads.projection
    )
}
