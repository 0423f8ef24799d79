//! Tuning: how long walks must be for the wanted recall, measured on the collection's own vectors.
//!
//! What is compared with is f32: where memory does not keep that, it is read from the database, all in one pass.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use latentd_model::{Contract, Embedding};
use rayon::prelude::*;

use super::graph::scatter;
use super::kept::Vectors;
use super::lines::Rows;
use super::linked::Linked;
use super::segment::SEGMENT_ROWS;
use super::{CollectionIndex, Source};
use crate::store::{IndexKind, ItemId, Neighbour, Query};

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

/// Scores that differ by less are equal: their products may be added up in another order.
const TIE: f32 = 1e-6;

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
    /// Milliseconds of an exact one; where the database is read for it, of one among all of them in one pass.
    pub exact_ms: f64,
}

impl CollectionIndex {
    /// Searches for the `k` neighbours of about `count` items, both ways; none without items.
    pub fn measure_recall(&self, k: usize, count: usize) -> Option<MeasuredRecall> {
        let ask = |(_, vector): (u32, Vec<f32>)| {
            let vector = Embedding::from_normalised(vector).ok()?;
            let contract = Contract::from_bytes([0; 8]);
            let (filter, exclude, min_score) = (None, Vec::new(), None);
            Some(Query { vector, contract, k, filter, exclude, min_score, with_vectors: false })
        };
        let queries: Vec<Query> = self.sample(count).into_iter().filter_map(ask).collect();
        let began = Instant::now();
        let mut found: Vec<Vec<Neighbour>> = queries.iter().map(|query| self.search(query)).collect();
        let searched = Instant::now();
        let vectors = || queries.iter().map(|query| query.vector.as_slice());
        let truth: Vec<Vec<f32>> = match self.whole_source() {
            None => {
                let scores = |query| self.search_exactly(query).iter().map(|near| near.score).collect();
                queries.iter().map(scores).collect()
            }
            Some(source) => {
                found.iter_mut().zip(&queries).for_each(|(found, query)| self.rescore(source, query, found));
                let best = self.read_truth(source, vectors(), k);
                best.into_iter().map(|best| best.into_iter().map(|(score, _)| score).collect()).collect()
            }
        };
        let exact_ms = searched.elapsed().as_secs_f64() * 1e3 / queries.len().max(1) as f64;
        let (mut hits, mut all) = (0, 0);
        for (found, truth) in found.iter().zip(&truth) {
            // Of equal scores any will do.
            let worst = truth.last().map_or(f32::INFINITY, |worst| worst - TIE);
            hits += found.iter().filter(|near| near.score >= worst).count().min(truth.len());
            all += truth.len();
        }
        let ms = (searched - began).as_secs_f64() * 1e3 / queries.len().max(1) as f64;
        let (kind, recall) = (self.info().kind, hits as f64 / all as f64);
        (all > 0).then_some(MeasuredRecall { kind, recall, queries: queries.len(), ms, exact_ms })
    }

    /// The source, where memory does not keep vectors as they came.
    fn whole_source(&self) -> Option<&dyn Source> {
        self.source.as_deref().filter(|_| self.layout.vectors != Vectors::F32)
    }

    /// Gives neighbours the scores of their vectors in the database.
    fn rescore(&self, source: &dyn Source, query: &Query, found: &mut [Neighbour]) {
        let ids: Vec<ItemId> = found.iter().map(|near| near.id.clone()).collect();
        source.read(&ids, &mut |place, stored| {
            let row = Rows::of(stored.vector);
            if stored.vector.len() == self.layout.dim {
                found[place].score = self.level.dot_f32(Rows::of(query.vector.as_slice()).row(0), row.row(0));
            }
        });
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
        let truth = match self.whole_source().filter(|_| self.layout.vectors == Vectors::Int8) {
            None => self.truth(&queries, K + 1),
            Some(source) => {
                let best = self.read_truth(source, queries.iter().map(|query| query.1.as_slice()), K + 1);
                let places = self.places.lock();
                let row = |(score, id): (f32, ItemId)| Some((score, places.find(&id)? as u32));
                best.into_iter().map(|best| best.into_iter().filter_map(row).collect()).collect()
            }
        };
        let found = |length: usize| -> (usize, usize) {
            let one = |(at, query): (usize, &(u32, Vec<f32>))| {
                let near = linked.graph.near(&query.1, length.max(K + 1));
                let rows: HashSet<u32> = near.iter().take(length.max(K + 1)).map(|hit| hit.row()).collect();
                let truth = truth[at].iter().filter(|(_, row)| *row != query.0).take(K);
                truth.fold((0, 0), |(hits, all), (_, row)| (hits + usize::from(rows.contains(row)), all + 1))
            };
            queries.iter().enumerate().map(one).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        };
        let mut tried: Vec<(usize, usize)> = Vec::new();
        let enough = LENGTHS.into_iter().find(|&length| {
            let (hits, all) = found(length);
            tried.push((length, hits));
            hits as f64 >= WANTED * all as f64
        });
        // Where even the longest misses some, as where nothing leads to a cluster, the shortest that finds about as
        // many.
        let most = tried.last().map_or(0, |(_, hits)| hits - hits / 1000);
        let about = || tried.iter().find(|(_, hits)| *hits >= most).map(|(length, _)| *length);
        if let Some(length) = enough.or_else(about) {
            self.ef.store(MARGIN * length, Ordering::Relaxed);
        }
        tracing::info!(items = self.len(), ef = self.ef(), "length of walks found");
    }

    /// About `count` rows with their vectors as they came.
    fn sample(&self, count: usize) -> Vec<(u32, Vec<f32>)> {
        let segments = Arc::clone(&self.segments.read());
        let rows = self.places.lock().rows().max(1);
        let is_item = |row: &usize| {
            let segment = segments.get(row / SEGMENT_ROWS);
            segment.is_some_and(|segment| segment.read().row(row % SEGMENT_ROWS).is_some())
        };
        let rows = (0..4 * count).map(|n| scatter(n + 7) as usize % rows).filter(is_item).take(count);
        let rows: Vec<usize> = rows.collect();
        let vectors = self.vectors(&rows, true);
        let vectors = vectors.chunks_exact(self.layout.dim).map(<[f32]>::to_vec);
        rows.iter().map(|&row| row as u32).zip(vectors).collect()
    }

    /// The `k` best scores of each query with their items, best first, by comparing all that the database has.
    fn read_truth<'a>(
        &self,
        source: &dyn Source,
        queries: impl Iterator<Item = &'a [f32]>,
        k: usize,
    ) -> Vec<Vec<(f32, ItemId)>> {
        let queries: Vec<Rows<f32>> = queries.map(Rows::of).collect();
        let mut best: Vec<Vec<(f32, ItemId)>> = vec![Vec::new(); queries.len()];
        let mut row = Rows::<f32>::new(self.layout.dim);
        row.grow(1);
        source.scan(&mut |id, vector| {
            row.set(0, vector);
            for (best, query) in best.iter_mut().zip(&queries) {
                let score = self.level.dot_f32(query.row(0), row.row(0)).clamp(-1.0, 1.0);
                if best.len() < k || best[k - 1].0 < score {
                    let at = best.partition_point(|(other, _)| *other >= score);
                    best.insert(at, (score, id.clone()));
                    best.truncate(k);
                }
            }
        });
        best
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
                    let score = segment.dot(self.level, query.row(0), at).unwrap_or(-1.0);
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
