//! The writer: one thread through which all writes go, many in one transaction.
//!
//! While one transaction is being fsynced, further writes queue; the next transaction takes them all, with
//! one fsync, then shows them to searches, then acknowledges them. So a lone write waits for one fsync, and
//! under load the cost of an fsync is shared.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::files::{DataDir, database_error};
use super::generations::{Step, StepDone};
use super::registry::{Collection, IndexMaker, Registry};
use super::rows;
use super::tender::{Tender, Wake};
use super::trouble::Trouble;
use crate::store::queue::{Group, Groups, Reply, UpsertResults, Write};
use crate::store::{CollectionName, ItemId, NewItem, StoreError, Upserted};

/// What has a transaction of its own, or none.
pub enum Alone {
    /// A write of a refresh.
    Step(Step, Reply<StepDone>),
    /// Tries whether the disk takes writes.
    Try(Reply<()>),
    /// Ends the thread once the readers' threads have ended.
    Close(Vec<JoinHandle<()>>, Reply<()>),
}

/// What is written to try the disk: less may fit into what a write that failed has left of the log.
pub const TRIAL_BYTES: usize = 1 << 20;
/// The setting that it is, for a moment.
const TRIAL_SETTING: &str = "disk-trial";

/// What is answered after the commit.
enum Answer {
    Upsert(Reply<UpsertResults>, Result<UpsertResults, StoreError>),
    Delete(Reply<Vec<bool>>, Result<Vec<bool>, StoreError>),
    Drop(Reply<bool>, bool),
}

impl Answer {
    /// Of a write that was not tried.
    fn none(write: Write) -> Self {
        match write {
            Write::Upsert { reply, .. } => Self::Upsert(reply, Err(StoreError::Closed)),
            Write::Delete { reply, .. } => Self::Delete(reply, Err(StoreError::Closed)),
            Write::Drop { reply, .. } => Self::Drop(reply, false),
        }
    }

    // A caller that has gone needs no answer, so that failing to send one is no error.
    fn send(self) {
        match self {
            Self::Upsert(reply, answer) => drop(reply.send(answer)),
            Self::Delete(reply, answer) => drop(reply.send(answer)),
            Self::Drop(reply, answer) => drop(reply.send(Ok(answer))),
        }
    }

    fn fail(self, error: StoreError) {
        match self {
            Self::Upsert(reply, _) => drop(reply.send(Err(error))),
            Self::Delete(reply, _) => drop(reply.send(Err(error))),
            Self::Drop(reply, _) => drop(reply.send(Err(error))),
        }
    }
}

/// What searches are shown after the commit, in order.
enum Change {
    Create(Arc<Collection>),
    Put(Arc<Collection>, NewItem, u64),
    Remove(Arc<Collection>, ItemId),
    Drop(CollectionName),
}

/// The thread's state.
pub struct Writer {
    pub data: DataDir,
    pub path: PathBuf,
    pub connection: Connection,
    pub registry: Arc<Registry>,
    pub make: IndexMaker,
    pub seq: Arc<AtomicU64>,
    pub trouble: Arc<Trouble>,
    pub wake: Wake,
    pub tender: Tender,
}

impl Writer {
    /// Works until the queue is closed or an [`Alone::Close`] comes.
    pub fn run(mut self, mut queue: Groups<Alone>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(Group { writes, alone, permits: _held }) = queue.blocking_next() else { break };
            self.commit(writes);
            match alone {
                Some(Alone::Step(step, reply)) => self.step(step, reply),
                Some(Alone::Try(reply)) => self.try_disk(reply),
                Some(Alone::Close(readers, reply)) => closing = Some((readers, reply)),
                None => {}
            }
        }
        let (readers, reply) = closing.unzip();
        queue.close();
        for reader in readers.unwrap_or_default() {
            // A reader that panicked has ended too.
            let _ = reader.join();
        }
        self.finish();
        if let Some(reply) = reply {
            // Nobody may be waiting any more.
            let _: Result<(), _> = reply.send(Ok(()));
        }
    }

    /// Folds the log into the database, so that the next start is quick, and lets go of the folder.
    fn finish(self) {
        self.tender.end();
        self.make.vectors.close();
        let folded = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = folded.and_then(|()| self.connection.close().map_err(|(_, error)| error)) {
            tracing::warn!(%error, "the database was left with its log; nothing is lost");
        }
        drop(self.data);
    }

    fn commit(&mut self, writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        let seq = self.seq.load(Ordering::Relaxed);
        let mut answers = Vec::with_capacity(writes.len());
        let result = (|| -> Result<(Vec<Change>, u64), rusqlite::Error> {
            let begun = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
            let transaction = match begun {
                Ok(transaction) => transaction,
                Err(error) => {
                    answers.extend(writes.into_iter().map(Answer::none));
                    return Err(error);
                }
            };
            let mut batch = Batch {
                transaction: &transaction,
                registry: &self.registry,
                make: &self.make,
                staged: HashMap::new(),
                changes: Vec::new(),
                seq,
                failure: None,
            };
            answers.extend(writes.into_iter().map(|write| batch.write(write)));
            let Batch { changes, seq, failure, .. } = batch;
            if let Some(failure) = failure {
                return Err(failure);
            }
            rows::set_last_seq(&transaction, seq)?;
            transaction.commit()?;
            Ok((changes, seq))
        })();
        match result {
            Ok((changes, seq)) => {
                self.seq.store(seq, Ordering::Relaxed);
                self.trouble.is_over();
                changes.into_iter().for_each(|change| self.show(change));
                self.wake.wake();
                answers.into_iter().for_each(Answer::send);
            }
            Err(error) => {
                let error = database_error(error, &self.path);
                self.trouble.note(&error);
                tracing::error!(%error, writes = answers.len(), "a write failed and was undone");
                answers.into_iter().for_each(|answer| answer.fail(error.clone()));
            }
        }
    }

    fn try_disk(&mut self, reply: Reply<()>) {
        let tried = write_and_remove(&mut self.connection).map_err(|error| database_error(error, &self.path));
        match &tried {
            Ok(()) => self.trouble.is_over(),
            Err(error) => self.trouble.note(error),
        }
        // Whoever asked may have gone.
        let _: Result<(), _> = reply.send(tried);
    }

    fn show(&self, change: Change) {
        match change {
            Change::Create(collection) => self.registry.insert(collection),
            Change::Put(collection, item, seq) => collection.put(&item, seq),
            Change::Remove(collection, id) => collection.remove(&id),
            Change::Drop(name) => self.registry.remove(&name),
        }
    }
}

