//! Upkeep: checking, packing and measuring a store in Milvus, also while servers use it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::MilvusStore;
use super::address::IndexKind;
use super::engine::{View, query};
use super::expression;
use super::fields;
use super::pictures::Kind;
use super::proto::{self, Pair};
use super::registry::Handle;
use super::rows::{self, Columns};
use crate::store::index::MeasuredRecall;
use crate::store::{CollectionName, ContentHash, InvalidValue, Item, ItemId, Query, StoreError, migrate};

/// Items of one page with their vectors.
const PAGE: usize = 500;
/// Problems of a collection that are told one by one.
const TOLD: usize = 20;
/// How far the score of a neighbour may be from that of the exact one in its place.
const CLOSE: f32 = 1e-5;
/// How often it is asked whether Milvus has packed a collection.
const PACK_REST: Duration = Duration::from_millis(500);

/// What a check of a collection found.
#[derive(Debug, Clone)]
pub struct CheckedCollection {
    /// Its name.
    pub name: CollectionName,
    /// Its collection in Milvus.
    pub physical: String,
    /// Its items that are sound.
    pub items: u64,
    /// How many Milvus counts.
    pub counted: u64,
    /// SHA-256 over all sound items by id, as `migrate` tells it.
    pub checksum: String,
    /// How many items are not sound.
    pub damaged: u64,
    /// Some of them, and why.
    pub problems: Vec<String>,
}

impl CheckedCollection {
    /// Whether nothing is wrong.
    pub fn sound(&self) -> bool {
        self.damaged == 0 && self.counted == self.items
    }
}

impl MilvusStore {
    async fn page_of(
        &self,
        handle: &Handle,
        after: &str,
        fields: &[&str],
        limit: usize,
    ) -> Result<Columns, StoreError> {
        let expr = format!("id > {}", expression::quote(after));
        let mut request = query(handle, View::STRONG, expr, fields);
        request.query_params.push(Pair::new("limit", limit));
        Ok(Columns::new(self.engine.client.ask(request).await?.fields_data))
    }

    /// Reads every item that serves and compares it with what can be told of it; changes nothing. That a
    /// collection's schema is the expected one is seen when it is opened.
    ///
    /// # Errors
    /// An engine that does not answer, a collection of another program.
    pub async fn check(&self) -> Result<Vec<CheckedCollection>, StoreError> {
        let mut checked = Vec::new();
        for handle in self.engine.registry.all_in(self.engine.agreement.last().serving).await? {
            checked.push(self.check_one(&handle).await?);
        }
        Ok(checked)
    }

    async fn check_one(&self, handle: &Handle) -> Result<CheckedCollection, StoreError> {
        let mut wanted = rows::PLAIN.to_vec();
        wanted.extend([rows::VECTOR, rows::FIELDS]);
        let (mut after, mut items, mut damaged) = (String::new(), 0, 0);
        let (mut problems, mut all) = (Vec::new(), Sha256::new());
        loop {
            let columns = self.page_of(handle, &after, &wanted, PAGE).await?;
            let mut order: Vec<(ItemId, usize)> =
                (0..columns.rows()).filter_map(|row| Some((columns.id(row)?, row))).collect();
            order.sort_unstable();
            let Some((last, _)) = order.last() else { break };
            last.as_str().clone_into(&mut after);
            for (id, row) in order {
                match self.examine(handle, &columns, row).await? {
                    Ok(item) => {
                        items += 1;
                        all.update(migrate::digest(&item));
                    }
                    Err(reason) => {
                        damaged += 1;
                        if problems.len() < TOLD {
                            problems.push(format!("item {id:?}: {reason}"));
                        }
                    }
                }
            }
        }
        Ok(CheckedCollection {
            name: handle.name.clone(),
            physical: handle.physical.clone(),
            items,
            counted: self.count(handle, View::STRONG).await?.unwrap_or(0),
            checksum: latentd_model::digest::hex(&all.finalize()),
            damaged,
            problems,
        })
    }

