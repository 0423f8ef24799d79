//! A walk: from node to nearer node, keeping the best that it meets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::nodes::Nodes;
use super::probe::Probe;

/// A node and how near it is; the greater the nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit(u64);

impl Hit {
    /// Of a node.
    #[inline]
    pub fn new(similarity: f32, row: u32) -> Self {
        let bits = similarity.to_bits();
        // So that the numbers of floats are in the order of the floats.
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(ordered) << 32 | u64::from(row))
    }

    /// The node.
    #[inline]
    pub fn row(self) -> u32 {
        self.0 as u32
    }

    /// How near it is.
    #[inline]
    pub fn similarity(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }
}

/// Rows that were met, as bits; what was set is remembered, so that forgetting costs no more than meeting.
#[derive(Default)]
struct Met {
    bits: Vec<u64>,
    words: Vec<u32>,
}

impl Met {
    fn forget(&mut self, rows: usize) {
        self.words.drain(..).for_each(|word| self.bits[word as usize] = 0);
        if self.bits.len() < rows.div_ceil(64) {
            self.bits.resize(rows.div_ceil(64), 0);
        }
    }

    /// Whether it is met for the first time.
    #[inline]
    fn meet(&mut self, row: u32) -> bool {
        let (word, bit) = (row / 64, 1u64 << (row % 64));
        let bits = &mut self.bits[word as usize];
        if *bits == 0 {
            self.words.push(word);
        }
        let new = *bits & bit == 0;
        *bits |= bit;
        new
    }
}

/// What a walk needs of memory, used again by the next.
#[derive(Default)]
pub struct Walker {
    met: Met,
    open: BinaryHeap<Hit>,
    best: BinaryHeap<Reverse<Hit>>,
    next: Vec<u32>,
    /// What was found, the nearest first.
    pub found: Vec<Hit>,
}

/// Rows asked for before the one at hand is compared.
const AHEAD: usize = 3;

impl Walker {
    /// Walks a layer from `starts`, and finds the `ef` nearest that it meets (Malkov & Yashunin, algorithm 2).
    pub fn walk(&mut self, nodes: &Nodes, probe: &Probe, starts: &[u32], layer: usize, ef: usize) {
        self.met.forget(nodes.rows());
        self.open.clear();
        self.best.clear();
        self.next.clear();
        let met = &mut self.met;
        self.next.extend(starts.iter().copied().filter(|&row| met.meet(row)));
        self.compare(nodes, probe, ef);
        while let Some(nearest) = self.open.pop() {
            if self.best.len() >= ef && self.best.peek().is_some_and(|worst| nearest < worst.0) {
                break;
            }
            self.next.clear();
            let (met, next) = (&mut self.met, &mut self.next);
            nodes.neighbours(nearest.row(), layer, |row| {
                if met.meet(row) {
                    next.push(row);
                }
            });
            self.compare(nodes, probe, ef);
        }
        self.found.clear();
        self.found.extend(self.best.drain().map(|hit| hit.0));
        self.found.sort_unstable_by(|a, b| b.cmp(a));
    }

    #[inline]
    fn compare(&mut self, nodes: &Nodes, probe: &Probe, ef: usize) {
        self.next.iter().take(AHEAD).for_each(|&row| nodes.prefetch(row));
        for (at, &row) in self.next.iter().enumerate() {
            if let Some(&later) = self.next.get(at + AHEAD) {
                nodes.prefetch(later);
            }
            let hit = Hit::new(nodes.similarity(probe, row), row);
            if self.best.len() < ef {
                self.best.push(Reverse(hit));
                self.open.push(hit);
            } else if let Some(mut worst) = self.best.peek_mut()
                && hit > worst.0
            {
                *worst = Reverse(hit);
                self.open.push(hit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hits_are_in_the_order_of_similarity(a in -4f32..1.0, b in -4f32..1.0, row in 0u32..u32::MAX) {
            let (x, y) = (Hit::new(a, row), Hit::new(b, row));
            prop_assert_eq!((x.similarity(), x.row()), (a, row));
            prop_assert_eq!(x.cmp(&y), a.total_cmp(&b));
        }
    }
}