/// Writes something of the size of a few items, to see whether there is room, and removes it again.
fn write_and_remove(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = " ".repeat(TRIAL_BYTES);
    transaction.execute("INSERT OR REPLACE INTO settings VALUES (?1, ?2)", (TRIAL_SETTING, value))?;
    transaction.commit()?;
    connection.execute("DELETE FROM settings WHERE name = ?1", [TRIAL_SETTING]).map(drop)
}

/// One transaction in the making.
struct Batch<'a> {
    transaction: &'a Transaction<'a>,
    registry: &'a Registry,
    make: &'a IndexMaker,
    /// Collections that this transaction made, or deleted (none).
    staged: HashMap<CollectionName, Option<Arc<Collection>>>,
    changes: Vec<Change>,
    seq: u64,
    /// Why the transaction cannot be committed. Later writes are not tried; all fail.
    failure: Option<rusqlite::Error>,
}

impl Batch<'_> {
    fn write(&mut self, write: Write) -> Answer {
        match write {
            Write::Upsert { collection, items, reply } => {
                let answer = self.attempt(|batch| batch.upsert(&collection, items));
                Answer::Upsert(reply, Ok(answer.unwrap_or_default()))
            }
            Write::Delete { collection, ids, reply } => {
                let answer = self.attempt(|batch| batch.delete(&collection, ids));
                Answer::Delete(reply, answer.unwrap_or(Err(StoreError::Closed)))
            }
            Write::Drop { collection, reply } => {
                let answer = self.attempt(|batch| batch.drop_collection(collection));
                Answer::Drop(reply, answer.unwrap_or_default())
            }
        }
    }

    /// Gives nothing once the transaction has failed; then no answer counts.
    fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> rusqlite::Result<T>) -> Option<T> {
        if self.failure.is_some() {
            return None;
        }
        work(self).map_err(|error| self.failure = Some(error)).ok()
    }

    fn find(&self, name: &CollectionName) -> Option<Arc<Collection>> {
        match self.staged.get(name) {
            Some(staged) => staged.clone(),
            None => self.registry.find(name),
        }
    }

    fn upsert(&mut self, name: &CollectionName, items: Vec<NewItem>) -> rusqlite::Result<UpsertResults> {
        let mut results = Vec::with_capacity(items.len());
        let mut collection = self.find(name);
        for item in items {
            let collection = match &collection {
                Some(collection) => collection,
                None => collection.insert(self.create(name, &item)?),
            };
            if let Err(error) = collection.check(&item.vector, item.contract) {
                results.push(Err(error));
                continue;
            }
            self.seq += 1;
            let created = rows::upsert(self.transaction, collection.row.key, &item, self.seq)?;
            results.push(Ok(Upserted { id: item.id.clone(), seq: self.seq, created }));
            self.changes.push(Change::Put(Arc::clone(collection), item, self.seq));
        }
        Ok(results)
    }

    fn create(&mut self, name: &CollectionName, first: &NewItem) -> rusqlite::Result<Arc<Collection>> {
        let row = rows::insert_collection(self.transaction, name, first.contract, first.vector.dim())?;
        let collection = Arc::new(Collection::new(row, self.make));
        self.staged.insert(name.clone(), Some(Arc::clone(&collection)));
        self.changes.push(Change::Create(Arc::clone(&collection)));
        Ok(collection)
    }

    fn delete(
        &mut self,
        name: &CollectionName,
        ids: Vec<ItemId>,
    ) -> rusqlite::Result<Result<Vec<bool>, StoreError>> {
        let Some(collection) = self.find(name) else {
            let unknown = StoreError::UnknownCollection(name.clone());
            return Ok(if name.is_default() { Ok(vec![false; ids.len()]) } else { Err(unknown) });
        };
        let mut there = Vec::with_capacity(ids.len());
        let spare = self.registry.spare(name);
        for id in ids {
            // What is deleted must not come back with a switch.
            if let Some(spare) = &spare
                && rows::delete(self.transaction, spare.row.key, &id)?
            {
                self.changes.push(Change::Remove(Arc::clone(spare), id.clone()));
            }
            let deleted = rows::delete(self.transaction, collection.row.key, &id)?;
            if deleted {
                self.seq += 1;
                self.changes.push(Change::Remove(Arc::clone(&collection), id));
            }
            there.push(deleted);
        }
        Ok(Ok(there))
    }

    fn drop_collection(&mut self, name: CollectionName) -> rusqlite::Result<bool> {
        let Some(collection) = self.find(&name) else { return Ok(false) };
        rows::delete_collection(self.transaction, collection.row.key)?;
        if let Some(spare) = self.registry.spare(&name) {
            rows::delete_collection(self.transaction, spare.row.key)?;
        }
        self.seq += 1;
        self.staged.insert(name.clone(), None);
        self.changes.push(Change::Drop(name));
        Ok(true)
    }
}
