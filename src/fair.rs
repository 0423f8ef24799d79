//! A fair queue: each flow, which is one request, gives its next item in turn, so that a request of many pictures
//! holds up one of a single picture by at most one of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

/// The items of one request, told apart from those of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow(u64);

impl Flow {
    /// A flow of its own.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Default for Flow {
    fn default() -> Self {
        Self::new()
    }
}

/// What waits, by flow. Unbounded: whoever pushes must be admitted.
#[derive(Debug)]
pub struct FairQueue<T> {
    waiting: HashMap<Flow, VecDeque<T>>,
    /// The flows that have something waiting, each once, the next one first.
    turns: VecDeque<Flow>,
    len: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), turns: VecDeque::new(), len: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Puts an item behind those of its flow.
    pub fn push(&mut self, flow: Flow, item: T) {
        let items = self.waiting.entry(flow).or_default();
        if items.is_empty() {
            self.turns.push_back(flow);
        }
        items.push_back(item);
        self.len += 1;
    }

    /// The oldest item of the flow whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let flow = self.turns.pop_front()?;
        let items = self.waiting.get_mut(&flow)?;
        let item = items.pop_front();
        if items.is_empty() {
            self.waiting.remove(&flow);
        } else {
            self.turns.push_back(flow);
        }
        self.len -= usize::from(item.is_some());
        item
    }

    /// Takes out everything of a flow.
    pub fn remove(&mut self, flow: Flow) -> VecDeque<T> {
        let Some(items) = self.waiting.remove(&flow) else { return VecDeque::new() };
        self.turns.retain(|other| *other != flow);
        self.len -= items.len();
        items
    }

    /// Items of all flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_take_turns_and_each_keeps_its_order() {
        let (large, small, late) = (Flow::new(), Flow::new(), Flow::new());
        let mut queue = FairQueue::default();
        for number in 0..4 {
            queue.push(large, ("large", number));
        }
        queue.push(small, ("small", 0));
        assert_eq!(queue.pop(), Some(("large", 0)));
        queue.push(late, ("late", 0));
        queue.push(late, ("late", 1));
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let turns = [("small", 0), ("large", 1), ("late", 0), ("large", 2), ("late", 1), ("large", 3)];
        assert_eq!(rest, turns);
        assert!(queue.is_empty() && queue.waiting.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn a_flow_that_leaves_takes_everything_along() {
        let (leaves, stays) = (Flow::new(), Flow::new());
        let mut queue = FairQueue::default();
        for number in 0..3 {
            queue.push(leaves, number);
        }
        queue.push(stays, 9);
        assert_eq!(queue.remove(leaves), [0, 1, 2]);
        assert!(queue.remove(leaves).is_empty());
        assert_eq!((queue.len(), queue.turns.len()), (1, 1));
        // One that comes back has one turn, not two.
        queue.push(leaves, 4);
        queue.push(leaves, 5);
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), [9, 4, 5]);
    }
}
