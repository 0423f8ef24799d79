//! Training on an NVIDIA GPU (cargo feature `cuda`).
//!
//! The same BYOL step as on the CPU: convolutions by cuDNN's graph API over channels-last maps, in
//! bf16 or TF32 on tensor cores, with sums, weights, statistics and the optimiser in f32; everything
//! else by our own kernels, which NVRTC compiles when the program starts. All libraries are loaded at
//! run time, so neither a build nor a start needs CUDA.

mod byol;
mod device;
mod encoder;
mod gpu;
#[cfg(test)]
mod host;
mod layout;
mod learner;
mod memory;
mod mlp;
mod sweeps;
mod tables;
#[cfg(test)]
mod tests;
mod unit;

pub use learner::{open, usable};
