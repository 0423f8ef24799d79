//! What an encoder is: its manifest, contract, pixels, golden check and ONNX Runtime session.
//!
//! The server and the trainer both use this crate, so that a picture becomes the same
//! pixels, and the pixels the same embedding, on both sides.

pub mod artefact;
pub mod compare;
pub mod contract;
pub mod decode;
pub mod digest;
pub mod distribution;
pub mod eigen;
pub mod embedding;
pub mod encoder;
pub mod gallery;
pub mod golden;
pub mod manifest;
pub mod neighbours;
pub mod onnx;
pub mod pixels;
pub mod preprocess;
pub mod quantise;
pub mod reference;
pub mod revise;
pub mod runtime;
pub mod spread;
#[cfg(test)]
mod tiny_onnx;
pub mod verify;

pub use artefact::{
    Artefact, ArtefactDraft, ArtefactError, compute_contract, write_artefact, write_artefact_with,
};
pub use compare::{CompareError, Comparison, PictureChange, compare};
pub use contract::Contract;
pub use decode::{
    Colour, DecodeError, DecodeLimits, Decoding, ImageBytes, ImageKind, decode, decode_alone, sniff,
};
pub use distribution::{Distribution, DistributionError};
pub use embedding::{Embedding, EmbeddingError};
pub use encoder::{Device, Encoder, EncoderError, GraphShape, SessionOptions, WarmRun};
pub use golden::{Golden, GoldenError, GoldenPicture, GoldenReport};
pub use manifest::{DataFingerprint, EvaluationFigure, Manifest, OutputSpec, Training};
pub use pixels::{Pixels, PixelsError, fitted};
pub use preprocess::{Filter, LoadError, Preprocess, PreprocessError, ResizePolicy};
pub use reference::{Reference, ReferenceError};
pub use runtime::{RuntimeError, RuntimeInfo};
pub use verify::verify;
