//! Trouble: why the disk takes no writes, as the last one told.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::StoreError;

/// How long what was seen counts before the disk is tried again.
pub const AGAIN: Duration = Duration::from_secs(2);

/// What the writer tells, for whoever asks whether writes are taken.
#[derive(Default)]
pub struct Trouble(Mutex<Option<Seen>>);

struct Seen {
    error: StoreError,
    tried: Instant,
}

impl Trouble {
    /// A write was kept.
    pub fn is_over(&self) {
        if self.0.lock().take().is_some() {
            tracing::info!("the store takes writes again");
        }
    }

    /// A write failed. Only what the disk is to blame for stands against the next one.
    pub fn note(&self, error: &StoreError) {
        if matches!(error, StoreError::Full { .. } | StoreError::Io { .. }) {
            *self.0.lock() = Some(Seen { error: error.clone(), tried: Instant::now() });
        }
    }

    /// Whether it is time to try the disk again; then the next to ask has to wait.
    pub fn is_to_be_tried(&self) -> bool {
        let mut seen = self.0.lock();
        let due = seen.as_mut().filter(|seen| seen.tried.elapsed() >= AGAIN);
        due.map(|seen| seen.tried = Instant::now()).is_some()
    }

    /// The trouble, if there is any.
    ///
    /// # Errors
    /// That of the last write.
    pub fn check(&self) -> Result<(), StoreError> {
        self.0.lock().as_ref().map_or(Ok(()), |seen| Err(seen.error.clone()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_lasts_until_a_write_is_kept() {
        let trouble = Trouble::default();
        trouble.note(&StoreError::Busy { what: "writes" });
        assert!(trouble.check().is_ok() && !trouble.is_to_be_tried());
        trouble.note(&StoreError::Full { dir: "/data".into() });
        trouble.note(&StoreError::Closed);
        assert_eq!(trouble.check().unwrap_err().code(), "storage_full");
        assert!(!trouble.is_to_be_tried(), "it was seen just now");
        trouble.0.lock().as_mut().unwrap().tried = Instant::now().checked_sub(AGAIN).unwrap();
        assert!(trouble.is_to_be_tried() && !trouble.is_to_be_tried(), "one at a time");
        assert!(trouble.check().is_err());
        trouble.is_over();
        assert!(trouble.check().is_ok() && !trouble.is_to_be_tried());
    }
}
