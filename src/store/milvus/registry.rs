//! The registry: which collections there are, kept in Milvus itself.
//!
//! A collection is a Milvus collection whose name has its contract and a number of its own, and which never holds
//! anything else; its description says which collection of latentd it is. It serves once the alias of that
//! collection points to it. An alias can be made only once, so of two processes that make a collection at the same
//! time one makes it, and the other finds it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use latentd_model::{Contract, Embedding};
use parking_lot::Mutex;
use prost::Message;

use super::address::IndexKind;
use super::agreement::Agreement;
use super::client::{CallError, Client};
use super::labels::{self, Label, PHYSICAL, SCHEMA, alias};
use super::proto::{self, Pair};
use super::recent::SETTLED;
use super::record::Record;
use super::rows;
use crate::store::{CollectionName, StoreError, Timestamp};

/// How long what was learnt of a collection is taken as true: another process may delete it.
const FRESH: Duration = Duration::from_secs(2);
/// How long a new collection may take until it answers.
const LOAD_LIMIT: Duration = Duration::from_secs(60);
const LOAD_REST: Duration = Duration::from_millis(50);
/// What a process that died left half made is deleted after this.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Calls at once when all collections are looked at.
const AT_ONCE: usize = 8;

/// A collection of some generation.
#[derive(Debug)]
pub struct Handle {
    pub name: CollectionName,
    /// The Milvus collection.
    pub physical: String,
    pub contract: Contract,
    pub dim: usize,
    pub created: Timestamp,
    /// The folder of its pictures.
    pub pictures: String,
    /// Timestamp of the last write that this process made, or of its start, and when that was.
    written: Mutex<(u64, Instant)>,
    /// When this process first saw it, or it began to serve, if it may have been filled before.
    seen: Mutex<Option<Instant>>,
}

impl Handle {
    /// Whether a vector belongs here.
    pub fn check(&self, vector: &Embedding, contract: Contract) -> Result<(), StoreError> {
        if contract != self.contract {
            return Err(StoreError::ContractMismatch {
                collection: self.name.clone(),
                collection_contract: self.contract,
                vector_contract: contract,
            });
        }
        if vector.dim() != self.dim {
            let (collection, expected) = (self.name.clone(), self.dim);
            return Err(StoreError::DimensionMismatch { collection, expected, actual: vector.dim() });
        }
        Ok(())
    }

    /// Timestamp of the last write that this process made; none when that was so long ago that everybody sees it.
    pub fn written(&self) -> Option<u64> {
        let (timestamp, at) = *self.written.lock();
        (at.elapsed() < SETTLED).then_some(timestamp)
    }

    /// Whether it was seen so lately that others' last writes may not be seen by reads that wait for nothing.
    pub fn is_new(&self) -> bool {
        self.seen.lock().is_some_and(|seen| seen.elapsed() < SETTLED)
    }

    /// Notes that it is new here at this time of the engine.
    fn is_seen(&self, timestamp: u64) {
        self.wrote(timestamp);
        *self.seen.lock() = Some(Instant::now());
    }

    /// Notes a write, or what came after it.
    pub fn wrote(&self, timestamp: u64) {
        let mut written = self.written.lock();
        *written = (written.0.max(timestamp), Instant::now());
    }
}

/// The collections of one engine.
pub struct Registry {
    client: Client,
    pub agreement: Arc<Agreement>,
    /// The generation that serves.
    entered: Mutex<Entered>,
    /// By Milvus' name or alias.
    known: Mutex<HashMap<String, Looked>>,
}

/// A collection, and when it was looked at, unless it is to be looked at again.
type Looked = (Option<Instant>, Arc<Handle>);

/// When a generation began to serve here, for Milvus and for this process: what was acknowledged before must be seen.
struct Entered {
    generation: u64,
    at: (u64, Instant),
}

impl Registry {
    /// `now` is a timestamp of the engine.
    pub fn new(client: Client, agreement: Arc<Agreement>, now: u64) -> Self {
        let entered = Entered { generation: agreement.last().serving, at: (now, Instant::now()) };
        Self { client, agreement, entered: Mutex::new(entered), known: Mutex::default() }
    }

