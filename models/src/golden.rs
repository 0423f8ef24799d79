//! The golden check: a few pictures and the vectors they must give.

use std::path::Path;

use crate::decode::DecodeError;
use crate::embedding::{Embedding, EmbeddingError};
use crate::pixels::Pixels;
use crate::preprocess::{Preprocess, PreprocessError};

/// A picture file and the embedding that it must give.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenPicture {
    /// File name, without folders.
    pub name: String,
    /// The undecoded file.
    pub bytes: Vec<u8>,
    /// The embedding of it.
    pub expected: Embedding,
}

/// The golden pictures of an artefact, folder `golden/`: usually 8 pictures and `expected.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    /// The pictures, in the order of `expected.json`.
    pub pictures: Vec<GoldenPicture>,
}

/// The outcome of a golden check that passed.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenReport {
    /// File name and cosine to the expected embedding, in the order of the pictures.
    pub cosines: Vec<(String, f32)>,
    /// The smallest of them.
    pub worst: f32,
}

/// Why a golden check failed.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// There is no picture to check with.
    #[error("the artefact has no golden pictures")]
    NoPictures,
    /// The folder could not be read or written.
    #[error("golden: {path}: {reason}")]
    Files {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A picture could not be decoded.
    #[error("golden picture {name}: {source}")]
    Decode {
        /// File name.
        name: String,
        /// Why.
        source: DecodeError,
    },
    /// A picture could not be brought to size.
    #[error("golden picture {name}: {source}")]
    Preprocess {
        /// File name.
        name: String,
        /// Why.
        source: PreprocessError,
    },
    /// An expected vector is none.
    #[error("golden picture {name}: {source}")]
    Expected {
        /// File name.
        name: String,
        /// Why.
        source: EmbeddingError,
    },
    /// The encoder failed.
    #[error("the encoder failed on the golden pictures: {0}")]
    Embed(String),
    /// The encoder gave another number of vectors than pictures, or of another length.
    #[error("the encoder gave {actual} where {expected} was expected")]
    Shape {
        /// What had to come.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A vector is too far from the expected one.
    #[error(
        "golden picture {name} has cosine {cosine:.6} to its expected vector, below {min_cosine}: decode, resize or the runtime differs from the one that made this artefact"
    )]
    Differs {
        /// File name.
        name: String,
        /// What was found.
        cosine: f32,
        /// What is asked for.
        min_cosine: f32,
    },
}

impl Golden {
    /// The cosine that every golden picture must reach.
    pub const MIN_COSINE: f32 = 0.9999;

    /// Reads `golden/` of an artefact.
    ///
    /// # Errors
    /// Files that are missing or malformed.
    pub fn read(dir: &Path) -> Result<Self, GoldenError> {
        Err(GoldenError::Files { path: dir.display().to_string(), reason: String::new() })
    }

    /// Runs every picture through decode, `preprocess` and `embed`, and compares.
    ///
    /// # Errors
    /// The first thing that went wrong; see [`GoldenError`].
    pub fn check<E: std::fmt::Display>(
        &self,
        _embed: impl FnMut(&[Pixels]) -> Result<Vec<Embedding>, E>,
        _preprocess: &Preprocess,
        _min_cosine: f32,
    ) -> Result<GoldenReport, GoldenError> {
        Err(GoldenError::NoPictures)
    }
}
