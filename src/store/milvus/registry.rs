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
use serde::{Deserialize, Serialize};

use super::address::IndexKind;
use super::client::{CallError, Client};
use super::proto::{self, FieldSchema, Pair};
use super::recent::SETTLED;
use super::rows;
use crate::store::{CollectionName, StoreError, Timestamp};

/// What an alias begins with.
const ALIAS: &str = "latentd_";
/// What the name of a Milvus collection begins with; no alias begins so.
const PHYSICAL: &str = "latentdv_";
/// The schema that this build reads and writes.
const SCHEMA: u32 = 1;
/// How long what was learnt of a collection is taken as true: another process may delete it.
const FRESH: Duration = Duration::from_secs(2);
/// How long a new collection may take until it answers.
const LOAD_LIMIT: Duration = Duration::from_secs(60);
const LOAD_REST: Duration = Duration::from_millis(50);
/// What a process that died left half made is deleted after this.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Calls at once when all collections are looked at.
const AT_ONCE: usize = 8;

/// The description of a Milvus collection.
#[derive(Debug, Serialize, Deserialize)]
struct Label {
    latentd_schema: u32,
    collection: String,
    contract: Contract,
    created: i64,
}

/// A collection that serves.
#[derive(Debug)]
pub struct Handle {
    pub name: CollectionName,
    /// The Milvus collection.
    pub physical: String,
    pub contract: Contract,
    pub dim: usize,
    pub created: Timestamp,
    /// Timestamp of the last write that this process made, or of its start, and when that was.
    written: Mutex<(u64, Instant)>,
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

    /// Notes a write, or what came after it.
    pub fn wrote(&self, timestamp: u64) {
        let mut written = self.written.lock();
        *written = (written.0.max(timestamp), Instant::now());
    }
}

/// The collections of one engine.
pub struct Registry {
    client: Client,
    /// When this process began, for Milvus and for itself: what was acknowledged before must be seen too.
    began: (u64, Instant),
    known: Mutex<HashMap<CollectionName, (Instant, Arc<Handle>)>>,
}

/// The alias of a collection: Milvus' names have no `-` and `.`.
fn alias(name: &CollectionName) -> String {
    let mut alias = ALIAS.to_owned();
    for c in name.as_str().chars() {
        match c {
            '_' => alias.push_str("__"),
            '-' => alias.push_str("_d"),
            '.' => alias.push_str("_p"),
            c => alias.push(c),
        }
    }
    alias
}

impl Registry {
    /// `now` is a timestamp of the engine.
    pub fn new(client: Client, now: u64) -> Self {
        Self { client, began: (now, Instant::now()), known: Mutex::default() }
    }

    /// The collection, if it came into being.
    pub async fn find(&self, name: &CollectionName) -> Result<Option<Arc<Handle>>, StoreError> {
        if let Some((at, handle)) = self.known.lock().get(name)
            && at.elapsed() < FRESH
        {
            return Ok(Some(Arc::clone(handle)));
        }
        let found = self.describe(alias(name)).await?;
        let mut known = self.known.lock();
        let Some((handle, _)) = found else {
            known.remove(name);
            return Ok(None);
        };
        // The same one keeps what is known of this process' writes.
        let handle = match known.get(name) {
            Some((_, old)) if old.physical == handle.physical => Arc::clone(old),
            _ => Arc::new(handle),
        };
        known.insert(name.clone(), (Instant::now(), Arc::clone(&handle)));
        Ok(Some(handle))
    }

    /// The collection; `default` may have none yet, any other name must.
    pub async fn expect(&self, name: &CollectionName) -> Result<Option<Arc<Handle>>, StoreError> {
        match self.find(name).await? {
            None if !name.is_default() => Err(StoreError::UnknownCollection(name.clone())),
            found => Ok(found),
        }
    }

    /// A collection that is known, if any is.
    pub fn any(&self) -> Option<Arc<Handle>> {
        self.known.lock().values().next().map(|(_, handle)| Arc::clone(handle))
    }

    /// Forgets what was learnt of a collection, since a call showed that it is gone.
    pub fn forget(&self, name: &CollectionName) {
        self.known.lock().remove(name);
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
        let dim = dim_of(&schema.fields).ok_or_else(|| foreign("it has no vectors"))?;
        if let Some(difference) = difference(&rows::schema(dim), &schema.fields) {
            return Err(foreign(&difference));
        }
        let (contract, created) = (label.contract, Timestamp(label.created));
        let handle =
            Handle { name, physical: schema.name, contract, dim, created, written: Mutex::new(self.began) };
        Ok(Some((handle, described.aliases)))
    }

