//! What can go wrong while an encoder is evaluated.

use thiserror::Error;

use super::subject::EmbedError;
use crate::data::DataError;

/// An error of the evaluation; its text says what to do.
#[derive(Debug, Error)]
pub enum EvalError {
    /// The labelled folder could not be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The numbers given do not fit together.
    #[error("{0}")]
    Shape(String),
    /// A subject could not embed.
    #[error("{subject}: embedding failed: {source}")]
    Embed {
        /// Name of the subject.
        subject: String,
        /// Its own error.
        source: EmbedError,
    },
    /// A matrix operation failed.
    #[error("matrix arithmetic: {0}")]
    Matrix(#[from] candle_core::Error),
    /// The caller asked to stop.
    #[error("stopped on request")]
    Cancelled,
}
