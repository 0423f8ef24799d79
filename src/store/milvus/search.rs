//! Search: asks Milvus for the nearest items and tests what it found against the filter.

use futures::FutureExt;

use super::MilvusStore;
use super::address::IndexKind;
use super::engine::View;
use super::expression;
use super::proto::{self, Pair};
use super::registry::Handle;
use super::rows::{self, Columns};
use crate::store::filter::{CompiledFilter, FieldNames, Fields};
use crate::store::{Answer, CollectionName, Filter, InvalidValue, Metadata, Neighbour, Query, StoreError};
use prost::Message;

/// Most neighbours that Milvus gives.
const MOST: usize = 16_384;
/// Neighbours asked for beyond those wanted, so that equal scores at the end are ordered by id.
const MORE: usize = 8;

impl MilvusStore {
    pub(super) async fn find_nearest(
        &self,
        name: CollectionName,
        query: Query,
    ) -> Result<Vec<Neighbour>, StoreError> {
        self.is_open()?;
        if query.k == 0 || query.k > Query::MAX_K {
            return Err(InvalidValue::K(query.k).into());
        }
        if query.min_score.is_some_and(|score| !(-1.0..=1.0).contains(&score)) {
            return Err(InvalidValue::MinScore.into());
        }
        let Some(handle) = self.engine.registry.expect(&name).await? else { return Ok(Vec::new()) };
        handle.check(&query.vector, query.contract)?;
        let _permit = self.searches.try_acquire().map_err(|_| StoreError::Busy { what: "searches" })?;
        let Some(wanted) = expression::of_search(query.filter.as_ref(), &query.exclude) else {
            return Ok(Vec::new());
        };
        let mut ask = query.k + MORE;
        loop {
            let engine = &self.engine;
            let request = |handle: &Handle| self.request(handle, engine.view(handle), &query, &wanted, ask);
            let Some((handle, reply)) = engine.read(&name, request).await? else { return Ok(Vec::new()) };
            // It may be another by now.
            handle.check(&query.vector, query.contract)?;
            let found = reply.results.unwrap_or_default();
            let all = found.scores.len() < ask;
            let (mut near, lowest) = self.neighbours(found, &query)?;
            let low = query.min_score.zip(lowest).is_some_and(|(least, lowest)| lowest < least);
            if near.len() >= query.k || all || low {
                near.truncate(query.k);
                return Ok(near);
            }
            if ask == MOST {
                return Err(StoreError::Unsupported {
                    what: "a search whose filter compares several values of one field, when over 16,000 nearer items fail it",
                });
            }
            ask = (4 * ask).min(MOST);
        }
    }

    /// As a search, in whichever generation; without a filter.
    pub(super) async fn nearest_in(
        &self,
        handle: &Handle,
        view: View,
        query: &Query,
    ) -> Result<Vec<Neighbour>, StoreError> {
        let Some(wanted) = expression::of_search(None, &query.exclude) else { return Ok(Vec::new()) };
        let request = self.request(handle, view, query, &wanted, query.k + MORE);
        let found = self.engine.client.ask(request).await?.results.unwrap_or_default();
        let (mut near, _) = self.neighbours(found, query)?;
        near.truncate(query.k);
        Ok(near)
    }

    fn request(
        &self,
        handle: &Handle,
        View(consistency_level, guarantee_timestamp): View,
        query: &Query,
        wanted: &str,
        ask: usize,
    ) -> proto::Search {
        let bytes = query.vector.as_slice().iter().flat_map(|value| value.to_le_bytes()).collect();
        let kind = proto::PLACEHOLDER_FLOAT_VECTOR;
        let placeholder = proto::Placeholder { tag: "$0".to_owned(), kind, values: vec![bytes] };
        let params = match self.engine.client.address().index {
            // Wide enough for a recall of about 0.99 on embeddings; at least k.
            IndexKind::Hnsw => format!("{{\"ef\":{}}}", (2 * ask).clamp(128, 32_768)),
            IndexKind::Flat => "{}".to_owned(),
        };
        let mut output = vec!["metadata".to_owned()];
        if query.with_vectors {
            output.push(rows::VECTOR.to_owned());
        }
        proto::Search {
            collection_name: handle.physical.clone(),
            dsl: wanted.to_owned(),
            placeholder_group: proto::PlaceholderGroup { placeholders: vec![placeholder] }.encode_to_vec(),
            dsl_type: proto::DSL_BOOL_EXPR,
            output_fields: output,
            search_params: vec![
                Pair::new("anns_field", rows::VECTOR),
                Pair::new("topk", ask),
                Pair::new("metric_type", "IP"),
                Pair::new("round_decimal", -1),
                Pair::new("params", params),
            ],
            guarantee_timestamp,
            nq: 1,
            consistency_level,
        }
    }

    /// What of the found counts, the nearest first, and the lowest score of all.
    fn neighbours(
        &self,
        found: proto::SearchResultData,
        query: &Query,
    ) -> Result<(Vec<Neighbour>, Option<f32>), StoreError> {
        let scores = found.scores;
        let ids = found.ids.and_then(|ids| ids.str_id).unwrap_or_default().data;
        let columns = Columns::with_ids(found.fields_data, ids);
        let lowest = scores.iter().copied().reduce(f32::min);
        let mut near = Vec::with_capacity(scores.len());
        for (row, score) in scores.into_iter().enumerate() {
            let broken = || self.broken("a neighbour without its fields");
            let id = columns.id(row).ok_or_else(broken)?;
            let metadata = columns.metadata(row).ok_or_else(broken)?;
            let vector =
                if query.with_vectors { Some(columns.vector(row).ok_or_else(broken)?) } else { None };
            if query.min_score.is_none_or(|least| score >= least) {
                near.push(Neighbour { id, score: score.clamp(-1.0, 1.0), metadata, vector });
            }
        }
        if let Some(filter) = &query.filter {
            let holds = tests(filter, near.iter().map(|near| &near.metadata));
            let mut holds = holds.into_iter();
            near.retain(|_| holds.next().unwrap_or(false));
        }
        near.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
        Ok((near, lowest))
    }

    pub(super) fn nearest(&self, name: CollectionName, query: Query) -> Answer<'_, Vec<Neighbour>> {
        self.find_nearest(name, query).boxed()
    }
}

/// Whether a filter holds for each of these.
fn tests<'a>(filter: &Filter, metadata: impl Iterator<Item = &'a Metadata>) -> Vec<bool> {
    let mut names = FieldNames::default();
    let fields: Vec<Fields> = metadata.map(|metadata| Fields::of(&metadata.to_map(), &mut names)).collect();
    let filter = CompiledFilter::new(filter, |path| names.named(path));
    fields.iter().map(|fields| filter.holds(fields)).collect()
}
