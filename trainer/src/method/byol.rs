//! BYOL: Bootstrap Your Own Latent (Grill et al. 2020).
//!
//! An online network (encoder, projector, predictor) learns to predict, from one view of a
//! picture, what a target network (encoder, projector) makes of another view. The target is a
//! moving average of the online network and gets no gradient.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::loss;
use super::part::{Part, PartError};
use crate::nn::buffer::Pool;
use crate::nn::config::EncoderConfig;
use crate::nn::differentiable::{Differentiable, with_values};
use crate::nn::mlp::{Mlp, MlpShape};
use crate::nn::resnet::ResNet;
use crate::nn::unit::Mode;
use crate::nn::weights::Weights;
use crate::optim::ema;
use crate::optim::lars::{Lars, LarsConfig};

/// Sizes of projector and predictor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Features of the hidden layers (paper: 4096).
    pub hidden: usize,
    /// Features of projections and predictions (paper: 256).
    pub projection: usize,
}

/// Fresh weights of an online network: encoder, projector, predictor.
pub fn random_weights(encoder: &EncoderConfig, heads: HeadConfig, seed: u64) -> Weights {
    let mut weights = Weights::random(encoder, seed);
    let HeadConfig { hidden, projection: output } = heads;
    let projector = MlpShape { input: encoder.dim(), hidden, output };
    let predictor = MlpShape { input: output, hidden, output };
    weights.0.extend(projector.random("projector", seed ^ 0x7072_6f6a).0);
    weights.0.extend(predictor.random("predictor", seed ^ 0x7072_6564).0);
    weights
}

struct Network {
    encoder: Part<ResNet>,
    projector: Part<Mlp>,
}

impl Network {
    /// (representations, projections), `[rows, …]` each.
    fn forward(
        &self,
        views: &Tensor,
        mode: Mode,
        pool: &Arc<Pool>,
        record: bool,
    ) -> Result<(Tensor, Tensor)> {
        let representation = self.encoder.forward(views, mode, pool, record)?;
        let projection = self.projector.forward(&representation, mode, pool, record)?;
        Ok((representation, projection))
    }
}

/// The settings that change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSettings {
    /// Learning rate.
    pub learning_rate: f64,
    /// τ of the target's moving average.
    pub tau: f64,
}

/// What a step saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The symmetric loss, 0 to 8.
    pub loss: f64,
    /// Spread of the online representations: see [`representation_std`].
    pub representation_std: f64,
}

/// Everything that a BYOL run trains.
pub struct Byol {
    online: Network,
    predictor: Part<Mlp>,
    target: Network,
    optimisers: [Lars; 3],
    pool: Arc<Pool>,
}

/// A run's arrays by name, as a checkpoint holds them.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Encoder, projector, predictor.
    pub online: Weights,
    /// Encoder, projector.
    pub target: Weights,
    /// The optimiser's velocity of every trained online array.
    pub velocity: Weights,
}

impl Byol {
    /// A run from online weights, with the target as given or equal to the online network.
    pub fn new(
        encoder: &EncoderConfig,
        heads: HeadConfig,
        lars: LarsConfig,
        online: &Weights,
        target: Option<&Weights>,
    ) -> std::result::Result<Self, PartError> {
        let HeadConfig { hidden, projection: output } = heads;
        let resnet = Arc::new(ResNet::new(encoder)?);
        let projector = MlpShape { input: encoder.dim(), hidden, output };
        let projector = Arc::new(Mlp::new(projector, "projector")?);
        let predictor = Arc::new(Mlp::new(MlpShape { input: output, hidden, output }, "predictor")?);
        let network = |weights: &Weights| -> std::result::Result<Network, PartError> {
            Ok(Network { encoder: Part::new(&resnet, weights)?, projector: Part::new(&projector, weights)? })
        };
        let optimisers =
            [resnet.params(), projector.params(), predictor.params()].map(|layout| Lars::new(lars, layout));
        Ok(Self {
            online: network(online)?,
            predictor: Part::new(&predictor, online)?,
            target: network(target.unwrap_or(online))?,
            optimisers,
            pool: Arc::default(),
        })
    }

