//! What trains an encoder, on whichever device.

use super::byol::{Byol, HeadConfig, Snapshot, StepReport, StepSettings};
use super::part::PartError;
use crate::device::Place;
use crate::nn::config::{EncoderConfig, Norm};
use crate::nn::weights::Weights;
use crate::optim::lars::LarsConfig;

/// A step that could not be made, or a learner that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// The network or its weights.
    #[error(transparent)]
    Part(#[from] PartError),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The device asked for is not there, or refused.
    #[error("{place}: {reason}")]
    Device {
        /// Which.
        place: Place,
        /// What it said.
        reason: String,
    },
}

/// What a learner starts from.
pub struct Start<'a> {
    /// The encoder.
    pub encoder: &'a EncoderConfig,
    /// Projector and predictor.
    pub heads: HeadConfig,
    /// The optimiser's settings.
    pub lars: LarsConfig,
    /// Weights of the online network.
    pub online: &'a Weights,
    /// Weights of the target; those of the online network if there are none.
    pub target: Option<&'a Weights>,
}

/// Trains an encoder step by step, and holds all that is trained.
pub trait Learner {
    /// One update from two views of the same pictures, `[batch, size, size, 3]` each, normalised.
    ///
    /// Gives the reports of steps that are done and not yet reported, in their order: on the CPU
    /// this step's; a GPU runs behind, so its reports come some steps later.
    fn step(
        &mut self,
        view1: &[f32],
        view2: &[f32],
        settings: StepSettings,
    ) -> Result<Vec<StepReport>, LearnerError>;

    /// Waits until all steps are done, and gives the reports that [`Learner::step`] has not.
    fn finish(&mut self) -> Result<Vec<StepReport>, LearnerError>;

    /// What the online network makes of views `[rows, size, size, 3]`, normalised by its running
    /// statistics: representations `[rows, dim]` and projections `[rows, features]`.
    fn encode(&mut self, views: &[f32]) -> Result<(Vec<f32>, Vec<f32>), LearnerError>;

    /// All arrays as they are after the last step, for a checkpoint.
    fn snapshot(&mut self) -> Result<Snapshot, LearnerError>;

    /// Takes up the optimiser's velocity of a snapshot.
    fn restore_velocity(&mut self, velocity: &Weights) -> Result<(), LearnerError>;
}

impl Learner for Byol {
    fn step(
        &mut self,
        view1: &[f32],
        view2: &[f32],
        settings: StepSettings,
    ) -> Result<Vec<StepReport>, LearnerError> {
        Ok(vec![Byol::step(self, view1, view2, settings)?])
    }

    fn finish(&mut self) -> Result<Vec<StepReport>, LearnerError> {
        Ok(Vec::new())
    }

    fn encode(&mut self, views: &[f32]) -> Result<(Vec<f32>, Vec<f32>), LearnerError> {
        Ok(Byol::encode(self, views)?)
    }

    fn snapshot(&mut self) -> Result<Snapshot, LearnerError> {
        Ok(Byol::snapshot(self)?)
    }

    fn restore_velocity(&mut self, velocity: &Weights) -> Result<(), LearnerError> {
        Ok(Byol::restore_velocity(self, velocity)?)
    }
}

/// A learner at that place, in the encoder's precision; with `tune`, a GPU times its ways to do each
/// convolution first.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only a GPU is tuned"))]
pub fn open(place: Place, tune: bool, start: &Start) -> Result<Box<dyn Learner>, LearnerError> {
    if place != Place::Cpu && start.encoder.norm != Norm::Batch {
        let reason = "gn-ws is trained on the CPU only so far: use --device cpu, or --norm batch".into();
        return Err(LearnerError::Device { place, reason });
    }
    match place {
        Place::Cpu => {
            Ok(Box::new(Byol::new(start.encoder, start.heads, start.lars, start.online, start.target)?))
        }
        #[cfg(feature = "cuda")]
        Place::Cuda(number) => crate::cuda::open(number, tune, start),
        #[cfg(not(feature = "cuda"))]
        Place::Cuda(_) => {
            let reason = "this program was built without `--features cuda`".into();
            Err(LearnerError::Device { place, reason })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::method::byol::random_weights;
    use crate::nn::config::Arch;

    #[test]
    fn what_a_gpu_cannot_train_is_refused_with_a_way_out() {
        let encoder = EncoderConfig { norm: Norm::GnWs, ..EncoderConfig::new(Arch::Resnet18, 0.125, 16) };
        let heads = HeadConfig::new(16, 8);
        let online = random_weights(&encoder, heads, 1);
        let lars = LarsConfig::default();
        let start = Start { encoder: &encoder, heads, lars, online: &online, target: None };
        let error = open(Place::Cuda(0), false, &start).err().unwrap();
        assert!(error.to_string().contains("--device cpu"), "{error}");
        assert!(open(Place::Cpu, false, &start).is_ok());
    }
}
