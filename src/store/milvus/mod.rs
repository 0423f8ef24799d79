//! The distributed engine: items in Milvus, so that several latentd serve one set of them.
//!
//! Milvus keeps and searches the vectors ([`registry`] says which of its collections are ours, [`rows`] how an item
//! lies in one); pictures lie in a folder ([`pictures`]). A process sees its own writes at once and those of others
//! after a moment, unless the address asks for more ([`Consistency`]).

mod address;
mod agreement;
mod client;
mod compare;
mod engine;
mod expression;
mod fields;
mod fill;
mod generations;
mod labels;
mod leading;
mod pictures;
mod proto;
mod recent;
mod record;
mod registry;
mod rows;
mod search;
mod upkeep;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub use self::address::{Address, AddressError, Consistency, IndexKind};
use self::agreement::Agreement;
use self::client::{CallError, Client};
use self::compare::Source;
use self::engine::{Engine, View, query};
use self::leading::Leading;
use self::pictures::{Kind, Pictures};
use self::recent::Recent;
use self::registry::{Handle, Registry};
use self::rows::{Columns, Kept};
use self::writer::{Close, Writer};
use super::queue::{Limits, Queue};
use super::refresh::KeptPicture;
use super::{
    Answer, CollectionInfo, CollectionName, IndexInfo, InvalidValue, Item, ItemId, MAX_PAGE, Neighbour,
    NewItem, Query, Store, StoreError, StoreStats, Thumbnail, Upserted,
};

/// The oldest Milvus that has all that is used: upserts, JSON fields and membership in their lists, counts.
const OLDEST: (u32, u32) = (2, 3);
/// Collections whose items are counted at once.
const COUNTS: usize = 4;

/// How the distributed engine is opened.
#[derive(Debug, Clone)]
pub struct MilvusOptions {
    /// Where it is and how it is used.
    pub address: Address,
    /// `user:password` or an API key.
    pub token: Option<String>,
    /// The folder of pictures.
    pub pictures: PathBuf,
    /// Searches that may run or wait.
    pub max_searches: usize,
    /// Writes that may wait.
    pub max_writes: usize,
    /// KiB of items that may wait to be written.
    pub max_write_kib: usize,
    /// How long a write waits for its place in the queue.
    pub write_wait: Duration,
}

impl MilvusOptions {
    /// The defaults, for this address and folder of pictures.
    pub fn new(address: Address, pictures: impl Into<PathBuf>) -> Self {
        Self {
            address,
            token: None,
            pictures: pictures.into(),
            max_searches: 256,
            max_writes: 1024,
            max_write_kib: 256 * 1024,
            write_wait: Duration::from_secs(10),
        }
    }
}

/// A store in a Milvus engine.
pub struct MilvusStore {
    engine: Arc<Engine>,
    version: String,
    searches: Semaphore,
    leading: tokio::sync::Mutex<Leading>,
    queue: Queue<Close>,
    options: MilvusOptions,
}

impl MilvusStore {
    /// Waits for the engine, checks its version, and makes the database when it is missing.
    ///
    /// # Errors
    /// An engine that does not answer in time, that refuses, or that is too old; collections of another program or
    /// of a newer latentd where ours should be.
    pub async fn open(options: MilvusOptions) -> Result<Self, StoreError> {
        let client = Client::new(&options.address, options.token.as_deref())?;
        let version = wait_for(&client).await?;
        make_database(&client).await?;
        let agreement = Arc::new(Agreement::open(client.clone()).await?);
        let engine = Arc::new(Engine {
            registry: Registry::new(client.clone(), Arc::clone(&agreement), client.now().await?),
            agreement,
            client,
            pictures: Pictures::new(options.pictures.clone()),
            recent: Mutex::new(Recent::new()),
            seq: AtomicU64::new(0),
        });
        engine.registry.tidy().await?;
        engine.agreement.tidy().await?;
        tokio::spawn(Agreement::watch(Arc::downgrade(&engine.agreement)));
        let collections = engine.registry.all().await?.len();
        let limits =
            Limits { writes: options.max_writes, kib: options.max_write_kib, wait: options.write_wait };
        let (queue, groups) = Queue::new(limits);
        tokio::spawn(Writer(Arc::clone(&engine)).run(groups));
        tracing::info!(address = %options.address, version, collections, "store opened");
        Ok(Self {
            engine,
            version,
            searches: Semaphore::new(options.max_searches),
            leading: tokio::sync::Mutex::default(),
            queue,
            options,
        })
    }

    /// Fails once the store was closed.
    fn is_open(&self) -> Result<(), StoreError> {
        self.queue.is_open()
    }

    /// An answer of the engine that it cannot have given in earnest.
    fn broken(&self, what: &str) -> StoreError {
        let reason = format!("it answered with {what}");
        StoreError::Engine { address: self.options.address.to_string(), reason }
    }

