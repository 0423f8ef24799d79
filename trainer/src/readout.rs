//! The readout: how an embedding comes out of a trained encoder's last map, without training.
//!
//! BYOL trains the mean over the whole map. What serves may keep more: means over the cells of a grid tell where in the
//! picture something was, which matters where pictures show one thing framed alike; whitening then weighs directions
//! and keeps the leading ones, so that the vector need not grow.

use crate::encode::{EncodeError, PictureEncoder};
use crate::nn::config::EncoderConfig;
use crate::nn::weights::Weights;
use crate::whiten::Whitening;

/// An encoder's shape with its readout fitted.
#[derive(Debug, Clone)]
pub struct Readout {
    /// The trained network, with the grid that its last map is averaged in.
    pub encoder: EncoderConfig,
    /// What follows the representation.
    pub whitening: Option<Whitening>,
}

impl Readout {
    /// The trained network's own representation.
    pub fn plain(encoder: &EncoderConfig) -> Self {
        Self { encoder: encoder.clone(), whitening: None }
    }

    /// Dimensions of an embedding.
    pub fn dim(&self) -> usize {
        self.whitening.as_ref().map_or(self.encoder.dim(), Whitening::output_dim)
    }

    /// The encoder with weights, of which those of a whitening count nothing.
    ///
    /// # Errors
    /// Weights of another network.
    pub fn encoder(&self, weights: &Weights) -> Result<PictureEncoder, EncodeError> {
        let mut encoder = PictureEncoder::new(&self.encoder, weights)?;
        encoder.set_whitening(self.whitening.clone());
        Ok(encoder)
    }
}
