//! The embedded engine: SQLite as the one durable truth, and in memory what answers searches.
//!
//! Writes go through one thread and are acknowledged after their fsync ([`writer`]); reads through a few
//! threads ([`readers`]); searches run on a pool of their own and touch no disk.

mod files;
mod generations;
mod readers;
mod registry;
mod rows;
mod schema;
mod snapshots;
mod tender;
mod trouble;
pub mod upkeep;
mod vectors;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

pub use self::files::Durability;
use self::files::{DataDir, database_error};
use self::readers::Readers;
use self::registry::{Collection, IndexMaker, Registry};
use self::rows::Checked;
use self::snapshots::Snapshots;
use self::tender::Tender;
use self::trouble::Trouble;
use self::vectors::VectorReaders;
use self::writer::{Alone, Writer};
use super::index::{IndexOptions, Level, MeasuredRecall, Vectors};
use super::queue::{Limits, Queue};
use super::{
    Answer, CollectionInfo, CollectionName, InvalidValue, Item, ItemId, MAX_PAGE, Neighbour, NewItem, Query,
    Store, StoreError, StoreStats, Thumbnail, Upserted,
};

/// How long whoever asks about the store's health waits for a trial of the disk.
const TRIAL: Duration = Duration::from_secs(1);

/// How the embedded engine is opened.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The data folder; made when missing.
    pub dir: PathBuf,
    /// Threads that search.
    pub search_threads: usize,
    /// Searches that may run or wait.
    pub max_searches: usize,
    /// Threads that read single items and pages.
    pub read_threads: usize,
    /// Reads that may wait.
    pub max_reads: usize,
    /// Writes that may wait.
    pub max_writes: usize,
    /// KiB of items that may wait to be written.
    pub max_write_kib: usize,
    /// How long a write waits for its place in the queue.
    pub write_wait: Duration,
    /// How vectors are kept and searched.
    pub index: IndexOptions,
    /// When a write counts as kept.
    pub durability: Durability,
}

impl EmbeddedOptions {
    /// The defaults, for this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            search_threads: std::thread::available_parallelism().map_or(1, usize::from),
            max_searches: 256,
            read_threads: 2,
            max_reads: 1024,
            max_writes: 1024,
            max_write_kib: 256 * 1024,
            write_wait: Duration::from_secs(10),
            index: IndexOptions::default(),
            durability: Durability::default(),
        }
    }
}

