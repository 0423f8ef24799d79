//! The writer: one task through which all writes of this process go, many in one call.
//!
//! While a call is under way further writes queue; those of one collection that stand together go in the next call.
//! So writes of one process happen in the order in which they came.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine::{Engine, Fault};
use super::pictures::Brought;
use super::proto;
use super::recent::Known;
use super::record::Record;
use super::registry::Handle;
use super::rows::{self, Kept, Stamped};
use crate::store::queue::{Group, Groups, Reply, UpsertResults, Write};
use crate::store::{CollectionName, ItemId, NewItem, StoreError, Timestamp, Upserted};

/// Ends the task, and is answered then.
pub struct Close(pub Reply<()>);

/// How long a write may take to be answered; a change of the encoder looks for writes that are newer by twice that.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How often a write is done again when another process writes the store's agreement meanwhile.
const TRIES: usize = 3;

/// Writes that stand together and go together.
enum Run {
    Upsert(CollectionName, Vec<(Vec<NewItem>, Reply<UpsertResults>)>),
    Delete(CollectionName, Vec<ItemId>, Reply<Vec<bool>>),
    Drop(CollectionName, Reply<bool>),
}

/// Upserts that follow each other into one collection become one.
fn runs(writes: Vec<Write>) -> Vec<Run> {
    let mut runs = Vec::new();
    for write in writes {
        match write {
            Write::Upsert { collection, items, reply } => match runs.last_mut() {
                Some(Run::Upsert(last, jobs)) if *last == collection => jobs.push((items, reply)),
                _ => runs.push(Run::Upsert(collection, vec![(items, reply)])),
            },
            Write::Delete { collection, ids, reply } => runs.push(Run::Delete(collection, ids, reply)),
            Write::Drop { collection, reply } => runs.push(Run::Drop(collection, reply)),
        }
    }
    runs
}

/// The task's state.
pub struct Writer(pub Arc<Engine>);