    /// One item, or what is wrong with it.
    async fn examine(
        &self,
        handle: &Handle,
        columns: &Columns,
        row: usize,
    ) -> Result<Result<Item, String>, StoreError> {
        let item = columns.item(row, handle.contract, true).zip(columns.kept(row));
        let Some((item, kept)) = item else {
            return Ok(Err("a field is missing, or its vector is not of norm 1".to_owned()));
        };
        let dim = item.vector.as_ref().map_or(0, latentd_model::Embedding::dim);
        if dim != handle.dim {
            return Ok(Err(format!("its vector has {dim} numbers, not {}", handle.dim)));
        }
        let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
        let flat = columns.fields(row).and_then(json);
        if flat.is_none() || flat != json(&fields::of(&item.metadata)) {
            return Ok(Err("what filters read of it is not its metadata".to_owned()));
        }
        for (kind, what) in [(Kind::Thumbnail, "thumbnail"), (Kind::Original, "original")] {
            let is_kept = if matches!(kind, Kind::Thumbnail) { kept.thumbnail } else { kept.original };
            let file = self.picture(&handle.pictures, item.id.clone(), kept, kind).await?;
            match file {
                None if is_kept => {
                    return Ok(Err(format!("its {what} is not in {}", self.options.pictures.display())));
                }
                Some(file)
                    if matches!(kind, Kind::Original) && ContentHash::of(&file) != item.content_hash =>
                {
                    return Ok(Err("its original does not fit its content hash".to_owned()));
                }
                _ => {}
            }
        }
        Ok(Ok(item))
    }

    /// Has Milvus pack every collection, so that what was deleted and replaced takes no space. Gives for each
    /// whether that was done within the time; otherwise Milvus goes on.
    ///
    /// # Errors
    /// An engine that does not answer or refuses.
    pub async fn compact(&self, limit: Duration) -> Result<Vec<(CollectionName, bool)>, StoreError> {
        let mut begun = Vec::new();
        for handle in self.engine.registry.all_in(self.engine.agreement.last().serving).await? {
            let collection_name = handle.physical.clone();
            let described = self.engine.client.ask(proto::DescribeCollection { collection_name }).await?;
            let flush = proto::Flush { collection_names: vec![handle.physical.clone()] };
            self.engine.client.ask(flush).await?;
            let pack = proto::ManualCompaction { collection_id: described.collection_id };
            begun.push((handle.name.clone(), self.engine.client.ask(pack).await?.compaction_id));
        }
        let (began, mut done) = (Instant::now(), Vec::new());
        for (name, compaction_id) in begun {
            let packed = loop {
                let state = self.engine.client.ask(proto::GetCompactionState { compaction_id }).await?.state;
                if state == proto::COMPACTED || began.elapsed() > limit {
                    break state == proto::COMPACTED;
                }
                tokio::time::sleep(PACK_REST).await;
            };
            done.push((name, packed));
        }
        Ok(done)
    }

