//! Train an image encoder on unlabelled pictures with BYOL and export it to ONNX.

pub mod augment;
pub mod data;
pub mod eval;
pub mod export;
pub mod nn;
pub mod report;
