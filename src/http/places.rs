//! Places: how many connections there may be. When all are taken, the one that has been idle longest gives its own up, so
//! that nobody is kept out by connections that only stay open.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::response::Response;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::mapped::mapped;

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
    seats: Mutex<HashMap<u64, Arc<Seat>>>,
    next: AtomicU64,
}

impl Places {
    /// So many.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(most));
        Arc::new(Self { free, most, seats: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// Connections that have one.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.seats.lock().len()
    }

    /// Waits for a place; meanwhile idle connections are asked for theirs, one after another.
    pub async fn take(self: &Arc<Self>) -> Place {
        let permit = loop {
            if self.free.available_permits() == 0 {
                self.ask();
            }
            let free = self.free.clone().acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(PATIENCE, free).await {
                break permit;
            }
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let seat = Arc::new(Seat::new());
        self.seats.lock().insert(number, seat.clone());
        Place { seat, number, places: self.clone(), _permit: permit }
    }

    /// Waits until all connections have ended.
    pub async fn all_free(&self) {
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        // It is never closed.
        let _ = self.free.acquire_many(all).await;
    }

    fn ask(&self) {
        let seats = self.seats.lock();
        let idle = |seat: &Arc<Seat>| seat.idle().map(|idle| (idle, seat.clone()));
        if let Some((_, seat)) = seats.values().filter_map(idle).max_by_key(|(idle, _)| *idle) {
            seat.usage.lock().asked = true;
            seat.asked.notify_one();
        }
    }
}

/// The place of a connection, given back when dropped.
#[derive(Debug)]
pub struct Place {
    /// What the connection does.
    pub seat: Arc<Seat>,
    number: u64,
    places: Arc<Places>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.seats.lock().remove(&self.number);
    }
}

/// What a connection does, told by itself.
#[derive(Debug)]
pub struct Seat {
    usage: Mutex<Usage>,
    asked: Notify,
}

#[derive(Debug)]
struct Usage {
    working: bool,
    since: Instant,
    /// No request has come yet.
    new: bool,
    asked: bool,
}

impl Seat {
    fn new() -> Self {
        let usage = Usage { working: false, since: Instant::now(), new: true, asked: false };
        Self { usage: Mutex::new(usage), asked: Notify::new() }
    }

    /// Its first request may come from now on.
    pub fn begin(&self) {
        self.usage.lock().since = Instant::now();
    }

    /// A request has come; it is answered once what this gives is dropped.
    pub fn work(self: &Arc<Self>) -> Working {
        let mut usage = self.usage.lock();
        (usage.working, usage.new) = (true, false);
        Working(self.clone())
    }

    /// Whether no request has come yet.
    pub fn is_new(&self) -> bool {
        self.usage.lock().new
    }

    /// Waits until the connection is asked for its place.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// For how long there was nothing to do, where that is long; none when it was asked already.
    fn idle(&self) -> Option<Duration> {
        let usage = self.usage.lock();
        let least = if usage.new { IDLE_NEW } else { IDLE };
        let idle = (!usage.working && !usage.asked).then(|| usage.since.elapsed());
        idle.filter(|idle| *idle >= least)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Working(Arc<Seat>);

impl Working {
    /// Goes on until the reply's body was taken, too.
    #[must_use]
    pub fn until_taken(self, reply: Response) -> Response {
        reply.map(|body| {
            mapped(body, move |piece| {
                let _until_then = &self;
                piece
            })
        })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut usage = self.0.usage.lock();
        (usage.working, usage.since) = (false, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rested(place: &Place, seconds: u64) {
        let since = Instant::now().checked_sub(Duration::from_secs(seconds));
        place.seat.usage.lock().since = since.unwrap();
    }

    #[tokio::test]
    async fn the_longest_idle_is_asked_for_its_place() {
        let places = Places::new(3);
        let (busy, old, older) = (places.take().await, places.take().await, places.take().await);
        let work = busy.seat.work();
        rested(&busy, 90);
        rested(&old, 20);
        rested(&older, 30);
        assert!(old.seat.is_new() && !busy.seat.is_new());
        let go = async {
            older.seat.asked().await;
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
            other.seat.asked().await;
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