    /// The fields of items that an expression names, at most `limit`, by id.
    async fn rows(
        &self,
        name: &CollectionName,
        expr: &str,
        fields: &[&str],
        limit: Option<usize>,
    ) -> Result<Option<(Arc<Handle>, Columns)>, StoreError> {
        self.is_open()?;
        let request = |handle: &Handle| {
            let mut query = query(handle, self.engine.view(handle), expr.to_owned(), fields);
            query.query_params.extend(limit.map(|limit| proto::Pair::new("limit", limit)));
            query
        };
        let found = self.engine.read(name, request).await?;
        Ok(found.map(|(handle, reply)| (handle, Columns::new(reply.fields_data))))
    }

    /// What is kept of an item's picture, and in which folder.
    async fn kept(&self, name: &CollectionName, id: &ItemId) -> Result<Option<Source>, StoreError> {
        self.is_open()?;
        let expr = expression::ids([id]);
        let request = |handle: &Handle| query(handle, self.engine.view(handle), expr.clone(), &rows::KNOWN);
        let Some((handle, reply)) = self.engine.read(name, request).await? else { return Ok(None) };
        let columns = Columns::new(reply.fields_data);
        if columns.rows() == 0 {
            return Ok(None);
        }
        let kept = columns.kept(0).ok_or_else(|| self.broken("an item without its fields"))?;
        Ok(Some((handle.pictures.clone(), kept)))
    }

    async fn picture(
        &self,
        folder: &str,
        id: ItemId,
        kept: Kept,
        kind: Kind,
    ) -> Result<Option<bytes::Bytes>, StoreError> {
        let is_kept = match kind {
            Kind::Thumbnail => kept.thumbnail,
            Kind::Original => kept.original,
        };
        if !is_kept {
            return Ok(None);
        }
        let (pictures, folder) = (self.engine.pictures.clone(), folder.to_owned());
        let read = tokio::task::spawn_blocking(move || pictures.read(&folder, &id, &kept, kind)).await;
        read.unwrap_or(Err(StoreError::Internal("reading a picture panicked")))
    }

    /// The file, where it is kept, else the thumbnail.
    async fn picture_of(
        &self,
        id: &ItemId,
        (folder, kept): Source,
    ) -> Result<Option<KeptPicture>, StoreError> {
        let read = |kind| self.picture(&folder, id.clone(), kept, kind);
        if let Some(original) = read(Kind::Original).await? {
            return Ok(Some(KeptPicture::Original(original)));
        }
        Ok(read(Kind::Thumbnail).await?.map(KeptPicture::Thumbnail))
    }

    async fn page(
        &self,
        name: CollectionName,
        after: Option<ItemId>,
        limit: usize,
        vectors: bool,
    ) -> Result<Vec<Item>, StoreError> {
        if limit == 0 || limit > MAX_PAGE {
            return Err(InvalidValue::Limit(limit).into());
        }
        let after = after.as_ref().map_or("", ItemId::as_str);
        let expr = format!("id > {}", expression::quote(after));
        let mut fields = rows::PLAIN.to_vec();
        if vectors {
            fields.push(rows::VECTOR);
        }
        let Some((handle, columns)) = self.rows(&name, &expr, &fields, Some(limit)).await? else {
            return Ok(Vec::new());
        };
        let item = |row| {
            let item = columns.item(row, handle.contract, vectors);
            item.ok_or_else(|| self.broken("an item without its fields"))
        };
        let mut page = (0..columns.rows()).map(item).collect::<Result<Vec<_>, _>>()?;
        page.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(page)
    }

    /// How many items a collection has; none when it went meanwhile.
    async fn count(&self, handle: &Handle, view: View) -> Result<Option<u64>, StoreError> {
        let request = query(handle, view, String::new(), &["count(*)"]);
        match self.engine.client.call(request).await {
            Ok(reply) => {
                let count = Columns::new(reply.fields_data).count();
                count.map(Some).ok_or_else(|| self.broken("no number"))
            }
            Err(CallError::NotFound(_)) => Ok(None),
            Err(error) => Err(self.engine.client.error(error)),
        }
    }

    async fn infos(&self) -> Result<Vec<CollectionInfo>, StoreError> {
        self.is_open()?;
        let handles = self.engine.registry.all().await?;
        let kind = match self.engine.client.address().index {
            IndexKind::Hnsw => crate::store::IndexKind::Hnsw,
            IndexKind::Flat => crate::store::IndexKind::Exact,
        };
        let counted = futures::stream::iter(handles).map(async |handle| {
            let count = self.count(&handle, self.engine.view(&handle)).await?;
            Ok::<_, StoreError>(count.map(|items| CollectionInfo {
                name: handle.name.clone(),
                contract: handle.contract,
                dim: handle.dim,
                items,
                damaged: 0,
                created: handle.created,
                index: IndexInfo { kind, ..IndexInfo::default() },
            }))
        });
        let counted: Vec<_> = counted.buffered(COUNTS).try_collect().await?;
        Ok(counted.into_iter().flatten().collect())
    }
}