    /// All collections that serve, by name.
    pub async fn all(&self) -> Result<Vec<Arc<Handle>>, StoreError> {
        let described = self.describe_all().await?;
        let mut serving: Vec<CollectionName> = described
            .into_iter()
            .filter(|(handle, aliases)| aliases.contains(&alias(&handle.name)))
            .map(|(handle, _)| handle.name)
            .collect();
        serving.sort();
        let found = futures::stream::iter(serving).map(async |name| self.find(&name).await);
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

    /// Makes a collection, or finds the one that another process has just made.
    pub async fn create(
        &self,
        name: &CollectionName,
        contract: Contract,
        dim: usize,
    ) -> Result<Arc<Handle>, StoreError> {
        let number = self.client.now().await?;
        let physical = format!("{PHYSICAL}{}_{contract}_{number:x}", &alias(name)[ALIAS.len()..]);
        let label = Label {
            latentd_schema: SCHEMA,
            collection: name.to_string(),
            contract,
            created: Timestamp::now().0,
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
        let publish = proto::CreateAlias { collection_name: physical.clone(), alias: alias(name) };
        let published = self.client.call(publish).await;
        if published.is_err() {
            // Another process was quicker, or it is not known whether this one was.
            self.forget(name);
            let winner = self.find(name).await?;
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
        tracing::info!(collection = %name, physical, %contract, dim, "collection made");
        self.forget(name);
        self.find(name).await?.ok_or_else(|| StoreError::UnknownCollection(name.clone()))
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

    /// Deletes a collection; gives which Milvus collection it was.
    pub async fn drop_collection(&self, name: &CollectionName) -> Result<Option<String>, StoreError> {
        self.forget(name);
        let Some(handle) = self.find(name).await? else { return Ok(None) };
        self.forget(name);
        // Milvus ends both calls well when there is nothing to do, so that they can be tried again.
        self.client.ask(proto::DropAlias { alias: alias(name) }).await?;
        self.client.ask(proto::DropCollection { collection_name: handle.physical.clone() }).await?;
        Ok(Some(handle.physical.clone()))
    }

    /// Deletes what processes that died while they made or deleted a collection have left.
    pub async fn tidy(&self) -> Result<(), StoreError> {
        // The physical part of a timestamp is in milliseconds, above 18 bits of a counter.
        let now = self.client.now().await? >> 18;
        for (handle, aliases) in self.describe_all().await? {
            let age = now.saturating_sub(u64::try_from(handle.created.0).unwrap_or(u64::MAX));
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

fn dim_of(fields: &[FieldSchema]) -> Option<usize> {
    let vector = fields.iter().find(|field| field.name == rows::VECTOR)?;
    vector.type_params.iter().find(|pair| pair.key == "dim")?.value.parse().ok()
}

/// How a schema differs from the expected one, if it does. What another version of Milvus adds is no difference.
fn difference(expected: &[FieldSchema], found: &[FieldSchema]) -> Option<String> {
    for field in expected {
        let Some(other) = found.iter().find(|other| other.name == field.name) else {
            return Some(format!("it has no field {}", field.name));
        };
        let params = field.type_params.iter().all(|pair| other.type_params.contains(pair));
        if other.data_type != field.data_type || other.is_primary_key != field.is_primary_key || !params {
            return Some(format!("its field {} is of another type", field.name));
        }
    }
    let unknown = found.iter().find(|other| !expected.iter().any(|field| field.name == other.name));
    unknown.map(|field| format!("it has a field {}, which latentd does not write", field.name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn schemas_are_compared() {
        let ours = rows::schema(8);
        assert_eq!(difference(&ours, &ours), None);
        assert!(difference(&rows::schema(9), &ours).unwrap().contains("vector is of another type"));
        assert!(difference(&ours, &ours[1..]).unwrap().contains("no field id"));
        assert!(difference(&ours[1..], &ours).unwrap().contains("a field id"));
        assert_eq!(dim_of(&ours), Some(8));
    }

    proptest! {
        #[test]
        fn aliases_are_names_of_milvus_and_no_two_alike(a in "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", b in "[a-b][a_.-]{0,4}") {
            let (a, b) = (CollectionName::new(&a).unwrap(), CollectionName::new(&b).unwrap());
            prop_assert!(alias(&a).chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
            prop_assert!(alias(&a).len() < 200);
            prop_assert_eq!(alias(&a) == alias(&b), a == b);
        }
    }
}