    /// Notes that another generation serves, before anything of it is read: what was written into it and deleted
    /// from it before it did must be seen, by whichever process.
    async fn enter(&self, generation: u64) -> Result<(), StoreError> {
        let is_other = || self.entered.lock().generation != generation;
        if generation != self.agreement.last().serving || !is_other() {
            return Ok(());
        }
        let now = self.client.now().await?;
        // Held until all collections know: whoever finds it entered reads by what they say.
        let mut entered = self.entered.lock();
        self.known.lock().values().for_each(|(_, handle)| handle.is_seen(now));
        *entered = Entered { generation, at: (now, Instant::now()) };
        Ok(())
    }

    /// The collection of a generation, if it came into being.
    pub async fn find_in(
        &self,
        generation: u64,
        name: &CollectionName,
    ) -> Result<Option<Arc<Handle>>, StoreError> {
        self.enter(generation).await?;
        let alias = alias(generation, name);
        if let Some((Some(at), handle)) = self.known.lock().get(&alias)
            && at.elapsed() < FRESH
        {
            return Ok(Some(Arc::clone(handle)));
        }
        let Some((handle, _)) = self.describe(alias.clone()).await? else {
            self.known.lock().remove(&alias);
            return Ok(None);
        };
        // What was written into it before it serves must be seen.
        if generation > 0 && self.known.lock().values().all(|(_, old)| old.physical != handle.physical) {
            handle.is_seen(self.client.now().await?);
        }
        let mut known = self.known.lock();
        // The same one keeps what is known of this process' writes, under whichever alias.
        let old = known.values().find(|(_, old)| old.physical == handle.physical);
        let handle = old.map_or_else(|| Arc::new(handle), |(_, old)| Arc::clone(old));
        known.insert(alias, (Some(Instant::now()), Arc::clone(&handle)));
        Ok(Some(handle))
    }

    /// The collection; `default` may have none yet, any other name must.
    pub async fn expect(&self, name: &CollectionName) -> Result<Option<Arc<Handle>>, StoreError> {
        self.expect_in(self.agreement.last().serving, name).await
    }

    /// As [`Self::expect`], in a generation.
    pub async fn expect_in(
        &self,
        generation: u64,
        name: &CollectionName,
    ) -> Result<Option<Arc<Handle>>, StoreError> {
        match self.find_in(generation, name).await? {
            None if !name.is_default() => Err(StoreError::UnknownCollection(name.clone())),
            found => Ok(found),
        }
    }

    /// A collection that is known, if any is.
    pub fn any(&self) -> Option<Arc<Handle>> {
        self.known.lock().values().next().map(|(_, handle)| Arc::clone(handle))
    }

    /// Has a collection looked at again, since a call showed that it is another one by now. What was written is
    /// not forgotten: where it is the same one after all, it must be seen.
    pub fn forget(&self, name: &CollectionName) {
        let mut known = self.known.lock();
        known.values_mut().filter(|(_, handle)| handle.name == *name).for_each(|(at, _)| *at = None);
    }

    /// The collection behind a name of Milvus, and its aliases.
    async fn describe(&self, name: String) -> Result<Option<(Handle, Vec<String>)>, StoreError> {
        let described =
            match self.client.call(proto::DescribeCollection { collection_name: name.clone() }).await {
                Ok(described) => described,
                Err(CallError::NotFound(_)) => return Ok(None),
                Err(error) => return Err(self.client.error(error)),
            };
        let address = format!("{}/{name}", self.client.address());
        let foreign = |reason: &str| StoreError::ForeignCollection {
            address: address.clone(),
            reason: reason.to_owned(),
        };
        let schema = described.schema.ok_or_else(|| foreign("it has no schema"))?;
        let version = serde_json::from_str::<serde_json::Value>(&schema.description)
            .ok()
            .and_then(|label| label["latentd_schema"].as_u64())
            .ok_or_else(|| foreign("its description is not one that latentd writes"))?;
        if version > u64::from(SCHEMA) {
            let reason = format!(
                "its schema version is {version}, but this latentd knows versions up to {SCHEMA}: use a newer latentd"
            );
            return Err(foreign(&reason));
        }
        let label: Label =
            serde_json::from_str(&schema.description).map_err(|error| foreign(&error.to_string()))?;
        let name = CollectionName::new(&label.collection).map_err(|error| foreign(&error.to_string()))?;
        let dim = labels::dim_of(&schema.fields).ok_or_else(|| foreign("it has no vectors"))?;
        if let Some(difference) = labels::difference(&rows::schema(dim), &schema.fields) {
            return Err(foreign(&difference));
        }
        let (contract, created) = (label.contract, Timestamp(label.created));
        let pictures = label.pictures.unwrap_or_else(|| schema.name.clone());
        let written = Mutex::new(self.entered.lock().at);
        let (physical, seen) = (schema.name, Mutex::default());
        let handle = Handle { name, physical, contract, dim, created, pictures, written, seen };
        Ok(Some((handle, described.aliases)))
    }

