//! Layers and networks: everything a model is made of, behind which the kernels can change.

pub mod buffer;
pub mod clock;
pub mod config;
pub mod differentiable;
pub mod kernels;
pub mod layout;
pub mod mlp;
pub mod resnet;
pub mod unit;
pub mod weights;
