//! Why an encoder could not be opened, or could not embed.

use super::Device;
use crate::runtime::RuntimeError;

/// Why an encoder could not be opened or could not embed.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// No ONNX Runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// ONNX Runtime refused the model or the run.
    #[error("ONNX Runtime: {0}")]
    Ort(String),
    /// The device cannot be used; nothing falls back silently.
    #[error(
        "{device} cannot be used ({reason}): it needs ONNX Runtime for GPUs (`latentd runtime install --gpu`), CUDA's and cuDNN's libraries{}, and a driver",
        if matches!(device, Device::TensorRt(_)) { ", those of TensorRT" } else { "" }
    )]
    Device {
        /// The device.
        device: Device,
        /// What ONNX Runtime said.
        reason: String,
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