    /// All collections that serve, by name.
    pub async fn all(&self) -> Result<Vec<Arc<Handle>>, StoreError> {
        self.all_in(self.agreement.last().serving).await
    }

    /// All collections of a generation, by name.
    pub async fn all_in(&self, generation: u64) -> Result<Vec<Arc<Handle>>, StoreError> {
        let described = self.describe_all().await?;
        let mut serving: Vec<CollectionName> = described
            .into_iter()
            .filter(|(handle, aliases)| aliases.contains(&alias(generation, &handle.name)))
            .map(|(handle, _)| handle.name)
            .collect();
        serving.sort();
        let found = futures::stream::iter(serving).map(async |name| self.find_in(generation, &name).await);
        let found: Vec<_> = found.buffered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn describe_all(&self) -> Result<Vec<(Handle, Vec<String>)>, StoreError> {
        let shown = self.client.ask(proto::ShowCollections {}).await?;
        let ours = shown.collection_names.into_iter().filter(|name| name.starts_with(PHYSICAL));
        let described = futures::stream::iter(ours).map(|name| self.describe(name));
        let described: Vec<_> = described.buffered(AT_ONCE).try_collect().await?;
        Ok(described.into_iter().flatten().collect())
    }

    /// Makes a collection of a generation, or finds the one that another process has just made. `of` is the one
    /// that it stands beside, whose pictures are its own and which it is as old as.
    pub async fn create(
        &self,
        generation: u64,
        name: &CollectionName,
        (contract, dim): (Contract, usize),
        of: Option<&Handle>,
    ) -> Result<Arc<Handle>, StoreError> {
        let number = self.client.now().await?;
        let physical = labels::physical(name, contract, number);
        let label = Label {
            latentd_schema: if generation == 0 { 1 } else { SCHEMA },
            collection: name.to_string(),
            contract,
            created: of.map_or_else(Timestamp::now, |of| of.created).0,
            pictures: of.map(|of| of.pictures.clone()),
        };
        let description = serde_json::to_string(&label).map_err(|_| StoreError::Internal("a label"))?;
        let (name_of, fields) = (physical.clone(), rows::schema(dim));
        let schema = proto::CollectionSchema { name: name_of, description, fields };
        let address = self.client.address();
        self.client
            .ask(proto::CreateCollection {
                collection_name: physical.clone(),
                schema: schema.encode_to_vec(),
                shards_num: i32::from(address.shards),
                consistency_level: proto::consistency::BOUNDED,
            })
            .await?;
        self.make_ready(&physical).await?;
        let publish =
            proto::CreateAlias { collection_name: physical.clone(), alias: alias(generation, name) };
        let published = self.client.call(publish).await;
        if published.is_err() {
            // Another process was quicker, or it is not known whether this one was.
            self.forget(name);
            let winner = self.find_in(generation, name).await?;
            if winner.as_ref().is_none_or(|winner| winner.physical != physical) {
                let abandoned =
                    self.client.ask(proto::DropCollection { collection_name: physical.clone() }).await;
                if let Err(error) = abandoned {
                    tracing::warn!(%error, physical, "a collection that is not needed could not be deleted");
                }
            }
            return match (winner, published) {
                (Some(winner), _) => Ok(winner),
                (None, Err(error)) => Err(self.client.error(error)),
                (None, Ok(_)) => Err(StoreError::Internal("an alias went as soon as it came")),
            };
        }
        tracing::info!(collection = %name, physical, %contract, dim, generation, "collection made");
        self.forget(name);
        self.find_in(generation, name).await?.ok_or_else(|| StoreError::UnknownCollection(name.clone()))
    }

    /// Indexes and loads an empty collection, and waits until it answers.
    async fn make_ready(&self, physical: &str) -> Result<(), StoreError> {
        let (kind, params) = match self.client.address().index {
            IndexKind::Hnsw => ("HNSW", r#"{"M":16,"efConstruction":200}"#),
            IndexKind::Flat => ("FLAT", "{}"),
        };
        let extra_params =
            vec![Pair::new("index_type", kind), Pair::new("metric_type", "IP"), Pair::new("params", params)];
        let (collection_name, field) = (physical.to_owned(), rows::VECTOR.to_owned());
        let (index_name, field_name) = (field.clone(), field);
        self.client.ask(proto::CreateIndex { collection_name, field_name, extra_params, index_name }).await?;
        let (collection_name, replicas) = (physical.to_owned(), self.client.address().replicas);
        let load = proto::LoadCollection { collection_name, replica_number: i32::from(replicas) };
        self.client.ask(load).await?;
        let began = Instant::now();
        loop {
            let asked = proto::GetLoadState { collection_name: physical.to_owned() };
            if self.client.ask(asked).await?.state == proto::LOADED {
                return Ok(());
            }
            if began.elapsed() > LOAD_LIMIT {
                let reason = format!("{physical} did not load within {} s", LOAD_LIMIT.as_secs());
                return Err(self.client.error(CallError::Unavailable(reason)));
            }
            tokio::time::sleep(LOAD_REST).await;
        }
    }

    /// Deletes a collection, with all generations of it; gives the folder of its pictures.
    pub async fn drop_collection(
        &self,
        record: &Record,
        name: &CollectionName,
    ) -> Result<Option<String>, StoreError> {
        self.forget(name);
        let Some(handle) = self.find_in(record.serving, name).await? else { return Ok(None) };
        // First where it serves: what is left of the others then is no part of anything.
        let mut generations = vec![record.serving];
        generations.extend(record.previous.map(|kept| kept.generation));
        generations.extend(record.change.as_ref().map(|change| change.generation));
        for generation in generations {
            self.drop_in(generation, name).await?;
        }
        Ok(Some(handle.pictures.clone()))
    }

    /// Takes a collection out of a generation, and deletes it unless it belongs to another one.
    pub async fn drop_in(&self, generation: u64, name: &CollectionName) -> Result<(), StoreError> {
        let alias = alias(generation, name);
        let Some((handle, mut aliases)) = self.describe(alias.clone()).await? else { return Ok(()) };
        self.forget(name);
        // Milvus ends both calls well when there is nothing to do, so that they can be tried again.
        self.client.ask(proto::DropAlias { alias: alias.clone() }).await?;
        aliases.retain(|other| *other != alias);
        if aliases.is_empty() {
            self.known.lock().retain(|_, (_, known)| known.physical != handle.physical);
            self.client.ask(proto::DropCollection { collection_name: handle.physical }).await?;
        } else {
            self.known.lock().remove(&alias);
        }
        Ok(())
    }

    /// Gives a generation its share in a collection that a change does not concern.
    pub async fn share(&self, generation: u64, handle: &Handle) -> Result<(), StoreError> {
        let alias = alias(generation, &handle.name);
        let collection_name = handle.physical.clone();
        self.client.ask(proto::CreateAlias { collection_name, alias }).await.map(drop)
    }

    /// Takes out of the generations that the record does not need what they still have.
    pub async fn sweep(&self, record: &Record) -> Result<(), StoreError> {
        for (handle, aliases) in self.describe_all().await? {
            for generation in aliases.iter().filter_map(|alias| labels::generation(alias)) {
                // A later one is a change's that this record does not know of yet.
                if generation <= record.number && !record.needs(generation) {
                    self.drop_in(generation, &handle.name).await?;
                }
            }
        }
        Ok(())
    }

    /// Deletes what processes that died while they made or deleted a collection have left.
    pub async fn tidy(&self) -> Result<(), StoreError> {
        // The physical part of a timestamp is in milliseconds, above 18 bits of a counter.
        let now = self.client.now().await? >> 18;
        for (handle, aliases) in self.describe_all().await? {
            let number = handle.physical.rsplit('_').next().and_then(|n| u64::from_str_radix(n, 16).ok());
            let age = now.saturating_sub(number.unwrap_or(u64::MAX) >> 18);
            if aliases.is_empty() && u128::from(age) > ABANDONED.as_millis() {
                tracing::warn!(
                    physical = handle.physical,
                    "deleting a collection that was left half made or half deleted"
                );
                self.client.ask(proto::DropCollection { collection_name: handle.physical }).await?;
            }
        }
        Ok(())
    }
}
