//! A trained encoder as a function from pictures to embeddings.

use std::sync::Arc;

use latentd_model::{Embedding, Pixels};

use crate::nn::buffer::Pool;
use crate::nn::config::EncoderConfig;
use crate::nn::differentiable::Differentiable;
use crate::nn::kernels::precision::Precision;
use crate::nn::layout::Layout;
use crate::nn::resnet::ResNet;
use crate::nn::unit::{Mode, State};
use crate::nn::weights::{Weights, WeightsError};
use crate::whiten::Whitening;

/// Pictures that one forward pass takes.
const BATCH: usize = 64;

/// An encoder with its weights, in evaluation mode.
pub struct PictureEncoder {
    net: ResNet,
    params: Vec<f32>,
    statistics: Vec<f32>,
    whitening: Option<Whitening>,
    pool: Arc<Pool>,
}

/// A picture that cannot be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The weights are of another network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Of another size than the encoder's.
    #[error("a picture of {found:?} pixels where the encoder takes {expected}×{expected}")]
    Size {
        /// Its height and width.
        found: (u32, u32),
        /// The encoder's side.
        expected: usize,
    },
    /// The representation has no direction.
    #[error("the encoder gives a representation of zeros or of no numbers: its weights are broken")]
    Representation,
}

impl PictureEncoder {
    /// An encoder from its configuration and weights (which may hold more).
    pub fn new(config: &EncoderConfig, weights: &Weights) -> Result<Self, EncodeError> {
        // What was trained in bfloat16 is measured and exported in f32, as it will be served.
        let precision = config.precision.min(Precision::High);
        let net = ResNet::new(&EncoderConfig { precision, ..config.clone() })?;
        let params = net.params().flatten(weights)?;
        let statistics = net.statistics().flatten(weights)?;
        let whitening = Whitening::of(weights, config.dim());
        Ok(Self { net, params, statistics, whitening, pool: Arc::default() })
    }

    /// The encoder's part of weights that hold more.
    pub fn weights_of(config: &EncoderConfig, weights: &Weights) -> Result<Weights, EncodeError> {
        let net = ResNet::new(config)?;
        let mut own = Weights::default();
        for layout in [net.params(), net.statistics()] as [&Layout; 2] {
            layout.unflatten(&layout.flatten(weights)?, &mut own);
        }
        Ok(own)
    }

    /// The same encoder with this last step.
    pub fn set_whitening(&mut self, whitening: Option<Whitening>) {
        self.whitening = whitening;
    }

    /// L2-normalised representations, whitened where that was fitted, of pictures of exactly the
    /// encoder's size.
    pub fn embed(&mut self, pictures: &[Pixels]) -> Result<Vec<Embedding>, EncodeError> {
        let mut embeddings = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(BATCH) {
            let input = self.normalised(batch)?;
            let mut state = State {
                params: &self.params,
                statistics: &mut self.statistics,
                mode: Mode::Eval,
                pool: &self.pool,
                record: false,
            };
            let (rows, _) = self.net.forward(&mut state, &input);
            for row in rows.chunks_exact(self.net.output_dim()) {
                let representation = Embedding::from_unnormalised(row.to_vec());
                let embedding = representation.and_then(|r| match &self.whitening {
                    Some(whitening) => whitening.apply(&r),
                    None => Ok(r),
                });
                embeddings.push(embedding.map_err(|_| EncodeError::Representation)?);
            }
        }
        Ok(embeddings)
    }

    fn normalised(&self, pictures: &[Pixels]) -> Result<Vec<f32>, EncodeError> {
        let config = self.net.config();
        let expected = config.image_size;
        let mut input = Vec::with_capacity(pictures.len() * expected * expected * 3);
        for picture in pictures {
            let found = (picture.height(), picture.width());
            if found != (expected as u32, expected as u32) {
                return Err(EncodeError::Size { found, expected });
            }
            let channels = picture.as_bytes().iter().enumerate();
            input.extend(
                channels.map(|(i, p)| (f32::from(*p) / 255.0 - config.mean[i % 3]) / config.std[i % 3]),
            );
        }
        Ok(input)
    }
}
