//! Generations: the second set of vectors that a collection has while its encoder changes, and after.
//!
//! In the database the spare generation is a collection of its own, whose name begins with `~`, which no
//! client's can. So it is loaded, searched and deleted as any other, and the switch is a change of names.

use std::sync::Arc;

use futures::FutureExt;
use latentd_model::Contract;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::EmbeddedStore;
use super::files::database_error;
use super::registry::Collection;
use super::rows;
use super::writer::{Alone, Writer};
use crate::store::queue::Reply;
use crate::store::refresh::{
    Generations, KeptPicture, Place, Refreshed, Remaining, Setting, Stale, Switched,
};
use crate::store::{Answer, CollectionName, ItemId, Metadata, Query, StoreError};

/// A write of a refresh. Each has a transaction of its own.
pub enum Step {
    /// See [`Generations::refresh_begin`].
    Begin { from: Contract, to: Contract, dim: usize },
    /// See [`Generations::refresh_fill`].
    Fill { to: Contract, items: Vec<Refreshed> },
    /// See [`Generations::refresh_switch`].
    Switch { from: Contract, to: Contract, leave_out: bool, settings: Vec<Setting> },
    /// See [`Generations::refresh_discard`].
    Discard { contract: Contract },
    /// See [`Generations::set`].
    Set { settings: Vec<Setting> },
}

/// What a step did.
pub enum StepDone {
    /// Nothing to tell, or how many.
    Count(u64),
    /// A switch.
    Switched(Switched),
}

/// What searches are shown once a step is committed.
#[derive(Default)]
struct Shown {
    spares: Vec<Arc<Collection>>,
    removed: Vec<CollectionName>,
    put: Vec<(Arc<Collection>, Refreshed, Metadata)>,
    taken: Vec<(Arc<Collection>, ItemId)>,
    switched: Vec<CollectionName>,
}

impl Writer {
    /// Does a step and answers it.
    pub fn step(&mut self, step: Step, reply: Reply<StepDone>) {
        let done = self.transact(step).map_err(|error| {
            let error = database_error(error, &self.path);
            self.trouble.note(&error);
            tracing::error!(%error, "a write of a refresh failed and was undone");
            error
        });
        // Whoever asked may have gone.
        let _: Result<(), _> = reply.send(done);
    }

    fn transact(&mut self, step: Step) -> rusqlite::Result<StepDone> {
        let mut shown = Shown::default();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let work = Stepping { transaction: &transaction, registry: &self.registry, make: &self.make };
        let done = match step {
            Step::Begin { from, to, dim } => work.begin(from, to, dim, &mut shown),
            Step::Fill { to, items } => work.fill(to, items, &mut shown),
            Step::Switch { from, to, leave_out, settings } => {
                work.switch(from, to, leave_out, settings, &mut shown)
            }
            Step::Discard { contract } => work.discard(contract, &mut shown),
            Step::Set { settings } => set(&transaction, settings).map(|()| StepDone::Count(0)),
        }?;
        transaction.commit()?;
        let Shown { spares, removed, put, taken, switched } = shown;
        removed.iter().for_each(|name| self.registry.remove_spare(name));
        spares.into_iter().for_each(|spare| self.registry.insert_spare(spare));
        for (spare, item, metadata) in put {
            spare.index.put(&item.id, item.seq, item.vector.as_slice(), &metadata);
        }
        taken.iter().for_each(|(spare, id)| spare.remove(id));
        self.registry.switch(&switched);
        self.wake.wake();
        Ok(done)
    }
}

struct Stepping<'a> {
    transaction: &'a Transaction<'a>,
    registry: &'a super::registry::Registry,
    make: &'a super::registry::IndexMaker,
}