    /// Measures a collection's recall on its own items: what Milvus finds against all vectors compared here, of
    /// which none but the nearest are kept. None without items.
    ///
    /// # Errors
    /// An unknown collection, an engine that does not answer.
    pub async fn recall(
        &self,
        name: &CollectionName,
        k: usize,
        queries: usize,
    ) -> Result<Option<MeasuredRecall>, StoreError> {
        if k == 0 || k > Query::MAX_K {
            return Err(InvalidValue::K(k).into());
        }
        let serving = self.engine.agreement.last().serving;
        let Some(handle) = self.engine.registry.expect_in(serving, name).await? else { return Ok(None) };
        let sample = self.sample(&handle, queries).await?;
        if sample.is_empty() {
            return Ok(None);
        }
        let began = Instant::now();
        let exact = self.exact(&handle, &sample, k).await?;
        let exact_ms = 1e3 * began.elapsed().as_secs_f64() / sample.len() as f64;
        let (mut found, mut all, mut took) = (0, 0, 0.0);
        for ((id, vector), exact) in sample.iter().zip(&exact) {
            let query = Query {
                vector: vector.clone(),
                contract: handle.contract,
                k,
                filter: None,
                exclude: vec![id.clone()],
                min_score: None,
                with_vectors: false,
            };
            let began = Instant::now();
            let near = self.nearest_in(&handle, View::BOUNDED, &query).await?;
            took += began.elapsed().as_secs_f64();
            // Of equal scores either may be found.
            let least = exact.last().map_or(f32::MIN, |least| least - CLOSE);
            found += near.iter().filter(|near| near.score >= least).count().min(exact.len());
            all += exact.len();
        }
        let kind = match self.options.address.index {
            IndexKind::Hnsw => crate::store::IndexKind::Hnsw,
            IndexKind::Flat => crate::store::IndexKind::Exact,
        };
        let recall = if all == 0 { 1.0 } else { found as f64 / all as f64 };
        let ms = 1e3 * took / sample.len() as f64;
        Ok(Some(MeasuredRecall { kind, recall, queries: sample.len(), ms, exact_ms }))
    }

    /// About so many items, evenly spaced by id, with their vectors.
    async fn sample(
        &self,
        handle: &Handle,
        count: usize,
    ) -> Result<Vec<(ItemId, latentd_model::Embedding)>, StoreError> {
        const IDS: usize = 10_000;
        let stride = (self.count(handle, View::STRONG).await?.unwrap_or(0) as usize / count.max(1)).max(1);
        let (mut after, mut place, mut ids) = (String::new(), 0, Vec::new());
        loop {
            let columns = self.page_of(handle, &after, &[rows::ID], IDS).await?;
            let mut page: Vec<ItemId> = (0..columns.rows()).filter_map(|row| columns.id(row)).collect();
            page.sort_unstable();
            let Some(last) = page.last() else { break };
            last.as_str().clone_into(&mut after);
            for id in page {
                if place % stride == 0 && ids.len() < count {
                    ids.push(id);
                }
                place += 1;
            }
        }
        let mut sample = HashMap::new();
        for ids in ids.chunks(PAGE) {
            let request = query(handle, View::STRONG, expression::ids(ids), &[rows::ID, rows::VECTOR]);
            let columns = Columns::new(self.engine.client.ask(request).await?.fields_data);
            sample.extend((0..columns.rows()).filter_map(|row| columns.id(row).zip(columns.vector(row))));
        }
        Ok(ids.into_iter().filter_map(|id| sample.remove_entry(&id)).collect())
    }

    /// The best scores of each of the sample but itself, by comparing all vectors.
    async fn exact(
        &self,
        handle: &Handle,
        sample: &[(ItemId, latentd_model::Embedding)],
        k: usize,
    ) -> Result<Vec<Vec<f32>>, StoreError> {
        let mut best: Vec<Vec<f32>> = vec![Vec::with_capacity(k + 1); sample.len()];
        let mut after = String::new();
        loop {
            let columns = self.page_of(handle, &after, &[rows::ID, rows::VECTOR], PAGE).await?;
            let page = (0..columns.rows()).filter_map(|row| columns.id(row).zip(columns.vector(row)));
            let page: Vec<_> = page.collect();
            let Some(last) = page.iter().map(|(id, _)| id).max() else { return Ok(best) };
            last.as_str().clone_into(&mut after);
            for ((own, query), best) in sample.iter().zip(&mut best) {
                for (id, vector) in &page {
                    let score = query.cosine(vector);
                    let low = best.last().is_some_and(|least| score <= *least) && best.len() == k;
                    if low || id == own {
                        continue;
                    }
                    let place = best.partition_point(|other| *other >= score);
                    best.insert(place, score);
                    best.truncate(k);
                }
            }
        }
    }
}