impl Writer {
    /// Works until the queue is closed or a [`Close`] comes.
    pub async fn run(self, mut queue: Groups<Close>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(Group { writes, alone, permits: _held }) = queue.next().await else { break };
            for run in runs(writes) {
                self.carry_out(run).await;
            }
            closing = alone;
        }
        queue.close();
        if let Some(Close(reply)) = closing {
            // Nobody may be waiting any more.
            let _: Result<(), _> = reply.send(Ok(()));
        }
    }

    // A caller that has gone needs no answer, so that failing to send one is no error.
    async fn carry_out(&self, run: Run) {
        match run {
            Run::Upsert(collection, jobs) => self.upsert(collection, jobs).await,
            Run::Delete(collection, ids, reply) => drop(reply.send(self.delete(&collection, &ids).await)),
            Run::Drop(collection, reply) => drop(reply.send(self.drop_collection(&collection).await)),
        }
    }

    async fn upsert(&self, collection: CollectionName, jobs: Vec<(Vec<NewItem>, Reply<UpsertResults>)>) {
        let (mut all, mut replies) = (Vec::new(), Vec::with_capacity(jobs.len()));
        for (items, reply) in jobs {
            replies.push((items.len(), reply));
            all.extend(items);
        }
        match self.upsert_all(&collection, &all).await {
            Err(error) => {
                tracing::error!(%error, %collection, items = all.len(), "a write failed");
                for (_, reply) in replies {
                    drop(reply.send(Err(error.clone())));
                }
            }
            Ok(results) => {
                let mut results = results.into_iter();
                for (count, reply) in replies {
                    let own: UpsertResults = results.by_ref().take(count).collect();
                    drop(reply.send(whole(own)));
                }
            }
        }
    }

    /// Writes, again when the store's agreement changed meanwhile: what went by the old one may not be answered.
    async fn upsert_all(
        &self,
        name: &CollectionName,
        items: &[NewItem],
    ) -> Result<UpsertResults, StoreError> {
        let mut created = vec![false; items.len()];
        for _ in 0..TRIES {
            let ticket = self.0.agreement.ticket().await?;
            let began = Instant::now();
            let mut results = self.upsert_by(&ticket, name, items).await?;
            for (result, created) in results.iter_mut().zip(&mut created) {
                if let Ok(done) = result {
                    done.created |= *created;
                    *created = done.created;
                }
            }
            if began.elapsed() < LIMIT && self.0.agreement.holds(&ticket).await? {
                return Ok(results);
            }
        }
        Err(StoreError::Changing)
    }

    async fn upsert_by(
        &self,
        ticket: &Record,
        name: &CollectionName,
        items: &[NewItem],
    ) -> Result<UpsertResults, StoreError> {
        let Some(first) = items.first() else { return Ok(Vec::new()) };
        let (registry, generation) = (&self.0.registry, ticket.serving);
        let mut tries = 0;
        loop {
            let handle = match registry.find_in(generation, name).await? {
                Some(handle) => handle,
                None => {
                    let made = (first.contract, first.vector.dim());
                    registry.create(generation, name, made, None).await?
                }
            };
            tries += 1;
            match self.upsert_into(&handle, items).await {
                Ok(results) => return Ok(results),
                Err(Fault::Gone) if tries < 3 => registry.forget(name),
                Err(Fault::Gone) => return Err(StoreError::UnknownCollection(name.clone())),
                Err(Fault::Store(error)) => return Err(error),
            }
        }
    }

    async fn upsert_into(&self, handle: &Handle, items: &[NewItem]) -> Result<UpsertResults, Fault> {
        let ids: Vec<&ItemId> = items.iter().map(|item| &item.id).collect();
        let before = self.0.known(handle, &ids).await?;
        let timestamp = self.0.client.now().await.map_err(Fault::Store)?;
        let mut seq = timestamp.max(self.0.seq.load(Ordering::Relaxed) + 1);
        let updated = Timestamp::now();
        let mut results = Vec::with_capacity(items.len());
        // Of several items with one id the last is written.
        let mut last: HashMap<&ItemId, (usize, u64, Timestamp)> = HashMap::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            if let Err(error) = handle.check(&item.vector, item.contract) {
                results.push(Err(error));
                continue;
            }
            let there = last.get(&item.id).map(|(.., created)| *created);
            let there = there.or_else(|| before.get(&item.id).map(|known| known.created));
            last.insert(&item.id, (place, seq, there.unwrap_or(updated)));
            results.push(Ok(Upserted { id: item.id.clone(), seq, created: there.is_none() }));
            seq += 1;
        }
        self.0.seq.fetch_max(seq - 1, Ordering::Relaxed);
        let mut rows: Vec<(usize, Stamped<'_>)> = last
            .into_values()
            .map(|(place, seq, created)| (place, Stamped::new(&items[place], seq, created, updated)))
            .collect();
        rows.sort_by_key(|(place, _)| *place);
        let mut failed: HashMap<&ItemId, StoreError> = self.write_pictures(handle, items, &rows).await;
        rows.retain(|(_, row)| !failed.contains_key(&row.item.id));
        let rows: Vec<Stamped<'_>> = rows.into_iter().map(|(_, row)| row).collect();
        for rows in rows::calls(&rows) {
            match self.write_rows(handle, rows).await {
                Ok(()) => self.written(handle, rows, &before).await,
                Err(Fault::Gone) => return Err(Fault::Gone),
                Err(Fault::Store(error)) => {
                    failed.extend(rows.iter().map(|row| (&row.item.id, error.clone())));
                }
            }
        }
        for (result, item) in results.iter_mut().zip(items) {
            if let (Ok(_), Some(error)) = (&result, failed.get(&item.id)) {
                *result = Err(error.clone());
            }
        }
        Ok(results)
    }

    /// Gives the items whose pictures could not be written.
    async fn write_pictures<'a>(
        &self,
        handle: &Handle,
        items: &'a [NewItem],
        rows: &[(usize, Stamped<'_>)],
    ) -> HashMap<&'a ItemId, StoreError> {
        let brought = rows.iter().map(|(place, row)| (*place, Brought::by(row.item)));
        let brought: Vec<_> =
            brought.filter(|(_, brought)| brought.kept.thumbnail || brought.kept.original).collect();
        if brought.is_empty() {
            return HashMap::new();
        }
        let (pictures, folder) = (self.0.pictures.clone(), handle.pictures.clone());
        let places: Vec<usize> = brought.iter().map(|(place, _)| *place).collect();
        let work = tokio::task::spawn_blocking(move || {
            let write = |(place, brought): &(usize, Brought)| {
                pictures.write(&folder, brought).err().map(|error| (*place, error))
            };
            brought.iter().filter_map(write).collect::<Vec<_>>()
        });
        let failed = work.await.unwrap_or_else(|_| {
            let error = || StoreError::Internal("writing pictures panicked");
            places.into_iter().map(|place| (place, error())).collect()
        });
        failed.into_iter().map(|(place, error)| (&items[place].id, error)).collect()
    }

    async fn write_rows(&self, handle: &Handle, rows: &[Stamped<'_>]) -> Result<(), Fault> {
        let request = proto::Upsert {
            collection_name: handle.physical.clone(),
            fields_data: rows::encode(rows, handle.dim),
            num_rows: rows.len() as u32,
        };
        let reply = self.0.client.call(request).await.map_err(|error| self.0.fault(error))?;
        let timestamp = match reply.timestamp {
            0 => self.0.client.now().await.map_err(Fault::Store)?,
            timestamp => timestamp,
        };
        handle.wrote(timestamp);
        Ok(())
    }

    /// Remembers what was written, and lets go of the pictures before.
    async fn written(&self, handle: &Handle, rows: &[Stamped<'_>], before: &HashMap<ItemId, Known>) {
        let mut replaced = Vec::new();
        {
            let mut recent = self.0.recent.lock();
            for row in rows {
                let item = row.item;
                let kept = row.kept;
                if let Some(known) = before.get(&item.id).filter(|known| known.kept != kept) {
                    replaced.push((item.id.clone(), known.kept, Some(kept)));
                }
                recent.put(&handle.physical, &item.id, Some(Known { created: row.created, kept }));
            }
        }
        self.delete_pictures(handle, replaced).await;
    }

    async fn delete_pictures(&self, handle: &Handle, mut gone: Vec<(ItemId, Kept, Option<Kept>)>) {
        gone.retain(|(_, kept, _)| kept.is_something());
        if gone.is_empty() {
            return;
        }
        let (pictures, folder) = (self.0.pictures.clone(), handle.pictures.clone());
        let work = tokio::task::spawn_blocking(move || {
            for (id, kept, still) in gone {
                pictures.delete(&folder, &id, &kept, still.as_ref());
            }
        });
        if work.await.is_err() {
            tracing::error!("deleting pictures panicked");
        }
    }

    async fn delete(&self, name: &CollectionName, ids: &[ItemId]) -> Result<Vec<bool>, StoreError> {
        let mut there = vec![false; ids.len()];
        for _ in 0..TRIES {
            let ticket = self.0.agreement.ticket().await?;
            let deleted = self.delete_by(&ticket, name, ids).await?;
            there.iter_mut().zip(deleted).for_each(|(there, deleted)| *there |= deleted);
            if self.0.agreement.holds(&ticket).await? {
                return Ok(there);
            }
        }
        Err(StoreError::Changing)
    }

    async fn delete_by(
        &self,
        ticket: &Record,
        name: &CollectionName,
        ids: &[ItemId],
    ) -> Result<Vec<bool>, StoreError> {
        let registry = &self.0.registry;
        let Some(handle) = registry.expect_in(ticket.serving, name).await? else {
            return Ok(vec![false; ids.len()]);
        };
        let there = match self.delete_from(&handle, ids).await {
            Ok(there) => there,
            Err(Fault::Store(error)) => return Err(error),
            // With the collection everything in it has gone.
            Err(Fault::Gone) => {
                registry.forget(name);
                return registry.expect_in(ticket.serving, name).await.map(|_| vec![false; ids.len()]);
            }
        };
        // What is deleted must not come back with a change of the encoder.
        if let Some(generation) = ticket.spare() {
            let spare = registry.find_in(generation, name).await?;
            if let Some(spare) = spare.filter(|spare| spare.physical != handle.physical) {
                Fault::unless_gone(self.0.delete_rows(&spare, ids).await)?;
            }
        }
        Ok(there)
    }

    async fn delete_from(&self, handle: &Handle, ids: &[ItemId]) -> Result<Vec<bool>, Fault> {
        let mut before = self.0.known(handle, &ids.iter().collect::<Vec<_>>()).await?;
        // Also those that are not known: another process may have written them a moment ago.
        self.0.delete_rows(handle, ids).await?;
        // Milvus tells no timestamp of a deletion.
        handle.wrote(self.0.client.now().await.map_err(Fault::Store)?);
        let mut gone = Vec::new();
        let there = {
            let mut recent = self.0.recent.lock();
            let mut delete = |id: &ItemId| {
                recent.put(&handle.physical, id, None);
                let known = before.remove(id);
                gone.extend(known.map(|known| (id.clone(), known.kept, None)));
                known.is_some()
            };
            ids.iter().map(&mut delete).collect()
        };
        self.delete_pictures(handle, gone).await;
        Ok(there)
    }

    async fn drop_collection(&self, name: &CollectionName) -> Result<bool, StoreError> {
        let mut there = false;
        for _ in 0..TRIES {
            let ticket = self.0.agreement.ticket().await?;
            if let Some(folder) = self.0.registry.drop_collection(&ticket, name).await? {
                there = true;
                let pictures = self.0.pictures.clone();
                if tokio::task::spawn_blocking(move || pictures.delete_all(&folder)).await.is_err() {
                    tracing::error!("deleting pictures panicked");
                }
            }
            if self.0.agreement.holds(&ticket).await? {
                return Ok(there);
            }
        }
        Err(StoreError::Changing)
    }
}

/// One error for all where the engine failed on all of them.
fn whole(results: UpsertResults) -> Result<UpsertResults, StoreError> {
    let lost = |result: &Result<Upserted, StoreError>| matches!(result, Err(StoreError::Unavailable { .. }));
    match results.first() {
        Some(Err(error)) if results.iter().all(lost) => Err(error.clone()),
        _ => Ok(results),
    }
}
