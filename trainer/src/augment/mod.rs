//! The random views of a picture that BYOL compares: crop, flip, colour jitter, greyscale, blur, solarise.
//!
//! Grill et al., "Bootstrap your own latent", 2020, appendix B and table 6; where the paper is silent the
//! authors' published code decides (clipping after every colour operation, additive brightness, contrast about
//! each channel's mean, saturation and hue in HSV). Our only departure: the blur mirrors the picture at its
//! border, where theirs pads with black, which draws a dark frame around every view.

pub mod blur;
pub mod colour;
pub mod config;
pub mod plan;
pub mod render;
pub mod resample;

pub use config::{Preset, ViewConfig, Views};
pub use plan::ViewPlan;
pub use render::{Scratch, render, render_plan};