/// Waits until the engine answers and is healthy, and gives its version.
async fn wait_for(client: &Client) -> Result<String, StoreError> {
    const REST: Duration = Duration::from_millis(500);
    let (began, address) = (Instant::now(), client.address());
    let mut told = false;
    let version = loop {
        let answer = client.once(proto::GetVersion {}, address.timeout).await;
        let answer = answer.map_err(|error| client.error(error));
        let error = match (answer, client.health().await) {
            (Ok(reply), Ok(())) => break reply.version,
            (Err(error), _) | (_, Err(error)) => error,
        };
        if !matches!(error, StoreError::Unavailable { .. }) || began.elapsed() + REST > address.wait {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%error, wait_ms = address.wait.as_millis() as u64, "waiting for the store's engine");
        }
        tokio::time::sleep(REST).await;
    };
    let mut numbers =
        version.trim_start_matches('v').split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    // A build from a branch tells a name in place of a number.
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => {
            let reason = format!("it is Milvus {version}, but latentd needs 2.3 or later");
            Err(StoreError::Engine { address: address.to_string(), reason })
        }
        _ => Ok(version),
    }
}

async fn make_database(client: &Client) -> Result<(), StoreError> {
    let name = &client.address().database;
    if name == Address::DATABASE || client.ask(proto::ListDatabases {}).await?.db_names.contains(name) {
        return Ok(());
    }
    let made = client.ask(proto::CreateDatabase { db_name: name.clone() }).await;
    // Another process may have been quicker.
    match made {
        Err(error) if !client.ask(proto::ListDatabases {}).await?.db_names.contains(name) => Err(error),
        _ => Ok(()),
    }
}

impl Store for MilvusStore {
    fn upsert(
        &self,
        collection: CollectionName,
        items: Vec<NewItem>,
    ) -> Answer<'_, Vec<Result<Upserted, StoreError>>> {
        let size = |item: &NewItem| rows::size(item) + item.picture.as_ref().map_or(0, bytes::Bytes::len);
        self.queue.upsert(collection, items, size).boxed()
    }

    fn delete(&self, collection: CollectionName, ids: Vec<ItemId>) -> Answer<'_, Vec<bool>> {
        self.queue.delete(collection, ids).boxed()
    }

    fn get(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<Item>> {
        async move {
            let mut fields = rows::PLAIN.to_vec();
            fields.push(rows::VECTOR);
            let found = self.rows(&collection, &expression::ids([&id]), &fields, None).await?;
            let Some((handle, columns)) = found.filter(|(_, columns)| columns.rows() > 0) else {
                return Ok(None);
            };
            let item = columns.item(0, handle.contract, true);
            item.map(Some).ok_or_else(|| self.broken("an item without its fields"))
        }
        .boxed()
    }

    fn thumbnail(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<Thumbnail>> {
        async move {
            let kept = self.kept(&collection, &id).await?;
            let Some((folder, kept)) = kept else { return Ok(None) };
            Ok(self.picture(&folder, id, kept, Kind::Thumbnail).await?.map(Thumbnail))
        }
        .boxed()
    }

    fn list(
        &self,
        collection: CollectionName,
        after: Option<ItemId>,
        limit: usize,
        vectors: bool,
    ) -> Answer<'_, Vec<Item>> {
        self.page(collection, after, limit, vectors).boxed()
    }

    fn search(&self, collection: CollectionName, query: Query) -> Answer<'_, Vec<Neighbour>> {
        self.nearest(collection, query)
    }

    fn collections(&self) -> Answer<'_, Vec<CollectionInfo>> {
        self.infos().boxed()
    }

    fn drop_collection(&self, collection: CollectionName) -> Answer<'_, bool> {
        self.queue.drop_collection(collection).boxed()
    }

    fn stats(&self) -> Answer<'_, StoreStats> {
        async {
            let queued_writes = self.queue.waiting()?;
            let index = match self.options.address.index {
                IndexKind::Hnsw => "hnsw M=16",
                IndexKind::Flat => "flat",
            };
            Ok(StoreStats {
                engine: "milvus",
                collections: self.infos().await?,
                seq: self.engine.seq.load(Ordering::Relaxed),
                disk_bytes: 0,
                index_bytes: 0,
                scan: format!("{index}, milvus {}", self.version),
                queued_writes,
            })
        }
        .boxed()
    }

    fn health(&self) -> Answer<'_, ()> {
        async {
            self.is_open()?;
            self.engine.client.health().await?;
            self.engine.probe().await
        }
        .boxed()
    }

    fn close(&self) -> Answer<'_, ()> {
        async {
            if self.is_open().is_ok()
                && let Err(error) = self.engine.agreement.hand_over().await
            {
                tracing::warn!(%error, "another process takes over the change of the encoder after a while");
            }
            self.queue.close(Close).await
        }
        .boxed()
    }
}
