//! Train an image encoder on unlabelled pictures with BYOL and export it to ONNX.

pub mod augment;
pub mod checkpoint;
pub mod cli;
pub mod config;
#[cfg(feature = "cuda")]
mod cuda;
pub mod data;
pub mod device;
pub mod doctor;
pub mod encode;
pub mod eval;
pub mod events;
pub mod export;
pub mod init;
pub mod memory;
pub mod method;
pub mod monitor;
pub mod nn;
pub mod optim;
pub mod plan;
pub mod preset;
pub mod readout;
pub mod refresh;
pub mod report;
pub mod run;
pub mod subspace;
pub mod torchvision;
pub mod train;
pub mod whiten;
