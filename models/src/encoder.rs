//! The encoder: one ONNX Runtime session of an artefact.

use ndarray::{Array2, ArrayView4};

use crate::artefact::Artefact;
use crate::embedding::Embedding;
use crate::pixels::Pixels;
use crate::runtime::RuntimeError;

/// Where a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The CUDA GPU of this number.
    Cuda(i32),
}

/// How a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads inside one run. With one session per core, 1 is fastest.
    pub intra_threads: usize,
    /// Where it runs.
    pub device: Device,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { intra_threads: 1, device: Device::Cpu }
    }
}

/// What the graph must take and give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphShape {
    /// Rows of the input.
    pub height: u32,
    /// Columns of the input.
    pub width: u32,
    /// Length of the output.
    pub dim: usize,
}

/// An encoder that can embed.
pub struct Encoder {
    shape: GraphShape,
}

/// Why an encoder could not be opened or could not embed.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// No ONNX Runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// ONNX Runtime refused the model or the run.
    #[error("ONNX Runtime: {0}")]
    Ort(String),
    /// This build has no such device.
    #[error("this build has no {device}: build it with `--features {feature}`")]
    NotBuilt {
        /// The device.
        device: &'static str,
        /// The cargo feature.
        feature: &'static str,
    },
    /// The graph's input or output is not what an artefact's must be.
    #[error("the graph's {what} is {actual}, but must be {expected}")]
    Graph {
        /// Input or output.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// A picture of another size than the encoder takes.
    #[error("picture {index} is {width}x{height}, but the encoder takes {expected_width}x{expected_height}")]
    PictureSize {
        /// Position in the batch.
        index: usize,
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Columns of the encoder.
        expected_width: u32,
        /// Rows of the encoder.
        expected_height: u32,
    },
    /// The graph gave something that is no embedding.
    #[error("the graph gave no usable vector for picture {index}: {source}")]
    Output {
        /// Position in the batch.
        index: usize,
        /// Why.
        source: crate::embedding::EmbeddingError,
    },
}

impl Encoder {
    /// Opens a session of the artefact; loads ONNX Runtime when that has not been done.
    ///
    /// # Errors
    /// See [`EncoderError`].
    pub fn open(_artefact: &Artefact, _options: &SessionOptions) -> Result<Self, EncoderError> {
        Err(EncoderError::Ort(String::new()))
    }

    /// Opens a session of a graph in memory, e.g. before its artefact is written.
    ///
    /// # Errors
    /// See [`EncoderError`].
    pub fn from_onnx(
        _onnx: &[u8],
        _shape: GraphShape,
        _options: &SessionOptions,
    ) -> Result<Self, EncoderError> {
        Err(EncoderError::Ort(String::new()))
    }

    /// Length of an embedding.
    pub fn dim(&self) -> usize {
        self.shape.dim
    }

    /// Rows it takes.
    pub fn height(&self) -> u32 {
        self.shape.height
    }

    /// Columns it takes.
    pub fn width(&self) -> u32 {
        self.shape.width
    }

    /// Embeds pictures of exactly the encoder's size, in order, in one run. An empty batch gives nothing.
    ///
    /// # Errors
    /// See [`EncoderError`].
    pub fn embed(&mut self, _batch: &[Pixels]) -> Result<Vec<Embedding>, EncoderError> {
        Ok(Vec::new())
    }

    /// Embeds a batch of shape [B, height, width, 3]; gives the graph's output, shape [B, dim].
    ///
    /// # Errors
    /// See [`EncoderError`].
    pub fn embed_raw(&mut self, batch: ArrayView4<'_, u8>) -> Result<Array2<f32>, EncoderError> {
        Ok(Array2::zeros((batch.shape()[0], self.shape.dim)))
    }
}
