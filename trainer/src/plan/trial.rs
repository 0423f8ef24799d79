//! A few real steps of a run's shape: how fast they are and how much memory a picture takes.

use std::sync::Arc;
use std::time::Instant;

use crate::config::RunConfig;
use crate::data::{DataError, Loader, LoaderConfig, PictureCache};
use crate::device::Place;
use crate::memory;
use crate::method::byol::{StepSettings, random_weights};
use crate::method::learner::{self, LearnerError, Start};
use crate::nn::weights::Weights;
use crate::train::AHEAD;

/// Pictures in the largest step that memory is measured with.
const MOST_MEASURED: usize = 32;
/// Pictures in the steps that are timed, at most.
const MOST_TIMED: usize = 128;
/// Steps that are timed, after one that is not.
const TIMED_STEPS: usize = 3;
/// Seconds that those may take; where they would take longer, the steps that memory was measured with are the measure.
const MOST_SECONDS: f64 = 15.0;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// Pictures a second, views rendered beside.
    pub images_per_s: f64,
    /// Bytes that the process holds whatever the batch; `None` where the system does not tell, or a GPU has the memory.
    pub fixed_bytes: Option<u64>,
    /// Bytes for each picture of a step.
    pub picture_bytes: u64,
}

/// One size of step.
#[derive(Clone, Copy, Debug)]
struct Tried {
    size: usize,
    peak: u64,
    images_per_s: f64,
}

/// Steps that could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The pictures.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The network or its device.
    #[error(transparent)]
    Learner(#[from] LearnerError),
}

/// What steps are tried on.
pub struct Bench {
    config: RunConfig,
    cache: Arc<PictureCache>,
    weights: Weights,
    place: Place,
    view_threads: usize,
}

impl Bench {
    /// For runs of that shape on those pictures.
    #[must_use]
    pub fn new(config: &RunConfig, cache: Arc<PictureCache>, place: Place, view_threads: usize) -> Self {
        let weights = random_weights(&config.encoder([0.5; 3], [0.25; 3]), config.heads, config.seed);
        Self { config: config.clone(), cache, weights, place, view_threads }
    }

    /// Measures speed and memory with steps that double in size, as long as twice as much stays below half of `bound`.
    ///
    /// # Errors
    /// What a step says.
    pub fn measure(&self, bound: Option<u64>) -> Result<Trial, TrialError> {
        let most = self.config.micro_batch().min(self.cache.len());
        if self.place != Place::Cpu || memory::peak().is_none() {
            let (images_per_s, _) = self.steps(most.min(MOST_TIMED), TIMED_STEPS)?;
            return Ok(Trial { images_per_s, fixed_bytes: None, picture_bytes: 0 });
        }
        let tried = self.grow(most, bound)?;
        let Some(Tried { size, peak, mut images_per_s }) = tried.last().copied() else {
            return Err(DataError::TooFewPictures { pictures: self.cache.len(), batch: 2 }.into());
        };
        // A folder of two pictures: what was held before is all that there is to compare with.
        let held = Tried { size: 0, peak: memory::resident().unwrap_or(0).min(peak), images_per_s };
        let before = tried.iter().rev().nth(1).copied().unwrap_or(held);
        let picture_bytes = peak.saturating_sub(before.peak) / (size - before.size).max(1) as u64;
        let fixed_bytes = peak.saturating_sub(picture_bytes * size as u64);
        let timed = most.min(MOST_TIMED);
        let fits = bound.is_none_or(|bound| fixed_bytes + picture_bytes * (timed as u64) < bound / 2);
        if timed > size && fits && timed as f64 / images_per_s * (TIMED_STEPS + 1) as f64 <= MOST_SECONDS {
            images_per_s = self.steps(timed, TIMED_STEPS)?.0;
        }
        Ok(Trial { images_per_s, fixed_bytes: Some(fixed_bytes), picture_bytes })
    }

    /// Steps of 2, 4, 8 … pictures, at least two of them, and none that might need more than half of `bound`.
    fn grow(&self, most: usize, bound: Option<u64>) -> Result<Vec<Tried>, TrialError> {
        let mut tried: Vec<Tried> = Vec::new();
        let mut size = 2;
        while size <= most {
            let (images_per_s, peak) = self.steps(size, 1)?;
            tried.push(Tried { size, peak, images_per_s });
            let next = (2 * size).min(most.min(MOST_MEASURED));
            let predicted = match tried.as_slice() {
                [.., before, last] => {
                    let picture = last.peak.saturating_sub(before.peak) / (last.size - before.size) as u64;
                    last.peak + picture * (next - size) as u64
                }
                _ => 0,
            };
            if next == size || bound.is_some_and(|bound| predicted > bound / 2) {
                break;
            }
            size = next;
        }
        Ok(tried)
    }

    /// The largest number of bytes held during a step of `size` pictures.
    ///
    /// # Errors
    /// What the step says.
    pub fn peak(&self, size: usize) -> Result<u64, TrialError> {
        Ok(self.steps(size, 0)?.1)
    }

    /// Pictures a second of the fastest of so many steps after a first one, and the peak of memory in them.
    fn steps(&self, size: usize, timed: usize) -> Result<(f64, u64), TrialError> {
        memory::reset_peak();
        let config = &self.config;
        let encoder = config.encoder([0.5; 3], [0.25; 3]);
        let start = Start {
            encoder: &encoder,
            heads: config.heads,
            lars: config.lars,
            online: &self.weights,
            target: None,
        };
        let mut learner = learner::open(self.place, false, &start)?;
        let loader = LoaderConfig {
            image_size: config.image_size,
            batch: size,
            held_out: 0,
            seed: config.seed,
            epochs: timed + 1,
            threads: self.view_threads,
            ahead: AHEAD,
            start_step: 0,
            mean: encoder.mean,
            std: encoder.std,
        };
        let mut loader = Loader::new(self.cache.clone(), config.views.clone(), loader)?;
        let settings = StepSettings { learning_rate: 0.0, tau: 1.0, accumulate: 1 };
        let (mut fastest, mut since) = (f64::MAX, Instant::now());
        for step in 0..=timed {
            let Some(batch) = loader.next_batch()? else { break };
            learner.step(&batch.view1, &batch.view2, settings)?;
            learner.finish()?;
            loader.recycle(batch);
            if step > 0 || timed == 0 {
                fastest = fastest.min(since.elapsed().as_secs_f64());
            }
            since = Instant::now();
        }
        Ok((size as f64 / fastest.max(1e-9), memory::peak().unwrap_or(0)))
    }
}
