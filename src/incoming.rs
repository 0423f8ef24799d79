//! Incoming: bodies that are being read. When there is no room for another one, the one that has kept the most waiting
//! for the longest gives its place up: clients that send much and then stop would otherwise keep all others out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::admission::Overloaded;

/// Bytes that have to come for a body to be on its way.
const STEP: usize = 16 << 10;

/// How long a body may wait for so much before its place can be asked for.
const SLOW: Duration = Duration::from_secs(1);

/// How often one is asked for its place until there is room, and how long that takes.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_millis(20);

/// The bodies that are being read. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Incoming(Arc<Bodies>);

#[derive(Debug, Default)]
struct Bodies {
    all: Mutex<HashMap<u64, Arc<Body>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Body {
    progress: Mutex<Progress>,
    asked: Notify,
}

#[derive(Debug, Default)]
struct Progress {
    /// Bytes that have a place in the server.
    held: usize,
    /// Bytes that came since it was last on its way.
    came: usize,
    /// How long it was waited for since then, and since when it is.
    waited: Duration,
    waits: Option<Instant>,
    asked: bool,
}

impl Incoming {
    /// A body that is going to be read.
    #[must_use]
    pub fn arrival(&self) -> Arrival {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let body = Arc::new(Body { progress: Mutex::default(), asked: Notify::new() });
        self.0.all.lock().insert(number, body.clone());
        Arrival { body, number, incoming: self.clone() }
    }

    /// What `take` gives, once slow bodies have made room for it where they can: as much as `missing` says each time.
    ///
    /// # Errors
    /// What `take` gives where the slow bodies hold too little, or giving way did not help.
    pub async fn room<T>(
        &self,
        missing: impl Fn() -> usize,
        mut take: impl FnMut() -> Result<T, Overloaded>,
    ) -> Result<T, Overloaded> {
        let mut taken = take();
        for _ in 0..TURNS {
            if taken.is_ok() || !self.ask(missing()) {
                break;
            }
            tokio::time::sleep(TURN).await;
            taken = take();
        }
        taken
    }

    /// Asks a slow body for its place, where all of them together hold as many bytes as are missing; tells whether it did.
    pub fn ask(&self, missing: usize) -> bool {
        let all = self.0.all.lock();
        let slow = |body: &Arc<Body>| {
            let progress = body.progress.lock();
            progress.cost().map(|cost| (cost, progress.held, body.clone()))
        };
        let slow: Vec<_> = all.values().filter_map(slow).collect();
        // Otherwise they would give way in vain.
        if slow.iter().map(|(_, held, _)| held).sum::<usize>() < missing {
            return false;
        }
        let Some((_, _, body)) = slow.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)) else { return false };
        body.progress.lock().asked = true;
        body.asked.notify_one();
        true
    }
}

impl Progress {
    /// Bytes held times seconds waited, where that is long.
    fn cost(&self) -> Option<f64> {
        let waited = self.waited + self.waits.map_or(Duration::ZERO, |since| since.elapsed());
        let slow = !self.asked && self.held > 0 && self.waits.is_some() && waited >= SLOW;
        slow.then_some(self.held as f64 * waited.as_secs_f64())
    }

    fn on_its_way(&mut self) {
        (self.came, self.waited) = (0, Duration::ZERO);
        self.waits = self.waits.map(|_| Instant::now());
    }
}

/// A body on its way in, told of by who reads it.
#[derive(Debug)]
pub struct Arrival {
    body: Arc<Body>,
    number: u64,
    incoming: Incoming,
}

impl Arrival {
    /// Its client is waited for from now on, until what this gives is dropped.
    pub fn waits(&self) -> Waits<'_> {
        self.body.progress.lock().waits = Some(Instant::now());
        Waits(&self.body)
    }

    /// So many bytes came.
    pub fn came(&self, bytes: usize) {
        let mut progress = self.body.progress.lock();
        progress.came += bytes;
        if progress.came >= STEP {
            progress.on_its_way();
        }
    }

    /// A part of it that is of use by itself came whole.
    pub fn whole(&self) {
        self.body.progress.lock().on_its_way();
    }

    /// It takes so many bytes of the server.
    pub fn holds(&self, bytes: usize) {
        self.body.progress.lock().held = bytes;
    }

    /// Waits until its place is asked for.
    pub async fn asked(&self) {
        self.body.asked.notified().await;
    }

    /// The bodies that it is one of.
    #[must_use]
    pub fn incoming(&self) -> &Incoming {
        &self.incoming
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.incoming.0.all.lock().remove(&self.number);
    }
}

/// While it lives a client is waited for.
#[derive(Debug)]
pub struct Waits<'a>(&'a Body);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut progress = self.0.progress.lock();
        if let Some(since) = progress.waits.take() {
            progress.waited += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;

    fn waited(arrival: &Arrival, seconds: u64) {
        arrival.body.progress.lock().waited = Duration::from_secs(seconds);
    }

    #[tokio::test]
    async fn what_keeps_the_most_waiting_makes_room() {
        let (admission, incoming) = (Admission::new(1, 100), Incoming::default());
        let take = || admission.admit(0, 50);
        let (small, large, busy) = (incoming.arrival(), incoming.arrival(), incoming.arrival());
        let (_small, _large) = (small.waits(), large.waits());
        let held = admission.admit(0, 80).unwrap();
        for (arrival, bytes, seconds) in [(&small, 10, 9), (&large, 50, 5), (&busy, 20, 90)] {
            arrival.holds(bytes);
            waited(arrival, seconds);
        }
        let go = async {
            large.asked().await;
            drop(held);
        };
        let (room, ()) = tokio::join!(incoming.room(|| admission.missing(50), take), go);
        let room = room.unwrap();
        // The next is the small one; then nobody is left, for nobody waits for the busy one.
        assert!(!incoming.ask(11) && incoming.ask(10));
        small.asked().await;
        assert!(!incoming.ask(0));
        let _full = admission.admit(0, 50).unwrap();
        assert!(incoming.room(|| admission.missing(50), take).await.is_err());
        drop(room);
    }

    #[test]
    fn one_that_is_on_its_way_is_left_alone() {
        let incoming = Incoming::default();
        let arrival = incoming.arrival();
        let waiting = arrival.waits();
        arrival.holds(1000);
        assert!(!incoming.ask(0));
        waited(&arrival, 2);
        arrival.came(STEP - 1);
        assert!(arrival.body.progress.lock().cost().is_some());
        arrival.came(1);
        assert!(!incoming.ask(0));
        waited(&arrival, 2);
        arrival.whole();
        assert!(!incoming.ask(0));
        waited(&arrival, 2);
        drop(waiting);
        assert!(!incoming.ask(0));
        let _again = arrival.waits();
        assert!(incoming.ask(0) && !incoming.ask(0));
        drop(_again);
        drop(arrival);
        assert!(incoming.0.all.lock().is_empty());
    }
}
