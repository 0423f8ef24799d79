//! CPU kernels over channels-last f32 maps.

pub mod conv;
pub mod geometry;

pub mod norm;
pub mod pool;
pub mod simd;
mod tile;
