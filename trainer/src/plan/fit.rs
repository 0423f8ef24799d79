//! How many pictures fit into memory at a time, and the batch cut into parts so that they do.

use super::trial::{Bench, Trial, TrialError};
use crate::config::RunConfig;
use crate::train::AHEAD;

/// What a step needs, as far as a trial tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Need {
    fixed: u64,
    /// For each picture of the part in work.
    part_picture: u64,
    /// For each picture of the whole batch: its views, of the batches that are rendered ahead and the one in work.
    batch_picture: u64,
}

/// Memory that does not suffice.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// Not even two pictures at a time.
    #[error(
        "a step needs {needed} MiB even with parts of {part} pictures, and {bound} MiB may be used: take a smaller \
         --image-size, --width or --batch, or raise --memory-mib"
    )]
    Memory {
        /// MiB needed.
        needed: u64,
        /// Pictures of the smallest part.
        part: usize,
        /// MiB allowed.
        bound: u64,
    },
    /// A trial step failed.
    #[error(transparent)]
    Trial(#[from] TrialError),
}

/// Share of the bound up to which a prediction is trusted; beyond it a real step is tried.
const TRUSTED: f64 = 0.5;

impl Need {
    /// Out of a trial of that configuration's shape; `None` where no memory was measured.
    #[must_use]
    pub fn of(trial: &Trial, config: &RunConfig) -> Option<Self> {
        let view = (config.image_size * config.image_size * 3 * 4) as u64;
        let batch_picture = 2 * view * (AHEAD as u64 + 2);
        // In the trial the part was the batch.
        let part_picture = trial.picture_bytes.saturating_sub(batch_picture).max(2 * view);
        Some(Self { fixed: trial.fixed_bytes?, part_picture, batch_picture })
    }

    /// Bytes for a batch of which `part` pictures are in work at a time.
    #[must_use]
    pub fn bytes(&self, batch: usize, part: usize) -> u64 {
        self.fixed + self.part_picture * part as u64 + self.batch_picture * batch as u64
    }
}

/// Cuts the batch into more parts until a step fits into `bound` bytes, and gives what it needs then.
///
/// The batch stays what it is. Where the prediction comes near the bound, a step of a part is tried.
///
/// # Errors
/// When the smallest parts do not fit.
pub fn fit(config: &mut RunConfig, need: Need, bound: u64, bench: &Bench) -> Result<u64, FitError> {
    let wanted = config.accumulate;
    // Numbers of parts that divide the batch evenly, each part at least two pictures.
    let parts = (wanted..=config.batch / 2).filter(|parts| config.batch.is_multiple_of(*parts));
    let (mut needed, mut last) = (0, config.micro_batch());
    for accumulate in parts {
        let part = config.batch / accumulate;
        (needed, last) = (need.bytes(config.batch, part), part);
        if needed > bound {
            continue;
        }
        if needed as f64 > TRUSTED * bound as f64 {
            let beside = need.batch_picture * (config.batch - part) as u64;
            needed = needed.max(bench.peak(part)? + beside);
            if needed > bound {
                continue;
            }
        }
        config.accumulate = accumulate;
        return Ok(needed);
    }
    Err(FitError::Memory { needed: needed >> 20, part: last, bound: bound >> 20 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use latentd_model::Pixels;

    use super::*;
    use crate::data::PictureCache;
    use crate::device::Place;

    fn bench(config: &RunConfig) -> Bench {
        let pictures = (0..64u8).map(|i| Pixels::new(20, 20, vec![i; 1200]).unwrap());
        let cache = Arc::new(PictureCache::from_pictures(pictures).unwrap());
        Bench::new(config, cache, Place::Cpu, 1)
    }

    fn config() -> RunConfig {
        RunConfig { width: 0.125, image_size: 16, batch: 64, ..RunConfig::default() }
    }

    #[test]
    fn parts_shrink_until_they_fit_and_the_batch_stays() {
        let need = Need { fixed: 1000 << 20, part_picture: 10 << 20, batch_picture: 1 << 20 };
        let mut cut = config();
        let bench = bench(&cut);
        // 1064 MiB and 10 a picture: parts of 64 and 32 are too large.
        let needed = fit(&mut cut, need, 1300 << 20, &bench).unwrap();
        assert_eq!((cut.batch, cut.accumulate, needed >> 20), (64, 4, 1224));
        let mut whole = config();
        fit(&mut whole, need, 8000 << 20, &bench).unwrap();
        assert_eq!(whole.accumulate, 1);
        let error = fit(&mut config(), need, 1080 << 20, &bench).unwrap_err().to_string();
        assert!(
            error.contains("1084 MiB even with parts of 2 pictures") && error.contains("1080 MiB"),
            "{error}"
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_trial_predicts_the_memory_of_a_larger_step() {
        let config = RunConfig { image_size: 64, width: 0.25, ..config() };
        let bench = bench(&config);
        let trial = bench.measure(None).unwrap();
        assert!(trial.images_per_s > 0.0);
        let need = Need::of(&trial, &config).unwrap();
        let (predicted, found) = (need.bytes(64, 64) as f64, bench.peak(64).unwrap() as f64);
        assert!((predicted / found - 1.0).abs() < 0.3, "{predicted} {found}");
    }
}
