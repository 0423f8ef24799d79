//! A GPU as the trainer's learner.

use super::byol::{DeviceByol, OpenError};
use super::device::CudaError;
use super::gpu::{self, Gpu};
use crate::device::Place;
use crate::method::byol::{Snapshot, StepReport, StepSettings};
use crate::method::learner::{Learner, LearnerError, Start};
use crate::method::part::PartError;
use crate::nn::weights::Weights;

/// The name of GPU `number`, or in one line why it cannot be used.
pub fn usable(number: usize) -> Result<String, String> {
    gpu::find(number).map(|found| found.name).map_err(|error| error.to_string())
}

/// A run on GPU `number`; with `tune`, its convolutions are timed first.
pub fn open(number: usize, tune: bool, start: &Start) -> Result<Box<dyn Learner>, LearnerError> {
    let place = Place::Cuda(number);
    let precision = start.encoder.precision.into();
    let open = || DeviceByol::new(Gpu::new(gpu::find(number)?, precision, tune)?, start);
    let byol = open().map_err(|error| refused(place, error))?;
    Ok(Box::new(CudaLearner { byol, place }))
}

fn refused(place: Place, error: OpenError) -> LearnerError {
    match error {
        OpenError::Weights(error) => PartError::from(error).into(),
        OpenError::Device(CudaError(reason)) => LearnerError::Device { place, reason },
    }
}

struct CudaLearner {
    byol: DeviceByol<Gpu>,
    place: Place,
}

impl CudaLearner {
    fn device<T>(&self, result: Result<T, CudaError>) -> Result<T, LearnerError> {
        result.map_err(|CudaError(reason)| LearnerError::Device { place: self.place, reason })
    }
}

impl Learner for CudaLearner {
    fn step(
        &mut self,
        view1: &[f32],
        view2: &[f32],
        settings: StepSettings,
    ) -> Result<Vec<StepReport>, LearnerError> {
        let reports = self.byol.step(view1, view2, settings);
        self.device(reports)
    }

    fn finish(&mut self) -> Result<Vec<StepReport>, LearnerError> {
        self.device(self.byol.finish())
    }

    fn encode(&mut self, views: &[f32]) -> Result<(Vec<f32>, Vec<f32>), LearnerError> {
        self.device(self.byol.encode(views))
    }

    fn snapshot(&mut self) -> Result<Snapshot, LearnerError> {
        self.device(self.byol.snapshot())
    }

    fn restore_velocity(&mut self, velocity: &Weights) -> Result<(), LearnerError> {
        self.byol.restore_velocity(velocity).map_err(|error| refused(self.place, error))
    }
}