impl Stepping<'_> {
    fn begin(
        &self,
        from: Contract,
        to: Contract,
        dim: usize,
        shown: &mut Shown,
    ) -> rusqlite::Result<StepDone> {
        for serving in self.registry.of_contract(from) {
            let name = &serving.row.name;
            match self.registry.spare(name) {
                Some(spare) if spare.row.contract == to => continue,
                Some(spare) => {
                    rows::delete_collection(self.transaction, spare.row.key)?;
                    shown.removed.push(name.clone());
                }
                None => {}
            }
            let row = rows::insert_spare(self.transaction, &serving.row, to, dim)?;
            shown.spares.push(Arc::new(Collection::new(row, self.make)));
        }
        Ok(StepDone::Count(0))
    }

    fn fill(&self, to: Contract, items: Vec<Refreshed>, shown: &mut Shown) -> rusqlite::Result<StepDone> {
        let mut count = 0;
        for item in items {
            let Some((serving, spare)) = self.registry.pair(&item.collection, to) else { continue };
            let Refreshed { id, seq, vector, .. } = &item;
            if vector.dim() != spare.row.dim {
                continue;
            }
            let (from, into) = (serving.row.key, spare.row.key);
            if let Some(metadata) = rows::copy_with(self.transaction, from, into, id, *seq, vector)? {
                shown.put.push((spare, item, metadata));
                count += 1;
            }
        }
        Ok(StepDone::Count(count))
    }

    fn switch(
        &self,
        from: Contract,
        to: Contract,
        leave_out: bool,
        settings: Vec<Setting>,
        shown: &mut Shown,
    ) -> rusqlite::Result<StepDone> {
        let all = self.registry.of_contract(from);
        let mut pairs = Vec::with_capacity(all.len());
        let mut stale = 0;
        for serving in all {
            match self.registry.spare(&serving.row.name).filter(|spare| spare.row.contract == to) {
                Some(spare) => {
                    stale += remaining(self.transaction, serving.row.key, spare.row.key)?.stale;
                    pairs.push((serving, spare));
                }
                // It came into being after the refresh began.
                None => stale += (serving.index.len() as u64).max(1),
            }
        }
        if stale > 0 && !(leave_out && pairs.len() == self.registry.of_contract(from).len()) {
            return Ok(StepDone::Switched(Switched::Stale(stale)));
        }
        for (serving, spare) in pairs {
            if stale > 0 {
                // What the spare has of an older state would be found in place of the newer one.
                for id in rows::delete_stale(self.transaction, serving.row.key, spare.row.key)? {
                    shown.taken.push((Arc::clone(&spare), id));
                }
            }
            rows::exchange_names(self.transaction, &serving.row, &spare.row)?;
            shown.switched.push(serving.row.name.clone());
        }
        set(self.transaction, settings)?;
        Ok(StepDone::Switched(Switched::Done { left_out: stale }))
    }

    fn discard(&self, contract: Contract, shown: &mut Shown) -> rusqlite::Result<StepDone> {
        for spare in self.registry.spares().into_iter().filter(|spare| spare.row.contract == contract) {
            rows::delete_collection(self.transaction, spare.row.key)?;
            shown.removed.push(spare.row.name.clone());
        }
        Ok(StepDone::Count(0))
    }
}

fn set(connection: &Connection, settings: Vec<Setting>) -> rusqlite::Result<()> {
    for (name, value) in settings {
        match value {
            Some(value) => {
                connection.execute("INSERT OR REPLACE INTO settings VALUES (?1, ?2)", (name, value))?
            }
            None => connection.execute("DELETE FROM settings WHERE name = ?1", [name])?,
        };
    }
    Ok(())
}

fn remaining(connection: &Connection, serving: i64, spare: i64) -> rusqlite::Result<Remaining> {
    let sql = format!(
        "SELECT count(*), coalesce(sum(stale), 0), coalesce(sum(stale AND NOT pictured), 0) FROM (
            SELECT s.seq IS NULL OR s.seq != a.seq AS stale, {PICTURED} AS pictured
            FROM items a LEFT JOIN items s ON s.collection = ?2 AND s.id = a.id WHERE a.collection = ?1)"
    );
    connection.prepare_cached(&sql)?.query_row([serving, spare], |row| {
        let count = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(Remaining { items: count(0)?, stale: count(1)?, without_picture: count(2)? })
    })
}

