//! Fake: a backend that waits, fails or panics as a test tells it to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use latentd::backend::{Backend, BackendError};
use latentd_model::{Embedding, Pixels};

/// What the fake does, and what it was asked.
#[derive(Clone, Default)]
pub struct Control {
    /// Each run takes this long.
    pub takes: Duration,
    /// Fails a run in which a picture's first byte is at least this; the picture alone is at fault.
    pub poison: Option<u8>,
    /// Panics instead of failing.
    pub panics: bool,
    /// Pictures embedded.
    pub embedded: Arc<AtomicUsize>,
    /// Pictures of the largest run.
    pub largest: Arc<AtomicUsize>,
}

struct Fake(Control, usize);

impl Control {
    /// A fake whose runs take `takes`.
    pub fn slow(takes: Duration) -> Self {
        Self { takes, ..Self::default() }
    }

    /// The backend.
    pub fn backend(&self, dim: usize) -> Box<dyn Backend> {
        Box::new(Fake(self.clone(), dim))
    }
}

impl Backend for Fake {
    fn embed(&mut self, batch: &[Pixels]) -> Result<Vec<Embedding>, BackendError> {
        let Self(control, dim) = self;
        std::thread::sleep(control.takes);
        control.largest.fetch_max(batch.len(), Ordering::SeqCst);
        let poisoned = |pixels: &Pixels| control.poison.is_some_and(|least| pixels.as_bytes()[0] >= least);
        if batch.iter().any(poisoned) {
            assert!(!control.panics, "poisoned");
            return Err(BackendError("poisoned".to_owned()));
        }
        control.embedded.fetch_add(batch.len(), Ordering::SeqCst);
        let vector = |pixels: &Pixels| {
            let numbers = (0..*dim).map(|i| 1.0 + f32::from(pixels.as_bytes()[i % pixels.as_bytes().len()]));
            Embedding::from_unnormalised(numbers.collect()).map_err(|error| BackendError(error.to_string()))
        };
        batch.iter().map(vector).collect()
    }
}
