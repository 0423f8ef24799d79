//! The engine: what reads, searches and writes of a Milvus store share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;

use super::address::Consistency;
use super::agreement::Agreement;
use super::client::{CallError, Client};
use super::pictures::Pictures;
use super::proto;
use super::recent::{Known, Recent};
use super::registry::{Handle, Registry};
use super::rows::{self, Columns};
use crate::store::{CollectionName, ItemId, StoreError};

/// Ids of one query or deletion.
pub const IDS: usize = 1000;

/// How long an answer to the health check's query may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the parts of a Milvus store share.
pub struct Engine {
    pub client: Client,
    pub agreement: Arc<Agreement>,
    pub registry: Registry,
    pub pictures: Pictures,
    pub recent: Mutex<Recent>,
    /// Number of the last write of this process.
    pub seq: AtomicU64,
}

/// Why a call about a collection failed.
pub enum Fault {
    /// The Milvus collection is gone; there may be another in its place.
    Gone,
    /// Anything else.
    Store(StoreError),
}

impl Fault {
    /// Of a collection that is gone there is nothing.
    pub fn unless_gone<T>(outcome: Result<T, Self>) -> Result<Option<T>, StoreError> {
        match outcome {
            Ok(found) => Ok(Some(found)),
            Err(Self::Gone) => Ok(None),
            Err(Self::Store(error)) => Err(error),
        }
    }
}

/// How new what is read must be: the level, and the timestamp that goes with it.
#[derive(Debug, Clone, Copy)]
pub struct View(pub i32, pub u64);

impl View {
    /// All but the last few seconds. The proxy puts the timestamp in place of the 2.
    pub const BOUNDED: Self = Self(proto::consistency::BOUNDED, 2);

    /// Everything that was acknowledged before the read.
    pub const STRONG: Self = Self(proto::consistency::STRONG, 0);

    /// What was written up to a timestamp.
    pub fn since(written: Option<u64>) -> Self {
        written.map_or(Self::BOUNDED, |written| Self(proto::consistency::CUSTOMIZED, written))
    }
}

/// A query of some of a collection's fields.
pub fn query(handle: &Handle, view: View, expr: String, fields: &[&str]) -> proto::Query {
    proto::Query {
        collection_name: handle.physical.clone(),
        expr,
        output_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        guarantee_timestamp: view.1,
        query_params: Vec::new(),
        consistency_level: view.0,
    }
}

impl Engine {
    /// What a read of a collection must see.
    pub fn view(&self, handle: &Handle) -> View {
        match self.client.address().consistency {
            Consistency::Strong => View::STRONG,
            Consistency::Session => View::since(handle.written()),
            Consistency::Bounded => View::BOUNDED,
        }
    }

    /// Tells a collection that is gone from other errors.
    pub fn fault(&self, error: CallError) -> Fault {
        match error {
            CallError::NotFound(_) => Fault::Gone,
            error => Fault::Store(self.client.error(error)),
        }
    }

    /// Asks about a Milvus collection; none where that is gone.
    pub async fn ask<Q: proto::Rpc>(&self, request: Q) -> Result<Option<Q::Reply>, StoreError> {
        Fault::unless_gone(self.client.call(request).await.map_err(|error| self.fault(error)))
    }

    /// Asks about a collection; asks again when it turns out to be another by now.
    pub async fn read<Q: proto::Rpc>(
        &self,
        name: &CollectionName,
        request: impl Fn(&Handle) -> Q,
    ) -> Result<Option<(Arc<Handle>, Q::Reply)>, StoreError> {
        let mut tries = 0;
        loop {
            let Some(handle) = self.registry.expect(name).await? else { return Ok(None) };
            tries += 1;
            match self.client.call(request(&handle)).await.map_err(|error| self.fault(error)) {
                Ok(reply) => return Ok(Some((handle, reply))),
                Err(Fault::Gone) if tries < 3 => self.registry.forget(name),
                Err(Fault::Gone) => return Err(StoreError::UnknownCollection(name.clone())),
                Err(Fault::Store(error)) => return Err(error),
            }
        }
    }

    /// Whether a collection answers: after a start Milvus calls itself healthy some time before it has loaded them.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let Some(handle) = self.registry.any() else { return Ok(()) };
        let request = query(&handle, View::BOUNDED, "id == \"\"".to_owned(), &[rows::ID]);
        match self.client.once(request, PROBE_TIMEOUT).await {
            Ok(_) | Err(CallError::NotFound(_)) => Ok(()),
            Err(error) => Err(self.client.error(error)),
        }
    }

    /// Deletes rows, whether they are there or not.
    pub async fn delete_rows(&self, handle: &Handle, ids: &[ItemId]) -> Result<(), Fault> {
        for ids in ids.chunks(IDS) {
            let (collection_name, expr) = (handle.physical.clone(), super::expression::ids(ids));
            let request = proto::Delete { collection_name, expr };
            self.client.call(request).await.map_err(|error| self.fault(error))?;
        }
        Ok(())
    }

    /// What is known of items before a write: what this process wrote last, else what a read tells that waits for
    /// nothing. Another process' writes of the last moments may be missing.
    pub async fn known(&self, handle: &Handle, ids: &[&ItemId]) -> Result<HashMap<ItemId, Known>, Fault> {
        let mut known = HashMap::with_capacity(ids.len());
        let mut asked = Vec::with_capacity(ids.len());
        let view = {
            let recent = self.recent.lock();
            for id in ids {
                match recent.get(&handle.physical, id) {
                    Some(Some(found)) => drop(known.insert((*id).clone(), found)),
                    Some(None) => {}
                    None => asked.push(*id),
                }
            }
            if recent.incomplete() || handle.is_new() { View::since(handle.written()) } else { View::BOUNDED }
        };
        for ids in asked.chunks(IDS) {
            let request = query(handle, view, super::expression::ids(ids.iter().copied()), &rows::KNOWN);
            let reply = self.client.call(request).await.map_err(|error| self.fault(error))?;
            let columns = Columns::new(reply.fields_data);
            for row in 0..columns.rows() {
                let found = columns.id(row).zip(columns.created(row)).zip(columns.kept(row));
                if let Some(((id, created), kept)) = found {
                    known.insert(id, Known { created, kept });
                }
            }
        }
        Ok(known)
    }
}
