//! Train an image encoder on unlabelled pictures with BYOL and export it to ONNX.

pub mod augment;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod doctor;
pub mod encode;
pub mod eval;
pub mod export;
pub mod method;
pub mod nn;
pub mod optim;
pub mod report;
pub mod run;
pub mod train;
pub mod whiten;
