//! Flights: of equal pictures that are in the server at the same time, one is embedded and the others wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use latentd_model::ImageBytes;
use parking_lot::Mutex;

use super::{Inner, Seen};
use crate::admission::Permit;
use crate::cache::CacheKey;
use crate::fair::Flow;
use crate::outcome::{Embedded, Outcome, Timing};
use crate::reply::Reply;

/// A picture on its way to the pool.
pub(super) struct Task {
    pub flow: Flow,
    pub image: ImageBytes,
    pub seen: Option<Seen>,
    /// Held until the file was decoded.
    pub body: Option<Arc<Permit>>,
    /// Whether its vector may come from the cache.
    pub cached: bool,
    pub reply: Reply,
    pub since: Instant,
}

/// The pictures that wait for an equal one, by that one's key.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<CacheKey, Vec<Task>>>);

impl Flights {
    /// Lets the task wait for an equal picture's flight, or gives it back: with a flight of its own where there is
    /// none, without one where it has to be decoded anyway.
    pub fn join(inner: &Arc<Inner>, key: CacheKey, mut task: Task) -> Option<Task> {
        let mut flights = inner.flights.0.lock();
        match flights.get_mut(&key) {
            Some(waiting) if task.seen.is_none() => {
                waiting.push(task);
                return None;
            }
            Some(_) => {}
            None => {
                flights.insert(key, Vec::new());
                let flight = Flight { inner: Some(inner.clone()), key };
                task.reply.before(move |outcome| flight.land(outcome));
            }
        }
        Some(task)
    }

    /// Takes out the pictures of a flow that wait for others, and gives their number.
    pub fn cancel(&self, flow: Flow) -> usize {
        let mut left = Vec::new();
        for waiting in self.0.lock().values_mut() {
            left.extend(waiting.extract_if(.., |task| task.flow == flow));
        }
        left.len()
    }

    fn end(&self, key: &CacheKey) -> Vec<Task> {
        self.0.lock().remove(key).unwrap_or_default()
    }
}

/// The picture that others wait for.
struct Flight {
    /// Taken when it lands.
    inner: Option<Arc<Inner>>,
    key: CacheKey,
}

impl Flight {
    /// Keeps the vector and answers those that wait.
    fn land(mut self, outcome: &Outcome) {
        let Some(inner) = self.inner.take() else { return };
        // First the cache, so that an equal picture finds the one or the other.
        if let (Some(cache), Ok(embedded)) = (&inner.cache, outcome) {
            cache.insert(self.key, embedded.embedding.clone());
        }
        let waiting = inner.flights.end(&self.key);
        inner.admission.finished(waiting.len());
        let shared = |embedded: &Embedded| Embedded {
            timing: Timing { shared: true, ..embedded.timing },
            ..embedded.clone()
        };
        for task in waiting {
            if let Some(cache) = &inner.cache {
                cache.hit();
            }
            task.reply.send(outcome.as_ref().map(shared).map_err(Clone::clone));
        }
    }
}

impl Drop for Flight {
    /// A client that leaves does not take along those that waited for its picture: they try again.
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        for task in inner.flights.end(&self.key) {
            inner.spawn(task);
        }
    }
}
