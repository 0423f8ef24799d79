//! Places: how many connections there may be. When all are taken, the one that has been idle longest gives its own up, so
//! that nobody is kept out by connections that only stay open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::guarded::guarded;
use crate::roster::{Member, Presence, Roster};

/// Shortest time without a request after which a connection is idle: its client is hardly about to send one just then.
const IDLE: Duration = Duration::from_secs(1);

/// The same for one that had no request yet: hands are shaken first, and a head may be on its way.
const IDLE_NEW: Duration = Duration::from_secs(3);

/// How long to wait for one that was asked to go, before the next is.
const PATIENCE: Duration = Duration::from_millis(100);

/// The places of a server's connections.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    most: usize,
    seats: Roster<Usage>,
}

impl Places {
    /// So many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), most, seats: Roster::default() }
    }

    /// Connections that have one.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.seats.present()
    }

    /// Waits for a place; meanwhile idle connections are asked for theirs, one after another.
    pub async fn take(&self) -> Place {
        let permit = loop {
            if self.free.available_permits() == 0 {
                self.seats.ask(Usage::idle);
            }
            let free = self.free.clone().acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(PATIENCE, free).await {
                break permit;
            }
        };
        let new = Usage { working: false, since: Instant::now(), new: true };
        Place { seat: self.seats.join(new), _permit: permit }
    }

    /// Waits until all connections have ended.
    pub async fn all_free(&self) {
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        // It is never closed.
        let _ = self.free.acquire_many(all).await;
    }
}

/// The place of a connection, given back when dropped.
#[derive(Debug)]
pub struct Place {
    seat: Presence<Usage>,
    _permit: OwnedSemaphorePermit,
}

/// What a connection does, told by itself.
#[derive(Debug)]
struct Usage {
    working: bool,
    since: Instant,
    /// No request has come yet.
    new: bool,
}

impl Usage {
    /// For how long there was nothing to do, where that is long.
    fn idle(&self) -> Option<Duration> {
        let least = if self.new { IDLE_NEW } else { IDLE };
        let idle = (!self.working).then(|| self.since.elapsed());
        idle.filter(|idle| *idle >= least)
    }
}

impl Place {
    /// Its first request may come from now on.
    pub fn begin(&self) {
        self.seat.note(|usage| usage.since = Instant::now());
    }

    /// A request has come; it is answered once what this gives is dropped.
    pub fn work(&self) -> Working {
        self.seat.note(|usage| (usage.working, usage.new) = (true, false));
        Working(self.seat.member().clone())
    }

    /// Whether no request has come yet.
    pub fn is_new(&self) -> bool {
        self.seat.note(|usage| usage.new)
    }

    /// Waits until the connection is asked for its place.
    pub async fn asked(&self) {
        self.seat.asked().await;
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Working(Arc<Member<Usage>>);

impl Working {
    /// Goes on until the reply's body was taken, too.
    #[must_use]
    pub fn until_taken(self, reply: Response) -> Response {
        reply.map(|body| guarded(body, self))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.note(|usage| (usage.working, usage.since) = (false, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rested(place: &Place, seconds: u64) {
        let since = Instant::now().checked_sub(Duration::from_secs(seconds));
        place.seat.note(|usage| usage.since = since.unwrap());
    }

    #[tokio::test]
    async fn the_longest_idle_is_asked_for_its_place() {
        let places = Places::new(3);
        let (busy, old, older) = (places.take().await, places.take().await, places.take().await);
        let work = busy.work();
        rested(&busy, 90);
        rested(&old, 20);
        rested(&older, 30);
        assert!(old.is_new() && !busy.is_new());
        let go = async {
            older.asked().await;
            drop(older);
        };
        let (fourth, ()) = tokio::join!(places.take(), go);
        assert_eq!(places.taken(), 3);
        drop((busy, work, old, fourth));
        places.all_free().await;
        assert_eq!(places.taken(), 0);
    }

    #[tokio::test]
    async fn one_that_does_not_go_is_not_waited_for() {
        let places = Places::new(2);
        let (stubborn, other) = (places.take().await, places.take().await);
        rested(&stubborn, 30);
        rested(&other, 20);
        let go = async {
            other.asked().await;
            drop(other);
        };
        let (_third, ()) = tokio::join!(places.take(), go);
        // Those that work, or have just done so, are not asked.
        let waiting = tokio::time::timeout(Duration::from_millis(300), places.take());
        assert!(waiting.await.is_err());
        drop(stubborn);
        places.take().await;
    }
}
