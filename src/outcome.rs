//! Outcomes: an embedding and what it took, or why there is none.

use std::time::Duration;

use latentd_model::{DecodeError, Embedding, LoadError, PreprocessError};

use crate::admission::Overloaded;
use crate::store::ContentHash;

/// What the phases of one picture took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// The wait for a thread.
    pub wait: Duration,
    /// Decode and resize.
    pub decode: Duration,
    /// The wait for a session.
    pub queue: Duration,
    /// The run that it was in.
    pub inference: Duration,
    /// Pictures in that run; 0 where the vector was in the cache.
    pub batch: usize,
    /// Whether all of these are an equal picture's, which was there first.
    pub shared: bool,
}

/// An embedding and what it took.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// The vector.
    pub embedding: Embedding,
    /// What its phases took.
    pub timing: Timing,
    /// The hash of the file, where a cache asked for it.
    pub content: Option<ContentHash>,
}

/// What becomes of a picture.
pub type Outcome = Result<Embedded, EmbedError>;

/// Why a picture has no embedding.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EmbedError {
    /// The file is no usable picture.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The picture cannot be brought to the encoder's size.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The model failed on it.
    #[error("the model failed on this image: {0}")]
    Inference(String),
    /// The server is full.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// The server is ending.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// A defect of the server.
    #[error("the server failed on this image; its log says more")]
    Internal,
}

impl From<LoadError> for EmbedError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Decode(error) => error.into(),
            LoadError::Preprocess(error) => error.into(),
        }
    }
}

impl EmbedError {
    /// A stable code for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Decode(error) => error.code(),
            Self::Preprocess(_) => "preprocess_failed",
            Self::Inference(_) => "inference_failed",
            Self::Overloaded(_) => "overloaded",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal_error",
        }
    }
}
