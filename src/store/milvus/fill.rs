//! Fill: vectors of the next encoder into the spare generation, and how much of the neighbours stays.

use std::collections::HashMap;
use std::time::Duration;

use latentd_model::Contract;

use super::MilvusStore;
use super::engine::{Fault, View, query};
use super::expression;
use super::proto::{self, Pair};
use super::record::Change;
use super::registry::Handle;
use super::rows::{self, Columns, Kept, Stamped};
use crate::store::refresh::Refreshed;
use crate::store::{CollectionName, Item, ItemId, NewItem, Query, StoreError};

/// Items among which the sample of a comparison is taken.
const SAMPLED: usize = 16_384;
/// Vectors read at once.
const VECTORS: usize = 100;

impl MilvusStore {
    pub(super) async fn fill(&self, to: Contract, items: Vec<Refreshed>) -> Result<u64, StoreError> {
        let mut by_name: HashMap<CollectionName, Vec<Refreshed>> = HashMap::new();
        for item in items {
            by_name.entry(item.collection.clone()).or_default().push(item);
        }
        let mut filled = 0;
        for (name, items) in by_name {
            let (record, change) = self.leading()?;
            let pair = self.pair((record.serving, change.generation), &name).await?;
            let Some((serving, spare)) = pair.filter(|(_, spare)| spare.contract == to) else { continue };
            filled += self.fill_one(&change, &serving, &spare, items).await?;
        }
        Ok(filled)
    }

    async fn items_of(
        &self,
        handle: &Handle,
        view: View,
        ids: &[ItemId],
        fields: &[&str],
    ) -> Result<(Vec<Item>, Vec<Kept>), StoreError> {
        let request = query(handle, view, expression::ids(ids), fields);
        let Some(reply) = self.engine.ask(request).await? else { return Ok(Default::default()) };
        let columns = Columns::new(reply.fields_data);
        let with_vectors = fields.contains(&rows::VECTOR);
        let read = |row| columns.item(row, handle.contract, with_vectors).zip(columns.kept(row));
        let read =
            (0..columns.rows()).map(|row| read(row).ok_or_else(|| self.broken("an item without its fields")));
        Ok(read.collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
    }

    /// Writes what is still in the state that its vector was made from. It is looked at before and after, so that
    /// what is deleted or written meanwhile is not in the spare in the end, whichever came first.
    async fn fill_one(
        &self,
        change: &Change,
        serving: &Handle,
        spare: &Handle,
        items: Vec<Refreshed>,
    ) -> Result<u64, StoreError> {
        let ids: Vec<ItemId> = items.iter().map(|item| item.id.clone()).collect();
        let (there, kept) = self.items_of(serving, View::STRONG, &ids, &rows::PLAIN).await?;
        let there: HashMap<ItemId, (Item, Kept)> =
            there.into_iter().zip(kept).map(|(item, kept)| (item.id.clone(), (item, kept))).collect();
        let mut made = Vec::with_capacity(items.len());
        for Refreshed { id, seq, vector, .. } in items {
            let Some((item, kept)) = there.get(&id).filter(|(item, _)| item.seq == seq) else { continue };
            if vector.dim() != spare.dim {
                continue;
            }
            let (metadata, content_hash) = (item.metadata.clone(), item.content_hash);
            let (contract, thumbnail, picture) = (spare.contract, None, None);
            let new = NewItem { id, vector, contract, metadata, content_hash, thumbnail, picture };
            made.push((new, seq, item.created, item.updated, *kept));
        }
        let rows: Vec<Stamped<'_>> = made
            .iter()
            .map(|(item, seq, created, updated, kept)| Stamped {
                item,
                seq: *seq,
                created: *created,
                updated: *updated,
                kept: *kept,
            })
            .collect();
        for rows in rows::calls(&rows) {
            self.leading()?;
            let request = proto::Upsert {
                collection_name: spare.physical.clone(),
                fields_data: rows::encode(rows, spare.dim),
                num_rows: rows.len() as u32,
            };
            // Not tried again by itself, so that it is over before another process may lead.
            let limit = self.options.address.timeout.min(Duration::from_millis(change.lead_ms / 2));
            let written = self.engine.client.once(request, limit).await;
            if Fault::unless_gone(written.map_err(|error| self.engine.fault(error)))?.is_none() {
                return Ok(0);
            }
        }
        let states = self.states_of(serving, &ids).await?;
        let wrong: Vec<ItemId> = rows
            .iter()
            .filter(|row| states.get(&row.item.id) != Some(&row.seq))
            .map(|row| row.item.id.clone())
            .collect();
        Fault::unless_gone(self.engine.delete_rows(spare, &wrong).await)?;
        Ok((rows.len() - wrong.len()) as u64)
    }

    pub(super) async fn overlap(
        &self,
        to: Contract,
        k: usize,
        sample: usize,
    ) -> Result<Option<f64>, StoreError> {
        let (record, change) = self.leading()?;
        let mut all = Vec::new();
        for handle in self.engine.registry.all_in(record.serving).await? {
            let pair = self.pair((record.serving, change.generation), &handle.name).await?;
            if let Some((serving, spare)) = pair.filter(|(_, spare)| spare.contract == to) {
                all.extend(self.overlaps(&serving, &spare, k, sample).await?);
            }
        }
        Ok((!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64))
    }

    /// The share of neighbours that both name, of evenly spaced items.
    async fn overlaps(
        &self,
        serving: &Handle,
        spare: &Handle,
        k: usize,
        sample: usize,
    ) -> Result<Vec<f64>, StoreError> {
        // One moment for all: only the first read waits until the engine has seen what was written before it.
        let view = View::since(Some(self.engine.client.now().await?));
        let mut request = query(spare, view, "id > \"\"".to_owned(), &[rows::ID]);
        request.query_params.push(Pair::new("limit", SAMPLED));
        let columns = Columns::new(self.engine.client.ask(request).await?.fields_data);
        let mut ids: Vec<ItemId> = (0..columns.rows()).filter_map(|row| columns.id(row)).collect();
        ids.sort_unstable();
        let stride = (ids.len() / sample.max(1)).max(1);
        let ids: Vec<ItemId> = ids.into_iter().step_by(stride).take(sample).collect();
        let mut fields = rows::PLAIN.to_vec();
        fields.push(rows::VECTOR);
        let mut overlaps = Vec::with_capacity(ids.len());
        for ids in ids.chunks(VECTORS) {
            let (before, _) = self.items_of(serving, view, ids, &fields).await?;
            let (after, _) = self.items_of(spare, view, ids, &fields).await?;
            let after: HashMap<ItemId, Item> =
                after.into_iter().map(|item| (item.id.clone(), item)).collect();
            for old in before {
                let Some(new) = after.get(&old.id) else { continue };
                let before = self.near((serving, view), &old, k).await?;
                let after = self.near((spare, view), new, k).await?;
                let common = before.iter().filter(|id| after.contains(id)).count();
                overlaps.push(common as f64 / before.len().max(after.len()).max(1) as f64);
            }
        }
        Ok(overlaps)
    }

    async fn near(
        &self,
        (handle, view): (&Handle, View),
        item: &Item,
        k: usize,
    ) -> Result<Vec<ItemId>, StoreError> {
        let Some(vector) = item.vector.clone() else { return Ok(Vec::new()) };
        let (contract, exclude) = (item.contract, vec![item.id.clone()]);
        let query =
            Query { vector, contract, k, filter: None, exclude, min_score: None, with_vectors: false };
        Ok(self.nearest_in(handle, view, &query).await?.into_iter().map(|near| near.id).collect())
    }
}
