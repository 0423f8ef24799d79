//! The token bucket: so many requests a second, and a burst of them at once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Fills at a rate up to its size; each request takes one token out.
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    size: f64,
    state: Mutex<(f64, Instant)>,
}

impl Bucket {
    /// A full bucket of `size` tokens that gains `rate` a second.
    #[must_use]
    pub fn new(rate: f64, size: u32, now: Instant) -> Self {
        let size = f64::from(size);
        Self { rate, size, state: Mutex::new((size, now)) }
    }

    /// Takes a token out.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock();
        let (tokens, since) = *state;
        let gained = self.rate * now.saturating_duration_since(since).as_secs_f64();
        let tokens = (tokens + gained).min(self.size);
        if tokens < 1.0 {
            *state = (tokens, now);
            let wait = ((1.0 - tokens) / self.rate).min(Self::LONGEST_WAIT);
            return Err(Duration::from_secs_f64(wait));
        }
        *state = (tokens - 1.0, now);
        Ok(())
    }

    /// What is said at most, in seconds.
    const LONGEST_WAIT: f64 = 86_400.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let bucket = Bucket::new(2.0, 3, start);
        let at = |ms| start + Duration::from_millis(ms);
        assert!((0..3).all(|_| bucket.take(at(0)).is_ok()));
        assert_eq!(bucket.take(at(0)), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(at(250)), Err(Duration::from_millis(250)));
        assert!(bucket.take(at(500)).is_ok() && bucket.take(at(501)).is_err());
        assert!((0..3).all(|_| bucket.take(at(60_000)).is_ok()) && bucket.take(at(60_000)).is_err());
    }
}