/// A store in a folder of this machine, for one process.
pub struct EmbeddedStore {
    options: EmbeddedOptions,
    path: PathBuf,
    registry: Arc<Registry>,
    seq: Arc<AtomicU64>,
    readers: Readers,
    pool: rayon::ThreadPool,
    linkers: Arc<rayon::ThreadPool>,
    searches: Arc<Semaphore>,
    queue: Queue<Alone>,
    trouble: Arc<Trouble>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedStore {
    /// Opens the store of a folder, or makes it, and builds the index, on a thread for blocking work.
    ///
    /// # Errors
    /// A folder that cannot be used or that another process holds; a file that is not a latentd store, is
    /// damaged, or was written by a newer latentd.
    pub async fn open(options: EmbeddedOptions) -> Result<Self, StoreError> {
        let opened = tokio::task::spawn_blocking(|| Self::open_blocking(options)).await;
        opened.unwrap_or(Err(StoreError::Internal("opening the store panicked")))
    }

    /// As [`Self::open`], on the calling thread.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_blocking(options: EmbeddedOptions) -> Result<Self, StoreError> {
        let started = Instant::now();
        let data = DataDir::lock(&options.dir)?;
        let path = data.database();
        let connection = data.open_writer(options.durability)?;
        let fail = |error| database_error(error, &path);
        let registry = Arc::new(Registry::default());
        let seq = Arc::new(AtomicU64::new(rows::last_seq(&connection).map_err(fail)?));
        let snapshots = Snapshots::new(&options.dir, Arc::clone(&seq));
        let all = rows::collections(&connection).map_err(fail)?;
        snapshots.sweep(&all.iter().map(|row| row.key).collect::<Vec<_>>());
        let make =
            IndexMaker { options: options.index, vectors: Arc::new(VectorReaders::new(data.reading())) };
        for row in all {
            let frozen = snapshots.read(&row);
            let collection = Collection::load(&connection, row, &make, frozen).map_err(fail)?;
            registry.insert(Arc::new(collection));
        }
        let readers = Readers::start(&data, options.read_threads.max(1), options.max_reads)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.search_threads.max(1))
            .thread_name(|number| format!("store-search-{number}"))
            .build()
            .map_err(|_| StoreError::Internal("the search threads could not be started"))?;
        let limits =
            Limits { writes: options.max_writes, kib: options.max_write_kib, wait: options.write_wait };
        let (queue, groups) = Queue::new(limits);
        let tender = Tender::start(Arc::clone(&registry), options.search_threads, snapshots)?;
        let linkers = tender.pool();
        let trouble = Arc::new(Trouble::default());
        let state = Writer {
            data,
            path: path.clone(),
            connection,
            registry: Arc::clone(&registry),
            make,
            seq: Arc::clone(&seq),
            trouble: Arc::clone(&trouble),
            wake: tender.wake(),
            tender,
        };
        let writer = std::thread::Builder::new()
            .name("store-write".to_owned())
            .spawn(move || state.run(groups))
            .map_err(|_| StoreError::Internal("the writer thread could not be started"))?;
        let items: u64 = registry.infos().iter().map(|info| info.items).sum();
        let ms = started.elapsed().as_millis() as u64;
        tracing::info!(path = %path.display(), items, ms, scan = scan_name(options.index), "store opened");
        Ok(Self {
            searches: Arc::new(Semaphore::new(options.max_searches)),
            options,
            path,
            registry,
            seq,
            readers,
            pool,
            linkers,
            queue,
            trouble,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Runs a read of a collection; gives `absent` for the default collection before its first item.
    async fn read<T: Send + 'static>(
        &self,
        name: &CollectionName,
        absent: T,
        read: impl FnOnce(&rusqlite::Connection, &Collection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.queue.is_open()?;
        let Some(collection) = self.registry.expect(name)? else { return Ok(absent) };
        self.readers.run(move |connection| read(connection, &collection)).await
    }

    fn sound<T>(&self, name: &CollectionName, checked: Checked<T>) -> Result<T, StoreError> {
        match checked {
            Checked::Sound(item) => Ok(item),
            Checked::Damaged(id) => {
                let reason = format!(
                    "item {id:?} of collection {name:?} does not fit its checksum; written again it heals"
                );
                Err(StoreError::Damaged { path: self.path.clone(), reason })
            }
        }
    }

    async fn find_nearest(&self, name: CollectionName, query: Query) -> Result<Vec<Neighbour>, StoreError> {
        self.queue.is_open()?;
        if query.k == 0 || query.k > Query::MAX_K {
            return Err(InvalidValue::K(query.k).into());
        }
        if query.min_score.is_some_and(|score| !(-1.0..=1.0).contains(&score)) {
            return Err(InvalidValue::MinScore.into());
        }
        let Some(collection) = self.registry.expect(&name)? else { return Ok(Vec::new()) };
        collection.check(&query.vector, query.contract)?;
        let busy = |_| StoreError::Busy { what: "searches" };
        let permit = Arc::clone(&self.searches).try_acquire_owned().map_err(busy)?;
        let (sender, receiver) = oneshot::channel();
        // Not on the searches' own threads, which others wait for.
        let linkers = Arc::clone(&self.linkers);
        self.pool.spawn(move || {
            // One that nobody waits for any more counts until its turn comes.
            if sender.is_closed() {
                return;
            }
            let gone = || sender.is_closed();
            let search = std::panic::AssertUnwindSafe(|| collection.index.search_until(&query, &gone));
            let found = std::panic::catch_unwind(search);
            let sound = found.is_ok();
            drop(permit);
            // The caller may go while the search runs, which then breaks off and shows nothing.
            let told = sender.send(found.map_err(|_| StoreError::Internal("a search panicked"))).is_ok();
            if sound && told && collection.index.samples() {
                linkers.spawn(move || collection.index.measure(&query));
            }
        });
        receiver.await.map_err(|_| StoreError::Closed)?
    }

    /// Measures a collection's recall on its own items, once its graph leads to all of them; none without items.
    ///
    /// # Errors
    /// An unknown collection, or a store that was closed.
    pub async fn recall(
        &self,
        name: &CollectionName,
        k: usize,
        queries: usize,
    ) -> Result<Option<MeasuredRecall>, StoreError> {
        self.queue.is_open()?;
        let Some(collection) = self.registry.expect(name)? else { return Ok(None) };
        // The tender makes up its mind within its first round.
        while collection.index.pending() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.queue.is_open()?;
        }
        let (sender, receiver) = oneshot::channel();
        self.pool.spawn(move || {
            // The caller may go meanwhile.
            let _ = sender.send(collection.index.measure_recall(k, queries));
        });
        receiver.await.map_err(|_| StoreError::Closed)
    }

    fn disk_bytes(&self) -> u64 {
        let size = |suffix: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            std::fs::metadata(path).map_or(0, |metadata| metadata.len())
        };
        size("") + size("-wal")
    }
}

