//! Admission: what may be inside the server at once, counted in pictures and in bytes of their bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The server holds as much as it may; the client should come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server is at its limit of work in hand; try again in {} s", retry_after.as_secs())]
pub struct Overloaded {
    /// How long the work in hand takes at the rate measured lately.
    pub retry_after: Duration,
}

/// Counts what is inside against its bounds. Clones share one count.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    images: AtomicUsize,
    bytes: AtomicUsize,
    max_images: usize,
    max_bytes: usize,
    rate: Mutex<Rate>,
}

impl Admission {
    /// Bounds of `max_images` pictures and `max_bytes` bytes.
    #[must_use]
    pub fn new(max_images: usize, max_bytes: usize) -> Self {
        let (images, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let rate = Mutex::new(Rate::new(Instant::now()));
        Self(Arc::new(Inner { images, bytes, max_images, max_bytes, rate }))
    }

    /// Takes in `images` pictures and `bytes` bytes, until the permit is dropped.
    ///
    /// # Errors
    /// [`Overloaded`] when either bound would be passed; nothing is taken then.
    pub fn admit(&self, images: usize, bytes: usize) -> Result<Permit, Overloaded> {
        let mut permit = Permit { admission: self.clone(), images: 0, bytes: 0, beside: Vec::new() };
        permit.grow(images, bytes)?;
        Ok(permit)
    }

    /// Pictures inside now.
    #[must_use]
    pub fn images(&self) -> usize {
        self.0.images.load(Ordering::Relaxed)
    }

    /// Bytes inside now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that would have to go, for so many more to have a place.
    #[must_use]
    pub fn missing(&self, bytes: usize) -> usize {
        self.bytes().saturating_add(bytes).saturating_sub(self.0.max_bytes)
    }

    /// Notes that `images` pictures were finished, for the measured rate.
    pub fn finished(&self, images: usize) {
        self.0.rate.lock().add(Instant::now(), images);
    }

    /// How long the work in hand takes at the measured rate: 1 s to 60 s.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let rate = self.0.rate.lock().per_second(Instant::now());
        let seconds = if rate > 0.0 { (self.images() as f64 / rate).ceil() } else { 1.0 };
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0))
    }

    fn overloaded(&self) -> Overloaded {
        Overloaded { retry_after: self.retry_after() }
    }
}

/// A place inside the server; dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    admission: Admission,
    images: usize,
    bytes: usize,
    beside: Vec<Arc<Permit>>,
}

impl Permit {
    /// Takes in more under the same permit.
    ///
    /// # Errors
    /// [`Overloaded`] when a bound would be passed; the permit keeps what it had.
    pub fn grow(&mut self, images: usize, bytes: usize) -> Result<(), Overloaded> {
        let inner = &self.admission.0;
        if !take(&inner.images, images, inner.max_images) {
            return Err(self.admission.overloaded());
        }
        if !take(&inner.bytes, bytes, inner.max_bytes) {
            inner.images.fetch_sub(images, Ordering::Relaxed);
            return Err(self.admission.overloaded());
        }
        self.images += images;
        self.bytes += bytes;
        Ok(())
    }

    /// Takes over what other permits hold.
    pub fn absorb(&mut self, others: impl IntoIterator<Item = Self>) {
        for mut other in others {
            self.images += std::mem::take(&mut other.images);
            self.bytes += std::mem::take(&mut other.bytes);
            self.beside.append(&mut other.beside);
        }
    }

    /// Hands so many of its bytes, or all where it has fewer, over to a permit of their own.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { admission: self.admission.clone(), images: 0, bytes, beside: Vec::new() }
    }

    /// Keeps another permit as long as this one.
    pub fn keep(&mut self, other: Arc<Self>) {
        self.beside.push(other);
    }

    /// Bytes held by this permit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let inner = &self.admission.0;
        inner.images.fetch_sub(self.images, Ordering::Relaxed);
        inner.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn take(count: &AtomicUsize, amount: usize, max: usize) -> bool {
    let add = |now: usize| now.checked_add(amount).filter(|&sum| sum <= max);
    amount == 0 || count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
}

/// Pictures finished in the current and the previous window.
#[derive(Debug)]
struct Rate {
    start: Instant,
    now: usize,
    before: f64,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(2);

    fn new(start: Instant) -> Self {
        Self { start, now: 0, before: 0.0 }
    }

    fn add(&mut self, at: Instant, images: usize) {
        self.roll(at);
        self.now += images;
    }

    fn per_second(&mut self, at: Instant) -> f64 {
        self.roll(at);
        let elapsed = at.duration_since(self.start).as_secs_f64();
        let current = self.now as f64 / elapsed.max(0.1);
        if elapsed < Self::WINDOW.as_secs_f64() / 2.0 && self.before > 0.0 { self.before } else { current }
    }

    fn roll(&mut self, at: Instant) {
        let elapsed = at.duration_since(self.start);
        if elapsed >= Self::WINDOW {
            self.before = self.now as f64 / elapsed.as_secs_f64();
            (self.start, self.now) = (at, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_given_back_and_bounds_hold() {
        let admission = Admission::new(2, 100);
        let mut first = admission.admit(1, 60).unwrap();
        assert!(admission.admit(0, 41).is_err());
        assert_eq!((admission.missing(40), admission.missing(41), admission.missing(90)), (0, 1, 50));
        assert!(admission.admit(2, 0).is_err());
        assert_eq!((admission.images(), admission.bytes()), (1, 60));
        assert!(first.grow(0, 41).is_err());
        first.grow(1, 40).unwrap();
        assert!(admission.admit(usize::MAX, 0).is_err());
        let mut all = admission.admit(0, 0).unwrap();
        all.absorb([first]);
        assert_eq!((admission.images(), admission.bytes(), all.bytes()), (2, 100, 100));
        let shared = Arc::new(all);
        let mut last = admission.admit(0, 0).unwrap();
        last.keep(shared);
        assert_eq!(admission.bytes(), 100);
        drop(last);
        assert_eq!((admission.images(), admission.bytes()), (0, 0));
    }

    #[test]
    fn a_part_of_a_permit_is_given_back_alone() {
        let admission = Admission::new(1, 100);
        let mut permit = admission.admit(1, 60).unwrap();
        let part = permit.split(40);
        assert_eq!((admission.bytes(), permit.bytes(), part.bytes()), (60, 20, 40));
        drop(part);
        assert_eq!((admission.images(), admission.bytes()), (1, 20));
        drop(permit.split(usize::MAX));
        assert_eq!((admission.images(), admission.bytes()), (1, 0));
        drop(permit);
        assert_eq!((admission.images(), admission.bytes()), (0, 0));
    }

    #[test]
    fn the_rate_follows_what_was_finished() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for tenth in 0..20 {
            rate.add(start + Duration::from_millis(100 * tenth), 10);
        }
        let measured = rate.per_second(start + Duration::from_millis(2000));
        assert!((90.0..=110.0).contains(&measured), "{measured}");
    }
}
