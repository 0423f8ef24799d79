//! Train an image encoder on unlabelled pictures with BYOL and export it to ONNX.

pub mod export;
pub mod nn;