fn scan_name(options: IndexOptions) -> String {
    let precision = match options.vectors {
        Vectors::F32 => options.precision.name(),
        Vectors::F16 => "int8+f16",
        Vectors::Int8 => "int8+database",
    };
    format!("{precision}, {}", Level::detect().name())
}

fn size_of_item(item: &NewItem) -> usize {
    let thumbnail = item.thumbnail.as_ref().map_or(0, |thumbnail| thumbnail.0.len());
    let picture = item.picture.as_ref().map_or(0, |file| file.len());
    picture + item.vector.dim() * 4 + item.id.as_str().len() + item.metadata.as_str().len() + thumbnail + 128
}

impl Store for EmbeddedStore {
    fn upsert(
        &self,
        collection: CollectionName,
        items: Vec<NewItem>,
    ) -> Answer<'_, Vec<Result<Upserted, StoreError>>> {
        self.queue.upsert(collection, items, size_of_item).boxed()
    }

    fn delete(&self, collection: CollectionName, ids: Vec<ItemId>) -> Answer<'_, Vec<bool>> {
        self.queue.delete(collection, ids).boxed()
    }

    fn get(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<Item>> {
        async move {
            let found = self.read(&collection, None, move |connection, collection| {
                rows::get(connection, &collection.row, &id)
            });
            found.await?.map(|item| self.sound(&collection, item)).transpose()
        }
        .boxed()
    }

    fn thumbnail(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<Thumbnail>> {
        async move {
            let read = move |connection: &_, collection: &Collection| {
                rows::thumbnail(connection, collection.row.key, &id)
            };
            self.read(&collection, None, read).await
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
        async move {
            if limit == 0 || limit > MAX_PAGE {
                return Err(InvalidValue::Limit(limit).into());
            }
            let read = move |connection: &_, collection: &Collection| {
                rows::list(connection, &collection.row, after.as_ref(), limit, vectors)
            };
            let found = self.read(&collection, Vec::new(), read).await?;
            found.into_iter().map(|item| self.sound(&collection, item)).collect()
        }
        .boxed()
    }

    fn search(&self, collection: CollectionName, query: Query) -> Answer<'_, Vec<Neighbour>> {
        self.find_nearest(collection, query).boxed()
    }

    fn collections(&self) -> Answer<'_, Vec<CollectionInfo>> {
        async {
            self.queue.is_open()?;
            let registry = Arc::clone(&self.registry);
            aside(move || registry.infos()).await
        }
        .boxed()
    }

    fn drop_collection(&self, collection: CollectionName) -> Answer<'_, bool> {
        self.queue.drop_collection(collection).boxed()
    }

    fn stats(&self) -> Answer<'_, StoreStats> {
        async {
            let queued_writes = self.queue.waiting()?;
            let registry = Arc::clone(&self.registry);
            let (collections, index_bytes) =
                aside(move || (registry.infos(), registry.bytes() as u64)).await?;
            Ok(StoreStats {
                engine: "embedded",
                collections,
                seq: self.seq.load(Ordering::Relaxed),
                disk_bytes: self.disk_bytes(),
                index_bytes,
                scan: scan_name(self.options.index),
                queued_writes,
            })
        }
        .boxed()
    }

    fn health(&self) -> Answer<'_, ()> {
        async {
            self.queue.has_worker()?;
            if self.trouble.is_to_be_tried() {
                // Where writes queue for longer, they are what tells.
                let _ = tokio::time::timeout(TRIAL, self.queue.alone(writer::TRIAL_BYTES, Alone::Try)).await;
            }
            self.trouble.check()
        }
        .boxed()
    }

    fn close(&self) -> Answer<'_, ()> {
        async { self.queue.close(|reply| Alone::Close(self.readers.stop(), reply)).await }.boxed()
    }
}

/// Runs what may wait for an index that is being made anew off the async threads.
async fn aside<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(look).await;
    done.map_err(|_| StoreError::Internal("looking at the collections panicked"))
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.queue.end();
        for reader in self.readers.stop() {
            // A reader that panicked has ended too.
            let _ = reader.join();
        }
        if let Some(writer) = self.writer.lock().take() {
            // Likewise.
            let _ = writer.join();
        }
    }
}
