//! Tuning: how long walks must be for the wanted recall, measured on the collection's own vectors.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use latentd_model::{Contract, Embedding};
use rayon::prelude::*;

use super::CollectionIndex;
use super::graph::scatter;
use super::lines::Rows;
use super::linked::Linked;
use super::segment::SEGMENT_ROWS;
use crate::store::{IndexKind, Query};

/// Vectors whose neighbours are looked for.
const QUERIES: usize = 100;
/// Neighbours of each.
const K: usize = 10;
/// Share of them that walks must find.
const WANTED: f64 = 0.995;
/// A collection's own vectors are nodes and are found more easily than a stranger's, so walks are so many times
/// as long as they need.
const MARGIN: usize = 2;
/// Lengths that are tried.
const LENGTHS: [usize; 11] = [24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768];

/// How much of what there is searches find.
#[derive(Debug, Clone, Copy)]
pub struct MeasuredRecall {
    /// How they look.
    pub kind: IndexKind,
    /// Share of the exact neighbours that they found.
    pub recall: f64,
    /// Searches.
    pub queries: usize,
    /// Milliseconds of one.
    pub ms: f64,
    /// Milliseconds of an exact one.
    pub exact_ms: f64,
}

impl CollectionIndex {
    /// Searches for the `k` neighbours of about `count` items, both ways; none without items.
    pub fn measure_recall(&self, k: usize, count: usize) -> Option<MeasuredRecall> {
        let queries = self.sample(count);
        let (mut found, mut all, mut took) = (0, 0, [0f64; 2]);
        for (_, vector) in &queries {
            let vector = Embedding::from_normalised(vector.clone()).ok()?;
            let contract = Contract::from_bytes([0; 8]);
            let (filter, exclude, min_score) = (None, Vec::new(), None);
            let query = Query { vector, contract, k, filter, exclude, min_score, with_vectors: false };
            let began = Instant::now();
            let near = self.search(&query);
            took[0] += began.elapsed().as_secs_f64();
            let began = Instant::now();
            let exact = self.search_exactly(&query);
            took[1] += began.elapsed().as_secs_f64();
            let worst = exact.last().map_or(f32::INFINITY, |neighbour| neighbour.score);
            found += near.iter().filter(|neighbour| neighbour.score >= worst).count().min(exact.len());
            all += exact.len();
        }
        let ms = took.map(|seconds| seconds * 1e3 / queries.len().max(1) as f64);
        let (kind, queries) = (self.info().kind, queries.len());
        (all > 0).then(|| MeasuredRecall {
            kind,
            recall: found as f64 / all as f64,
            queries,
            ms: ms[0],
            exact_ms: ms[1],
        })
    }

    /// Finds the shortest walk with the wanted recall, unless a length was set.
    pub(super) fn tune(&self, linked: &Linked) {
        if self.fixed_ef {
            return;
        }
        let queries = self.sample(QUERIES);
        if queries.len() < K {
            return;
        }
        let truth = self.truth(&queries, K + 1);
        for length in LENGTHS {
            let recall = |(at, query): (usize, &(u32, Vec<f32>))| {
                let near = linked.graph.near(&query.1, length.max(K + 1));
                let rows: HashSet<u32> = near.iter().take(length.max(K + 1)).map(|hit| hit.row()).collect();
                let truth = truth[at].iter().filter(|(_, row)| *row != query.0).take(K);
                let (hits, all) = truth
                    .fold((0, 0), |(hits, all), (_, row)| (hits + usize::from(rows.contains(row)), all + 1));
                (hits, all)
            };
            let (hits, all) = queries
                .iter()
                .enumerate()
                .map(recall)
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            self.ef.store(MARGIN * length, Ordering::Relaxed);
            if hits as f64 >= WANTED * f64::from(all as u32) {
                break;
            }
        }
        tracing::info!(items = self.len(), ef = self.ef(), "length of walks found");
    }

    /// About `count` rows with their vectors.
    fn sample(&self, count: usize) -> Vec<(u32, Vec<f32>)> {
        let segments = Arc::clone(&self.segments.read());
        let rows = self.places.lock().rows().max(1);
        let mut queries: Vec<(u32, Vec<f32>)> = Vec::with_capacity(count);
        for row in (0..4 * count).map(|n| scatter(n + 7) as usize % rows) {
            let Some(segment) = segments.get(row / SEGMENT_ROWS) else { continue };
            let segment = segment.read();
            if segment.row(row % SEGMENT_ROWS).is_some() && queries.len() < count {
                queries.push((row as u32, segment.vector(row % SEGMENT_ROWS).to_vec()));
            }
        }
        queries
    }

    /// The `k` nearest rows of each query, best first, by comparing all; every vector is read once for all of
    /// them. Runs on the current rayon pool.
    fn truth(&self, queries: &[(u32, Vec<f32>)], k: usize) -> Vec<Vec<(f32, u32)>> {
        let segments = Arc::clone(&self.segments.read());
        let rows: Vec<Rows<f32>> = queries.iter().map(|query| Rows::of(&query.1)).collect();
        let trim = |best: &mut Vec<(f32, u32)>| {
            best.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            best.truncate(k);
        };
        let none = || vec![Vec::new(); queries.len()];
        let compare = |mut best: Vec<Vec<(f32, u32)>>, (number, segment): (usize, &Arc<_>)| {
            let segment: parking_lot::RwLockReadGuard<'_, super::segment::Segment> =
                parking_lot::RwLock::read(segment);
            for at in 0..SEGMENT_ROWS {
                if segment.row(at).is_none() {
                    continue;
                }
                for (best, query) in best.iter_mut().zip(&rows) {
                    let score = self.level.dot_f32(query.row(0), segment.padded(at));
                    best.push((score, (number * SEGMENT_ROWS + at) as u32));
                    if best.len() > 8 * k {
                        trim(best);
                    }
                }
            }
            best
        };
        let join = |mut a: Vec<Vec<(f32, u32)>>, b: Vec<Vec<(f32, u32)>>| {
            a.iter_mut().zip(b).for_each(|(a, b)| a.extend(b));
            a
        };
        let mut best = segments.par_iter().enumerate().fold(none, compare).reduce(none, join);
        best.iter_mut().for_each(trim);
        best
    }
}
