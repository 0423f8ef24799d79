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
use crate::nn::clock::{Phase, time};
use crate::nn::config::EncoderConfig;
use crate::nn::differentiable::{Differentiable, with_values};
use crate::nn::layout::Layout;
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
    /// Whether there is a predictor. Without one, and with tau = 0, BYOL collapses (Grill et al.
    /// 2020, table 5): for showing that, not for training.
    #[serde(default = "yes")]
    pub predictor: bool,
}

fn yes() -> bool {
    true
}

impl HeadConfig {
    /// Projector and predictor of those sizes.
    pub const fn new(hidden: usize, projection: usize) -> Self {
        Self { hidden, projection, predictor: true }
    }

    pub(crate) fn projector_shape(&self, encoder: &EncoderConfig) -> MlpShape {
        MlpShape {
            input: encoder.dim(),
            hidden: self.hidden,
            output: self.projection,
            precision: encoder.precision,
            norm: encoder.norm,
        }
    }

    pub(crate) fn predictor_shape(&self, encoder: &EncoderConfig) -> MlpShape {
        MlpShape { input: self.projection, ..self.projector_shape(encoder) }
    }
}

/// Fresh weights of an online network: encoder, projector, predictor.
pub fn random_weights(encoder: &EncoderConfig, heads: HeadConfig, seed: u64) -> Weights {
    let mut weights = Weights::random(encoder, seed);
    weights.0.extend(heads.projector_shape(encoder).random("projector", seed ^ 0x7072_6f6a).0);
    if heads.predictor {
        weights.0.extend(heads.predictor_shape(encoder).random("predictor", seed ^ 0x7072_6564).0);
    }
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
    /// Parts that the batch is cut into, one after the other in memory: the update is by the mean of
    /// their gradients. Each part's batch norms see that part alone.
    pub accumulate: usize,
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
    predictor: Option<Part<Mlp>>,
    target: Network,
    /// Of encoder, projector and predictor.
    optimisers: Vec<Lars>,
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
        let resnet = Arc::new(ResNet::new(encoder)?);
        let projector = Arc::new(Mlp::new(heads.projector_shape(encoder), "projector")?);
        let predictor = match heads.predictor {
            true => {
                Some(Part::new(&Arc::new(Mlp::new(heads.predictor_shape(encoder), "predictor")?), online)?)
            }
            false => None,
        };
        let network = |weights: &Weights| -> std::result::Result<Network, PartError> {
            Ok(Network { encoder: Part::new(&resnet, weights)?, projector: Part::new(&projector, weights)? })
        };
        let mut byol = Self {
            online: network(online)?,
            predictor,
            target: network(target.unwrap_or(online))?,
            optimisers: Vec::new(),
            pool: Arc::default(),
        };
        byol.optimisers = byol.layouts().into_iter().map(|layout| Lars::new(lars, layout)).collect();
        Ok(byol)
    }

    /// One update from two views of the same pictures, `[batch, size, size, 3]` each, normalised.
    pub fn step(&mut self, view1: &[f32], view2: &[f32], settings: StepSettings) -> Result<StepReport> {
        let parts = settings.accumulate;
        let (picture, pictures) = self.count(view1, view2)?;
        if parts == 0 || !pictures.is_multiple_of(parts) {
            candle_core::bail!("a batch of {pictures} pictures cannot be cut into {parts} equal parts");
        }
        let len = pictures / parts * picture;
        self.clear_gradients();
        let mut report = StepReport { loss: 0.0, representation_std: 0.0 };
        for (view1, view2) in view1.chunks_exact(len).zip(view2.chunks_exact(len)) {
            let part = self.gradients(view1, view2, parts)?;
            report.loss += part.loss / parts as f64;
            report.representation_std += part.representation_std / parts as f64;
        }
        time(Phase::Update, || self.update(settings))?;
        Ok(report)
    }

    /// Loss of one of so many parts of a batch; adds its gradients, divided by `parts`.
    fn gradients(&self, view1: &[f32], view2: &[f32], parts: usize) -> Result<StepReport> {
        let views = self.both_views(view1, view2)?;
        let rows = views.dim(0)?;
        let mode = Mode::Train { views: 2 };
        let (_, projection) = self.target.forward(&views, mode, &self.pool, false)?;
        // Each view's prediction meets the other view's projection.
        let half = rows / 2;
        let projection =
            Tensor::cat(&[projection.narrow(0, half, half)?, projection.narrow(0, 0, half)?], 0)?;
        let (representation, online) = self.online.forward(&views, mode, &self.pool, true)?;
        let prediction = match &self.predictor {
            Some(predictor) => predictor.forward(&online, mode, &self.pool, true)?,
            None => online,
        };
        // The mean over both directions' rows, times two: the sum of the two directions' means.
        let loss = (loss::regression(&prediction, &projection)? * 2.0)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let representation_std = with_values(&representation, |r| representation_std(r, rows))?;
        drop(representation);
        (loss / parts as f64)?.backward()?;
        Ok(StepReport { loss: value, representation_std })
    }

    /// What the online network makes of views `[rows, size, size, 3]`, normalised by its running
    /// statistics: representations `[rows, dim]` and projections `[rows, features]`.
    pub fn encode(&self, views: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let (_, rows) = self.count(views, views)?;
        let size = self.online.encoder.net().config().image_size;
        let views = Tensor::from_slice(views, (rows, size, size, 3), &Device::Cpu)?;
        let (representation, projection) = self.online.forward(&views, Mode::Eval, &self.pool, false)?;
        let flat = |t: Tensor| t.flatten_all()?.to_vec1();
        Ok((flat(representation)?, flat(projection)?))
    }

    fn clear_gradients(&self) {
        self.online.encoder.clear_gradients();
        self.online.projector.clear_gradients();
        self.predictor.iter().for_each(Part::clear_gradients);
    }

    /// One step of the optimiser with the gradients added up since they were cleared, and of the
    /// target towards the online network.
    fn update(&self, StepSettings { learning_rate, tau, .. }: StepSettings) -> Result<()> {
        let mut optimisers = self.optimisers.iter();
        optimisers.next().map_or(Ok(()), |o| self.online.encoder.update(o, learning_rate))?;
        optimisers.next().map_or(Ok(()), |o| self.online.projector.update(o, learning_rate))?;
        self.predictor.iter().zip(optimisers).try_for_each(|(part, o)| part.update(o, learning_rate))?;
        let online = [self.online.encoder.params(), self.online.projector.params()];
        let target = [self.target.encoder.params(), self.target.projector.params()];
        let mut both = target.into_iter().zip(online);
        both.try_for_each(|(target, online)| ema::update(target.as_tensor(), online.as_tensor(), tau))
    }

    /// Values of a picture, and how many pictures two equally long views hold.
    fn count(&self, view1: &[f32], view2: &[f32]) -> Result<(usize, usize)> {
        let size = self.online.encoder.net().config().image_size;
        let picture = size * size * 3;
        if view1.len() != view2.len() || view1.is_empty() || !view1.len().is_multiple_of(picture) {
            candle_core::bail!("two views of the same pictures, {size}×{size}×3 values each, are needed");
        }
        Ok((picture, view1.len() / picture))
    }

    fn both_views(&self, view1: &[f32], view2: &[f32]) -> Result<Tensor> {
        let size = self.online.encoder.net().config().image_size;
        let (_, pictures) = self.count(view1, view2)?;
        let mut both = Vec::with_capacity(2 * view1.len());
        both.extend_from_slice(view1);
        both.extend_from_slice(view2);
        Tensor::from_vec(both, (2 * pictures, size, size, 3), &Device::Cpu)
    }

    /// All arrays, for a checkpoint.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (mut online, mut target, mut velocity) =
            (Weights::default(), Weights::default(), Weights::default());
        self.online.encoder.save(&mut online)?;
        self.online.projector.save(&mut online)?;
        if let Some(predictor) = &self.predictor {
            predictor.save(&mut online)?;
        }
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

    fn layouts(&self) -> Vec<&Layout> {
        let network = [self.online.encoder.net().params(), self.online.projector.net().params()];
        network.into_iter().chain(self.predictor.as_ref().map(|p| p.net().params())).collect()
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