    /// One update from two views of the same pictures, `[batch, size, size, 3]` each, normalised.
    pub fn step(&mut self, view1: &[f32], view2: &[f32], settings: StepSettings) -> Result<StepReport> {
        let views = self.both_views(view1, view2)?;
        let rows = views.dim(0)?;
        let mode = Mode::Train { views: 2 };
        let (_, projection) = self.target.forward(&views, mode, &self.pool, false)?;
        // Each view's prediction meets the other view's projection.
        let half = rows / 2;
        let projection =
            Tensor::cat(&[projection.narrow(0, half, half)?, projection.narrow(0, 0, half)?], 0)?;
        let (representation, online) = self.online.forward(&views, mode, &self.pool, true)?;
        let prediction = self.predictor.forward(&online, mode, &self.pool, true)?;
        // The mean over both directions' rows, times two: the sum of the two directions' means.
        let loss = (loss::regression(&prediction, &projection)? * 2.0)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let spread = with_values(&representation, |r| representation_std(r, rows))?;
        drop(representation);
        let mut gradients = loss.backward()?;
        let params = [self.online.encoder.params(), self.online.projector.params(), self.predictor.params()];
        for (var, lars) in params.into_iter().zip(&self.optimisers) {
            let Some(gradient) = gradients.remove(var) else {
                candle_core::bail!("a part of the network got no gradient");
            };
            lars.step(var.as_tensor(), &gradient, settings.learning_rate)?;
        }
        let online = [self.online.encoder.params(), self.online.projector.params()];
        let target = [self.target.encoder.params(), self.target.projector.params()];
        for (target, online) in target.into_iter().zip(online) {
            ema::update(target.as_tensor(), online.as_tensor(), settings.tau)?;
        }
        Ok(StepReport { loss: value, representation_std: spread })
    }

    fn both_views(&self, view1: &[f32], view2: &[f32]) -> Result<Tensor> {
        let size = self.online.encoder.net().config().image_size;
        let picture = size * size * 3;
        if view1.len() != view2.len() || view1.is_empty() || !view1.len().is_multiple_of(picture) {
            candle_core::bail!("two views of the same pictures, {size}×{size}×3 values each, are needed");
        }
        let mut both = Vec::with_capacity(2 * view1.len());
        both.extend_from_slice(view1);
        both.extend_from_slice(view2);
        Tensor::from_vec(both, (2 * view1.len() / picture, size, size, 3), &Device::Cpu)
    }

    /// All arrays, for a checkpoint.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (mut online, mut target, mut velocity) =
            (Weights::default(), Weights::default(), Weights::default());
        self.online.encoder.save(&mut online)?;
        self.online.projector.save(&mut online)?;
        self.predictor.save(&mut online)?;
        self.target.encoder.save(&mut target)?;
        self.target.projector.save(&mut target)?;
        for (layout, lars) in self.layouts().into_iter().zip(&self.optimisers) {
            layout.unflatten(&lars.velocity(), &mut velocity);
        }
        Ok(Snapshot { online, target, velocity })
    }

    /// Takes up the optimiser's velocity of a snapshot.
    pub fn restore_velocity(&mut self, velocity: &Weights) -> std::result::Result<(), PartError> {
        for (layout, lars) in self.layouts().into_iter().zip(&self.optimisers) {
            lars.set_velocity(layout.flatten(velocity)?);
        }
        Ok(())
    }

    fn layouts(&self) -> [&crate::nn::layout::Layout; 3] {
        [
            self.online.encoder.net().params(),
            self.online.projector.net().params(),
            self.predictor.net().params(),
        ]
    }
}

/// Mean over dimensions of the standard deviation of L2-normalised rows, times √dimensions.
///
/// 1 when the rows point in all directions alike, 0 when all are the same: Chen and He's measure
/// of collapse ("Exploring Simple Siamese Representation Learning", 2020, section 4.1).
pub fn representation_std(rows: &[f32], count: usize) -> f64 {
    let dim = rows.len() / count.max(1);
    if dim == 0 {
        return 0.0;
    }
    let (mut sum, mut square) = (vec![0f64; dim], vec![0f64; dim]);
    for row in rows.chunks_exact(dim) {
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        for ((s, q), x) in sum.iter_mut().zip(&mut square).zip(row) {
            let x = f64::from(*x) / norm;
            *s += x;
            *q += x * x;
        }
    }
    let n = count as f64;
    let std = sum.iter().zip(&square).map(|(s, q)| (q / n - (s / n).powi(2)).max(0.0).sqrt());
    std.sum::<f64>() / dim as f64 * (dim as f64).sqrt()
}

#[cfg(test)]
mod tests;
