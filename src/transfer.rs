//! Transfer: bodies under way from clients or to them. When there is no room for another one, the one that has kept the
//! most waiting for the longest gives its place up: clients that send or ask for much and then stop would otherwise keep
//! all others out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admission::{Admission, Overloaded, Permit};
use crate::roster::{Member, Presence, Roster};

/// Bytes that have to move for a body to be on its way, at the least, and the part of what it holds: what holds much has
/// to be quick, or it would never be done in time.
const STEP: usize = 16 << 10;
const PART: usize = 32;

/// How often one is asked for its place until there is room, and how long that takes.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_millis(20);

/// The bodies under way in one direction, and what they may hold together. Clones share them.
#[derive(Debug, Clone)]
pub struct Transfers {
    admission: Admission,
    slow: Duration,
    bodies: Roster<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Bytes that have a place in the server.
    held: usize,
    /// Bytes that moved since it was last on its way.
    moved: usize,
    /// How long its client was waited for since then, and since when it is.
    waited: Duration,
    waits: Option<Instant>,
}

impl Transfers {
    /// None yet; what they hold counts there. A body that did not move by 16 KiB, or a 32nd of what it
    /// holds, in a time of `slow` can be asked for its place.
    #[must_use]
    pub fn new(admission: Admission, slow: Duration) -> Self {
        Self { admission, slow, bodies: Roster::default() }
    }

    /// A body that is going to be read or written.
    #[must_use]
    pub fn begin(&self) -> Transfer {
        Transfer { body: self.bodies.join(Progress::default()), beside: self.clone() }
    }

    /// Where what they hold counts, perhaps beside other things.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// A place for so many bytes, once slow bodies have made room for it where they can.
    ///
    /// # Errors
    /// When the slow bodies hold too little, or giving way did not help.
    pub async fn admit(&self, bytes: usize) -> Result<Permit, Overloaded> {
        let mut place = self.admission.admit(0, 0)?;
        self.grow(&mut place, bytes).await?;
        Ok(place)
    }

    /// The same for so many bytes more.
    ///
    /// # Errors
    /// As [`Self::admit`]; the place keeps what it had.
    pub async fn grow(&self, place: &mut Permit, bytes: usize) -> Result<(), Overloaded> {
        let mut grown = place.grow(0, bytes);
        for _ in 0..TURNS {
            if grown.is_ok() || !self.make_room(bytes) {
                break;
            }
            tokio::time::sleep(TURN).await;
            grown = place.grow(0, bytes);
        }
        grown
    }

    /// Asks a slow body for its place where that helps to take in so many bytes; tells whether there is going to be room.
    pub fn make_room(&self, bytes: usize) -> bool {
        let cost = |progress: &Progress| progress.cost(self.slow);
        self.bodies.make_room(self.admission.missing(bytes), |progress| progress.held, cost)
    }
}

impl Progress {
    /// Bytes held times seconds waited, where that is long.
    fn cost(&self, slow: Duration) -> Option<f64> {
        let waited = self.waited + self.waits.map_or(Duration::ZERO, |since| since.elapsed());
        let slow = self.held > 0 && self.waits.is_some() && waited >= slow;
        slow.then_some(self.held as f64 * waited.as_secs_f64())
    }

    fn on_its_way(&mut self) {
        (self.moved, self.waited) = (0, Duration::ZERO);
        self.waits = self.waits.map(|_| Instant::now());
    }
}

/// A body under way, told of by who reads or writes it.
#[derive(Debug)]
pub struct Transfer {
    body: Presence<Progress>,
    beside: Transfers,
}

impl Transfer {
    /// Its client is waited for from now on, until what this gives is dropped.
    pub fn waits(&self) -> Waits {
        self.body.note(|progress| progress.waits = Some(Instant::now()));
        Waits(self.body.member().clone())
    }

    /// So many bytes came or went.
    pub fn moved(&self, bytes: usize) {
        self.body.note(|progress| {
            progress.moved += bytes;
            if progress.moved >= STEP.max(progress.held / PART) {
                progress.on_its_way();
            }
        });
    }

    /// A part of it that is of use by itself came whole.
    pub fn whole(&self) {
        self.body.note(Progress::on_its_way);
    }

    /// It takes so many bytes of the server.
    pub fn holds(&self, bytes: usize) {
        self.body.note(|progress| progress.held = bytes);
    }

    /// Waits until its place is asked for.
    pub async fn asked(&self) {
        self.body.asked().await;
    }

    /// The bodies that it is one of.
    #[must_use]
    pub fn beside(&self) -> &Transfers {
        &self.beside
    }
}

/// While it lives a client is waited for.
#[derive(Debug)]
pub struct Waits(Arc<Member<Progress>>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.note(|progress| {
            if let Some(since) = progress.waits.take() {
                progress.waited += since.elapsed();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const SLOW: Duration = Duration::from_secs(1);

    fn waited(body: &Transfer, seconds: u64) {
        body.body.note(|progress| progress.waited = Duration::from_secs(seconds));
    }

    #[tokio::test]
    async fn what_keeps_the_most_waiting_makes_room() {
        let admission = Admission::new(1, 100);
        let bodies = Transfers::new(admission.clone(), SLOW);
        let (small, large, busy) = (bodies.begin(), bodies.begin(), bodies.begin());
        let (_small, _large) = (small.waits(), large.waits());
        let held = admission.admit(0, 80).unwrap();
        for (body, bytes, seconds) in [(&small, 10, 9), (&large, 50, 5), (&busy, 20, 90)] {
            body.holds(bytes);
            waited(body, seconds);
        }
        let go = async {
            large.asked().await;
            drop((held, large));
        };
        let (room, ()) = tokio::join!(bodies.admit(50), go);
        let room = room.unwrap();
        // The next is the small one; then nobody is left, for nobody waits for the busy one.
        assert!(!bodies.make_room(61) && bodies.make_room(60));
        small.asked().await;
        let _full = admission.admit(0, 50).unwrap();
        assert!(bodies.admit(50).await.is_err());
        drop(room);
    }

    #[test]
    fn one_that_is_on_its_way_is_left_alone() {
        let admission = Admission::new(1, 1000);
        let bodies = Transfers::new(admission.clone(), SLOW);
        let body = bodies.begin();
        let waiting = body.waits();
        let _held = admission.admit(0, 1000).unwrap();
        body.holds(1000);
        let slow = |seconds| {
            waited(&body, seconds);
            body.body.note(|progress| progress.cost(SLOW).is_some())
        };
        assert!(!bodies.make_room(1) && slow(2));
        body.moved(STEP - 1);
        assert!(slow(2));
        body.moved(1);
        assert!(!bodies.make_room(1) && slow(2));
        body.holds(PART * (STEP + 5));
        body.moved(STEP + 4);
        assert!(slow(2));
        body.moved(1);
        assert!(!bodies.make_room(1) && slow(2));
        body.holds(1000);
        body.whole();
        assert!(!bodies.make_room(1) && slow(2));
        drop(waiting);
        assert!(!bodies.make_room(1));
        let _again = body.waits();
        assert!(bodies.make_room(1));
        drop(body);
        assert!(!bodies.make_room(1));
        assert_eq!(bodies.bodies.present(), 0);
    }
}
