//! Rereading: vectors of the database in the place of what memory keeps of them.

use std::sync::Arc;

use latentd_model::Embedding;

use super::kept::Vectors;
use super::lines::Rows;
use super::segment::{Fidelity, GraphScores, Prepared, SEGMENT_ROWS, Segment, Stopped};
use super::top::merge;
use super::{CollectionIndex, Source};
use crate::store::filter::{CompiledFilter, FieldName};
use crate::store::{ItemId, Neighbour, Query};

/// What the score of codes may differ from the score by: more than twenty times what it does.
const ROUGH: f32 = 0.02;

impl CollectionIndex {
    /// Where the vectors are that are not kept as they came.
    #[must_use]
    pub fn with_source(self, source: Arc<dyn Source>) -> Self {
        Self { source: Some(source), ..self }
    }

    /// The source, where scores have to come from it.
    fn scores_from(&self) -> Option<&dyn Source> {
        self.source.as_deref().filter(|_| self.layout.vectors == Vectors::Int8)
    }

    /// A query made ready for this index.
    pub(super) fn prepare<'a>(&self, query: &'a Query, stopped: Stopped<'a>) -> Prepared<'a> {
        let filter = query.filter.as_ref().map(|filter| CompiledFilter::new(filter, |path| self.named(path)));
        let keep = match self.scores_from() {
            // Codes are off by less than neighbours differ, but for the last few.
            Some(_) => 2 * query.k + 16,
            None => query.k,
        };
        let graph = self.linked().filter(|_| self.layout.vectors == Vectors::Int8).map(|linked| {
            let probe = linked.graph.probe(query.vector.as_slice());
            GraphScores { linked, probe }
        });
        Prepared::new(query, keep, self.level, filter, graph, stopped)
    }

    /// The name of a field, also of one that no item has yet: one with it may come while the query is answered.
    fn named(&self, path: &str) -> FieldName {
        let known = self.names.read().find(path);
        known.unwrap_or_else(|| self.names.write().named(path))
    }

    /// What scores must reach to be kept.
    pub(super) fn least(&self, query: &Query) -> Option<f32> {
        let slack = if self.scores_from().is_some() { ROUGH } else { 0.0 };
        query.min_score.map(|score| score - slack)
    }

    /// The best of what was found, with the scores and vectors of the database where memory has less.
    pub(super) fn reread(&self, query: &Query, mut found: Vec<Neighbour>) -> Vec<Neighbour> {
        let source = match (&self.source, self.scores_from()) {
            (Some(_), Some(source)) => source,
            (Some(source), None) if query.with_vectors && self.layout.vectors == Vectors::F16 => &**source,
            _ => return found,
        };
        let rescores = self.scores_from().is_some();
        let ids: Vec<ItemId> = found.iter().map(|neighbour| neighbour.id.clone()).collect();
        let (asked, mut row) = (Rows::of(query.vector.as_slice()), Rows::<f32>::new(self.layout.dim));
        row.grow(1);
        source.read(&ids, &mut |place, stored| {
            let neighbour = &mut found[place];
            // Of an item that is just being replaced all is told of one state.
            if stored.metadata != neighbour.metadata.as_str() || stored.vector.len() != self.layout.dim {
                return;
            }
            if rescores {
                row.set(0, stored.vector);
                neighbour.score = self.level.dot_f32(asked.row(0), row.row(0)).clamp(-1.0, 1.0);
            }
            if query.with_vectors {
                neighbour.vector = Embedding::from_normalised(stored.vector.to_vec()).ok();
            }
        });
        let least = query.min_score.unwrap_or(f32::NEG_INFINITY);
        found.retain(|neighbour| neighbour.score >= least);
        merge(query.k, found)
    }

    /// The vectors of rows, one after the other: as they came where `exact` asks for it, else at least as good as
    /// their codes.
    pub(super) fn vectors(&self, rows: &[usize], exact: bool) -> Vec<f32> {
        let segments = Arc::clone(&self.segments.read());
        let dim = self.layout.dim;
        let mut all = vec![0f32; rows.len() * dim];
        let (mut ids, mut places) = (Vec::new(), Vec::new());
        for (place, (&row, into)) in rows.iter().zip(all.chunks_exact_mut(dim)).enumerate() {
            let Some(segment) = segments.get(row / SEGMENT_ROWS) else { continue };
            let segment = segment.read();
            let fidelity = self.vector_of(&segment, row, into);
            let whole = match self.layout.vectors {
                Vectors::F32 => true,
                Vectors::F16 => !exact,
                Vectors::Int8 => fidelity == Some(Fidelity::Kept),
            };
            if let (false, Some(item)) = (whole, segment.row(row % SEGMENT_ROWS)) {
                ids.push(item.id.clone());
                places.push(place);
            }
        }
        if let (Some(source), false) = (&self.source, ids.is_empty()) {
            source.read(&ids, &mut |n, stored| {
                if stored.vector.len() == dim {
                    all[places[n] * dim..][..dim].copy_from_slice(stored.vector);
                }
            });
        }
        all
    }

    /// The vector of a row, or what its codes here or in the graph stand for.
    pub(super) fn vector_of(&self, segment: &Segment, row: usize, into: &mut [f32]) -> Option<Fidelity> {
        segment.vector(row % SEGMENT_ROWS, into).or_else(|| {
            let linked = self.linked()?;
            linked.graph.decode(row as u32, into).then_some(Fidelity::Decoded)
        })
    }
}
