//! Layers and networks: everything a model is made of, behind which the kernels can change.

pub mod config;
pub mod kernels;
pub mod weights;
