//! Searching through the graph: rows that it says are near, compared exactly.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;

use super::CollectionIndex;
use super::graph::scatter;
use super::linked::Linked;
use super::segment::{BLOCK, Prepared, Rest, SEGMENT_ROWS, Segment, score_of};
use super::top::{Bar, Top, merge};
use crate::store::{ItemId, Neighbour, Query};

/// Rows on which the share of a filter is estimated.
const SAMPLE: usize = 1024;
/// Most nodes that a walk for an unfiltered search of `k` keeps beyond what was asked for, per neighbour.
const PER_NEIGHBOUR: f64 = 1.5;

impl CollectionIndex {
    /// What [`Self::search`] does where there is a graph.
    pub(super) fn search_graph(
        &self,
        linked: &Linked,
        query: &Query,
        prepared: &Prepared<'_>,
    ) -> Vec<Neighbour> {
        let segments = Arc::clone(&self.segments.read());
        let bar = Bar::new(self.least(query));
        // Before the walk, so that an item that is linked meanwhile is found by one of them.
        let waiting = linked.waiting();
        let concerned: Vec<_> = waiting.iter().filter_map(|&at| segments.get(at).cloned()).collect();
        let mut found = self.scan(&concerned, prepared, &bar, Rest::Waiting);
        // What was linked between the scan and the walk is found by both, and is still one.
        let scanned: HashSet<ItemId> = found.iter().map(|neighbour| neighbour.id.clone()).collect();
        let want = (query.k + query.exclude.len()).min(self.len());
        let share = if query.filter.is_some() { self.share(&segments, prepared) } else { 1.0 };
        let mut ef = self.walk_length(want, share);
        loop {
            if prepared.stopped() {
                return Vec::new();
            }
            if query.filter.is_some() && ef > self.longest_walk() {
                // So few count that it is cheaper to look at each of them.
                return merge(prepared.keep, self.scan(&segments, prepared, &bar, Rest::All));
            }
            let near = linked.graph.near(query.vector.as_slice(), ef);
            let mut top = Top::new(prepared.keep, &bar);
            // Codes are off by less than neighbours differ, but for the last few.
            let enough = (2 * want + 16).max(self.ef()).max(prepared.keep);
            let mut counted = 0;
            for (number, hit) in near.iter().enumerate() {
                if number % BLOCK == 0 && prepared.stopped() {
                    return Vec::new();
                }
                let (row, rough) = (hit.row() as usize, || score_of(hit.similarity()));
                let Some(segment) = segments.get(row / SEGMENT_ROWS) else { continue };
                let (segment, at) = (segment.read(), row % SEGMENT_ROWS);
                let counts = segment.offer(at, prepared, &mut top, rough);
                counted +=
                    usize::from(counts && segment.row(at).is_none_or(|row| !scanned.contains(&row.id)));
                if counted == enough {
                    break;
                }
            }
            // The nodes that were kept are the nearest of all, so what counts among them is nearest of what
            // counts; only where it is too little, or a part of the graph was not reached, it says nothing.
            let least = if query.filter.is_some() { want } else { want.saturating_sub(found.len()) };
            if counted >= least || self.all_there(found.len() + counted, prepared) {
                found.extend(top.into_vec());
                return merge(prepared.keep, found);
            }
            if near.len() < ef || ef > self.longest_walk() {
                return merge(prepared.keep, self.scan(&segments, prepared, &bar, Rest::All));
            }
            ef *= 4;
        }
    }

    /// Whether without a filter so many are all that there are.
    fn all_there(&self, found: usize, prepared: &Prepared<'_>) -> bool {
        !prepared.filters() && found >= self.len()
    }

    /// Nodes that a walk keeps, so that `want` of those that count are well among them.
    fn walk_length(&self, want: usize, share: f64) -> usize {
        let ef = self.ef();
        let beyond = want.saturating_sub(10) as f64 * PER_NEIGHBOUR;
        if share >= 1.0 {
            return ef + beyond as usize;
        }
        // With the share of a filter the nearest that count are as many times further away.
        ((1.5 * want as f64 + 8.0) / share).max(ef as f64 + beyond) as usize
    }

    /// The longest walk that is cheaper than a scan with a filter: a node kept costs some thirty times
    /// what the test of a row's metadata does.
    fn longest_walk(&self) -> usize {
        (self.len() / 28).max(256)
    }

    /// About which share of the items a filter leaves; never 0.
    fn share(&self, segments: &[Arc<RwLock<Segment>>], prepared: &Prepared<'_>) -> f64 {
        let rows = self.places.lock().rows().max(1);
        let (mut items, mut counted) = (0usize, 0usize);
        for n in (0..SAMPLE).take_while(|n| n % BLOCK != 0 || !prepared.stopped()) {
            let row = scatter(n) as usize % rows;
            let Some(segment) = segments.get(row / SEGMENT_ROWS) else { continue };
            if let Some(row) = segment.read().row(row % SEGMENT_ROWS) {
                items += 1;
                counted += usize::from(prepared.counts(row));
            }
        }
        (counted as f64 + 0.5) / (items as f64 + 1.0)
    }

    /// Sets what [`Self::ef`] gives, until it is tuned again.
    pub fn set_ef(&self, ef: usize) {
        self.ef.store(ef, Ordering::Relaxed);
    }

    /// Nodes that a walk for ten neighbours keeps.
    pub fn ef(&self) -> usize {
        self.ef.load(Ordering::Relaxed)
    }
}
