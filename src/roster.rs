//! Roster: those that hold something of the server's, any of whom can be asked to give it up when others want it.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How long one that was asked counts as about to go.
const GOING: Duration = Duration::from_secs(1);

/// Who is present. Clones share one roster.
#[derive(Debug)]
pub struct Roster<T>(Arc<Mutex<List<T>>>);

#[derive(Debug)]
struct List<T> {
    all: HashMap<u64, Arc<Member<T>>>,
    next: u64,
}

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(List { all: HashMap::new(), next: 0 })))
    }
}

impl<T> Clone for Roster<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Roster<T> {
    /// One more, doing this at first; present until what this gives is dropped.
    #[must_use]
    pub fn join(&self, does: T) -> Presence<T> {
        let member = Arc::new(Member {
            does: Mutex::new(does),
            asked: CancellationToken::new(),
            asked_at: OnceLock::new(),
        });
        let mut list = self.0.lock();
        let number = list.next;
        list.next += 1;
        list.all.insert(number, member.clone());
        drop(list);
        Presence { member, number, roster: self.clone() }
    }

    /// How many are present.
    #[must_use]
    pub fn present(&self) -> usize {
        self.0.lock().all.len()
    }

    /// Asks the one that costs the most to go, among those that `cost` gives something for and that were not asked yet.
    pub fn ask<C: PartialOrd>(&self, cost: impl Fn(&T) -> Option<C>) {
        self.0.lock().ask(cost);
    }

    /// Has one asked as [`Self::ask`] does, unless those that were asked and are about to go `hold` as much as is missing,
    /// or all that could be asked hold too little; tells whether there is going to be room.
    pub fn make_room<C: PartialOrd>(
        &self,
        missing: usize,
        holds: impl Fn(&T) -> usize,
        cost: impl Fn(&T) -> Option<C>,
    ) -> bool {
        let list = self.0.lock();
        let (mut going, mut left) = (0usize, 0usize);
        for member in list.all.values() {
            let does = member.does.lock();
            match member.asked_at.get() {
                Some(since) if since.elapsed() < GOING => going += holds(&does),
                None if cost(&does).is_some() => left += holds(&does),
                _ => {}
            }
        }
        if going >= missing {
            return true;
        }
        // Otherwise they would go in vain.
        let enough = going + left >= missing;
        if enough {
            list.ask(cost);
        }
        enough
    }
}

impl<T> List<T> {
    fn ask<C: PartialOrd>(&self, cost: impl Fn(&T) -> Option<C>) {
        let mut costliest: Option<(C, &Member<T>)> = None;
        for member in self.all.values().filter(|member| member.asked_at.get().is_none()) {
            let Some(cost) = cost(&member.does.lock()) else { continue };
            if costliest.as_ref().is_none_or(|(most, _)| cost > *most) {
                costliest = Some((cost, member));
            }
        }
        if let Some((_, member)) = costliest {
            member.asked_at.get_or_init(Instant::now);
            member.asked.cancel();
        }
    }
}

/// One of a roster, and what it does, as told by itself.
#[derive(Debug)]
pub struct Member<T> {
    does: Mutex<T>,
    asked: CancellationToken,
    asked_at: OnceLock<Instant>,
}

impl<T> Member<T> {
    /// Looks at what it does, or notes another thing.
    pub fn note<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.does.lock())
    }

    /// Waits until it is asked to go.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }
}

/// A member as long as it is present.
#[derive(Debug)]
pub struct Presence<T> {
    member: Arc<Member<T>>,
    number: u64,
    roster: Roster<T>,
}

impl<T> Presence<T> {
    /// The member itself, for whoever else tells of it.
    #[must_use]
    pub fn member(&self) -> &Arc<Member<T>> {
        &self.member
    }
}

impl<T> Deref for Presence<T> {
    type Target = Member<T>;

    fn deref(&self) -> &Member<T> {
        &self.member
    }
}

impl<T> Drop for Presence<T> {
    fn drop(&mut self) {
        self.roster.0.lock().all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_costliest_is_asked_and_nobody_twice() {
        let roster = Roster::default();
        let (cheap, dear, busy) = (roster.join(1), roster.join(2), roster.join(90));
        let cost = |&does: &usize| (does < 90).then_some(does);
        roster.ask(cost);
        dear.asked().await;
        assert!(!cheap.asked.is_cancelled());
        roster.ask(cost);
        cheap.asked().await;
        roster.ask(cost);
        assert!(!busy.asked.is_cancelled());
        busy.note(|does| *does = 3);
        roster.ask(cost);
        busy.asked().await;
        drop((dear, busy));
        assert_eq!(roster.present(), 1);
    }

    #[tokio::test]
    async fn nobody_goes_in_vain() {
        let roster = Roster::default();
        let (cheap, dear, busy) = (roster.join(10), roster.join(20), roster.join(90));
        let cost = |&does: &usize| (does < 90).then_some(does);
        let room = |missing| roster.make_room(missing, |&does| does, cost);
        let asked = || [&cheap, &dear, &busy].map(|member| member.asked.is_cancelled());
        assert!(!room(31) && room(0));
        assert_eq!(asked(), [false; 3]);
        assert!(room(30));
        // What is about to go is enough for as much.
        assert!(room(20));
        assert_eq!(asked(), [false, true, false]);
        assert!(room(21) && !room(31));
        assert_eq!(asked(), [true, true, false]);
        // For a while: one that does not go keeps nobody from asking the next.
        busy.note(|does| *does = 40);
        tokio::time::sleep(GOING).await;
        assert!(room(30));
        assert_eq!(asked(), [true; 3]);
    }
}
