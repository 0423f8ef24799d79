//! Recent: what this process has just written, since a read that waits for nothing may not see it yet.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::rows::Kept;
use crate::store::{ItemId, Timestamp};

/// Bounded reads see everything that is older than this, with room to spare (Milvus' default is 5 s).
pub const SETTLED: Duration = Duration::from_secs(20);
/// Most writes that are remembered; beyond it a read waits instead.
const MOST: usize = 200_000;

/// What is known of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// When the id was first written.
    pub created: Timestamp,
    /// What is kept of its picture.
    pub kept: Kept,
}

/// The last writes, by Milvus collection and id; no item after a deletion.
pub struct Recent {
    last: HashMap<(String, ItemId), (Instant, Option<Known>)>,
    order: VecDeque<(Instant, String, ItemId)>,
    /// Until when not everything is remembered.
    forgot: Option<Instant>,
}

impl Recent {
    /// Knows nothing yet of what was written before.
    pub fn new() -> Self {
        let forgot = Some(Instant::now() + SETTLED);
        Self { last: HashMap::new(), order: VecDeque::new(), forgot }
    }

    /// Remembers a write.
    pub fn put(&mut self, physical: &str, id: &ItemId, known: Option<Known>) {
        let now = Instant::now();
        self.last.insert((physical.to_owned(), id.clone()), (now, known));
        self.order.push_back((now, physical.to_owned(), id.clone()));
        while let Some((at, ..)) = self.order.front() {
            let old = now.duration_since(*at) > SETTLED;
            if !old && self.order.len() <= MOST {
                break;
            }
            if !old {
                self.forgot = Some(now + SETTLED);
            }
            if let Some((at, physical, id)) = self.order.pop_front() {
                let key = (physical, id);
                // A later write of the same id has an entry of its own.
                if self.last.get(&key).is_some_and(|(last, _)| *last == at) {
                    self.last.remove(&key);
                }
            }
        }
    }

    /// What the last write made of an item, if that is remembered.
    pub fn get(&self, physical: &str, id: &ItemId) -> Option<Option<Known>> {
        self.last.get(&(physical.to_owned(), id.clone())).map(|(_, known)| *known)
    }

    /// Whether a read must wait for this process' own writes, since some of them are not remembered.
    pub fn incomplete(&self) -> bool {
        self.forgot.is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::ContentHash;

    #[test]
    fn the_last_write_counts_and_the_oldest_are_forgotten() {
        let mut recent = Recent::new();
        assert!(recent.incomplete(), "of what was before nothing is known");
        recent.forgot = None;
        let known = |n| Known {
            created: Timestamp(n),
            kept: Kept { content_hash: ContentHash::of(b""), thumbnail: false, original: false },
        };
        let id = |n: usize| ItemId::new(&n.to_string()).unwrap();
        recent.put("a", &id(0), Some(known(1)));
        recent.put("a", &id(0), None);
        assert_eq!((recent.get("a", &id(0)), recent.get("b", &id(0))), (Some(None), None));
        assert!(!recent.incomplete());
        for n in 0..MOST {
            recent.put("a", &id(n), Some(known(2)));
        }
        assert!(recent.incomplete());
        assert_eq!(recent.get("a", &id(0)), Some(Some(known(2))), "the later write of the same id stays");
        assert!(recent.last.len() <= MOST && recent.order.len() <= MOST);
    }
}
