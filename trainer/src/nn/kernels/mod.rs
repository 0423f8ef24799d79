//! CPU kernels over channels-last f32 maps.

pub mod conv;
pub mod geometry;
pub mod simd;
mod tile;
