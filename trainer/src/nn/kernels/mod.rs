//! CPU kernels over channels-last f32 maps.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub mod conv;
pub mod geometry;

pub mod norm;
pub mod pool;
pub mod precision;
pub mod simd;
pub mod standardise;
mod tile;