/// Whether anything is kept of the picture of item `a`.
const PICTURED: &str = "(EXISTS (SELECT 1 FROM pictures WHERE hash = a.content_hash)
    OR EXISTS (SELECT 1 FROM thumbnails WHERE item = a.key))";

fn stale(
    connection: &Connection,
    (serving, spare): (&Collection, &Collection),
    after: &str,
    limit: usize,
) -> rusqlite::Result<Vec<Stale>> {
    let sql = format!(
        "SELECT a.id, a.seq, {PICTURED}
         FROM items a LEFT JOIN items s ON s.collection = ?2 AND s.id = a.id
         WHERE a.collection = ?1 AND a.id > ?3 AND (s.seq IS NULL OR s.seq != a.seq)
         ORDER BY a.id LIMIT ?4"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let keys = (serving.row.key, spare.row.key, after, limit as i64);
    let rows = statement.query_map(keys, |row| {
        let id = ItemId::new(row.get_ref(0)?.as_str()?).map_err(|error| rows::foreign(0, error))?;
        let collection = serving.row.name.clone();
        Ok(Stale { collection, id, seq: rows::unsigned(row, 1)?, has_picture: row.get(2)? })
    })?;
    rows.collect()
}

impl EmbeddedStore {
    async fn step(&self, bytes: usize, step: Step) -> Result<StepDone, StoreError> {
        self.queue.alone(bytes, |reply| Alone::Step(step, reply)).await
    }

    /// How many neighbours two generations share, over evenly spaced items of a collection.
    fn overlap_of(
        connection: &Connection,
        (serving, spare): &(Arc<Collection>, Arc<Collection>),
        k: usize,
        sample: usize,
    ) -> rusqlite::Result<Vec<f64>> {
        let stride = (serving.index.len() / sample.max(1)).max(1) as i64;
        let mut statement = connection.prepare_cached(
            "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY key) AS place FROM items WHERE collection = ?1)
             WHERE place % ?2 = 0 LIMIT ?3",
        )?;
        let ids =
            statement.query_map((serving.row.key, stride, sample as i64), |row| row.get::<_, String>(0))?;
        let ids: Vec<String> = ids.collect::<rusqlite::Result<_>>()?;
        let mut overlaps = Vec::with_capacity(ids.len());
        for id in ids.iter().filter_map(|id| ItemId::new(id).ok()) {
            let near = |collection: &Collection| -> rusqlite::Result<Option<Vec<ItemId>>> {
                let Some(rows::Checked::Sound(item)) = rows::get(connection, &collection.row, &id)? else {
                    return Ok(None);
                };
                let Some(vector) = item.vector else { return Ok(None) };
                let (contract, exclude) = (item.contract, vec![id.clone()]);
                let query = Query {
                    vector,
                    contract,
                    k,
                    filter: None,
                    exclude,
                    min_score: None,
                    with_vectors: false,
                };
                Ok(Some(collection.index.search(&query).into_iter().map(|near| near.id).collect()))
            };
            if let (Some(before), Some(after)) = (near(serving)?, near(spare)?) {
                let common = before.iter().filter(|id| after.contains(id)).count();
                let most = before.len().max(after.len()).max(1);
                overlaps.push(common as f64 / most as f64);
            }
        }
        Ok(overlaps)
    }
}

impl Generations for EmbeddedStore {
    fn refresh_begin(&self, from: Contract, to: Contract, dim: usize) -> Answer<'_, ()> {
        async move { self.step(0, Step::Begin { from, to, dim }).await.map(drop) }.boxed()
    }

    fn refresh_remaining(&self, from: Contract, to: Contract) -> Answer<'_, Remaining> {
        async move {
            let mut sum = Remaining::default();
            for serving in self.registry.of_contract(from) {
                let spare = self.registry.spare(&serving.row.name).filter(|spare| spare.row.contract == to);
                // Key 0 is no collection's: then everything is stale.
                let keys = (serving.row.key, spare.map_or(0, |spare| spare.row.key));
                let one = self.readers.run(move |connection| remaining(connection, keys.0, keys.1)).await?;
                sum.items += one.items;
                sum.stale += one.stale;
                sum.without_picture += one.without_picture;
            }
            Ok(sum)
        }
        .boxed()
    }

    fn refresh_stale(
        &self,
        from: Contract,
        to: Contract,
        after: Option<Place>,
        limit: usize,
    ) -> Answer<'_, Vec<Stale>> {
        async move {
            let mut found = Vec::new();
            for serving in self.registry.of_contract(from) {
                let name = &serving.row.name;
                let id = match &after {
                    Some((collection, _)) if name < collection => continue,
                    Some((collection, id)) if name == collection => id.as_str().to_owned(),
                    _ => String::new(),
                };
                let Some((serving, spare)) = self.registry.pair(name, to) else { continue };
                let left = limit - found.len();
                let read = move |connection: &_| stale(connection, (&serving, &spare), &id, left);
                found.extend(self.readers.run(read).await?);
                if found.len() >= limit {
                    break;
                }
            }
            Ok(found)
        }
        .boxed()
    }

    fn kept_picture(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<KeptPicture>> {
        async move {
            let read = move |connection: &Connection, collection: &Collection| {
                rows::kept_picture(connection, collection.row.key, &id)
            };
            self.read(&collection, None, read).await
        }
        .boxed()
    }

    fn refresh_fill(&self, to: Contract, items: Vec<Refreshed>) -> Answer<'_, u64> {
        async move {
            let bytes = items.iter().map(|item| 4 * item.vector.dim() + 256).sum();
            match self.step(bytes, Step::Fill { to, items }).await? {
                StepDone::Count(count) => Ok(count),
                StepDone::Switched(_) => Err(StoreError::Internal("a step gave another's answer")),
            }
        }
        .boxed()
    }

    fn refresh_overlap(&self, to: Contract, k: usize, sample: usize) -> Answer<'_, Option<f64>> {
        async move {
            let spares = self.registry.spares().into_iter().filter(|spare| spare.row.contract == to);
            let mut all = Vec::new();
            for spare in spares {
                let Some(pair) = self.registry.pair(&spare.row.name, to) else { continue };
                let read = move |connection: &_| Self::overlap_of(connection, &pair, k, sample);
                all.extend(self.readers.run(read).await?);
            }
            Ok((!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64))
        }
        .boxed()
    }

    fn refresh_switch(
        &self,
        from: Contract,
        to: Contract,
        leave_out: bool,
        settings: Vec<Setting>,
    ) -> Answer<'_, Switched> {
        async move {
            match self.step(0, Step::Switch { from, to, leave_out, settings }).await? {
                StepDone::Switched(switched) => Ok(switched),
                StepDone::Count(_) => Err(StoreError::Internal("a step gave another's answer")),
            }
        }
        .boxed()
    }

    fn refresh_discard(&self, contract: Contract) -> Answer<'_, ()> {
        async move { self.step(0, Step::Discard { contract }).await.map(drop) }.boxed()
    }

    fn setting(&self, name: &'static str) -> Answer<'_, Option<String>> {
        self.readers
            .run(move |connection| {
                let mut statement =
                    connection.prepare_cached("SELECT value FROM settings WHERE name = ?1")?;
                statement.query_row([name], |row| row.get(0)).optional()
            })
            .boxed()
    }

    fn set(&self, settings: Vec<Setting>) -> Answer<'_, ()> {
        async move { self.step(0, Step::Set { settings }).await.map(drop) }.boxed()
    }
}
