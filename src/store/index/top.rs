//! The best k candidates of a scan, and the score that a new one must reach.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::store::{ItemId, Neighbour};

/// A score that scans of one search share: below it no candidate can count any more. It only rises.
pub struct Bar(AtomicU32);

impl Bar {
    /// Begins at the query's own threshold.
    pub fn new(min_score: Option<f32>) -> Self {
        Self(AtomicU32::new(min_score.unwrap_or(f32::NEG_INFINITY).to_bits()))
    }

    /// The score.
    pub fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    fn raise(&self, score: f32) {
        let higher = |bits| (f32::from_bits(bits) < score).then_some(score.to_bits());
        // An error only says that it was high enough already.
        let _ = self.0.fetch_update(Relaxed, Relaxed, higher);
    }
}

/// Compares by score, and of equal scores the lesser id is better; the heap's top is the worst.
struct Candidate(Neighbour);

fn worse_first(a: &Neighbour, b: &Neighbour) -> Ordering {
    b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id))
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        worse_first(&self.0, &other.0)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

/// The best k so far.
pub struct Top<'a> {
    k: usize,
    heap: BinaryHeap<Candidate>,
    bar: &'a Bar,
}

impl<'a> Top<'a> {
    /// None yet.
    pub fn new(k: usize, bar: &'a Bar) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k + 1), bar }
    }

    /// What a candidate must reach; one that equals it may still count by its id.
    pub fn bar(&self) -> f32 {
        self.bar.get()
    }

    /// Offers a candidate that reaches the bar; `make` is called only when it is taken.
    pub fn offer(&mut self, score: f32, id: &ItemId, make: impl FnOnce() -> Neighbour) {
        if self.heap.len() == self.k {
            let beaten = self.heap.peek().is_some_and(|Candidate(worst)| {
                score.total_cmp(&worst.score).then_with(|| worst.id.cmp(id)).is_gt()
            });
            if !beaten {
                return;
            }
            self.heap.pop();
        }
        self.heap.push(Candidate(make()));
        if self.heap.len() == self.k
            && let Some(Candidate(worst)) = self.heap.peek()
        {
            self.bar.raise(worst.score);
        }
    }

    /// What was found, in any order.
    pub fn into_vec(self) -> Vec<Neighbour> {
        self.heap.into_iter().map(|candidate| candidate.0).collect()
    }
}

/// The best k of several scans, best first.
pub fn merge(k: usize, mut found: Vec<Neighbour>) -> Vec<Neighbour> {
    found.sort_by(worse_first);
    // An item that was deleted and written again during the scan may have been seen in both places.
    let mut seen = HashSet::with_capacity(found.len());
    found.retain(|neighbour| seen.insert(neighbour.id.clone()));
    found.truncate(k);
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Metadata;
    use proptest::prelude::*;

    fn neighbour(score: f32, id: &str) -> Neighbour {
        Neighbour { id: ItemId::new(id).unwrap(), score, metadata: Metadata::default(), vector: None }
    }

    proptest! {
        #[test]
        fn keeps_the_best(scores in prop::collection::vec(-4i8..4, 0..60), k in 1usize..10, parts in 1usize..4) {
            let all: Vec<Neighbour> = scores
                .iter()
                .enumerate()
                .map(|(i, &score)| neighbour(f32::from(score) / 4.0, &format!("{:02}", (i * 37) % 60)))
                .collect();
            let bar = Bar::new(Some(-0.75));
            let found = all
                .chunks(all.len().div_ceil(parts).max(1))
                .flat_map(|part| {
                    let mut top = Top::new(k, &bar);
                    for one in part {
                        if one.score >= top.bar() {
                            top.offer(one.score, &one.id, || one.clone());
                        }
                    }
                    top.into_vec()
                })
                .collect();
            let mut expected: Vec<Neighbour> = all.into_iter().filter(|one| one.score >= -0.75).collect();
            expected.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
            expected.truncate(k);
            prop_assert_eq!(merge(k, found), expected);
        }
    }
}
