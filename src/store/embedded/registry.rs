//! The registry: the collections that are open, each with its index.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use latentd_model::{Contract, Embedding};
use parking_lot::{Mutex, RwLock};
use rusqlite::Connection;

use super::rows::{self, Checked, CollectionRow};
use super::vectors::{CollectionVectors, VectorReaders};
use crate::store::index::{CollectionIndex, Frozen, IndexOptions};
use crate::store::{CollectionInfo, CollectionName, ItemId, Metadata, NewItem, StoreError};

/// A collection that is open.
pub struct Collection {
    /// As the database keeps it.
    pub row: CollectionRow,
    /// What answers its searches.
    pub index: CollectionIndex,
    /// Ids of items that do not fit their checksum.
    damaged: Mutex<HashSet<String>>,
}

/// Items that one thread hands to the other at a time while a collection is opened.
const TOGETHER: usize = 256;
/// Times as many that may wait between them.
const WAITING: usize = 4;

/// Items that were read, with their vectors one after the other.
#[derive(Default)]
struct Batch {
    items: Vec<(ItemId, u64, Metadata)>,
    vectors: Vec<f32>,
}

impl Batch {
    fn put(self, index: &CollectionIndex) {
        let dim = self.vectors.len() / self.items.len().max(1);
        for ((id, seq, metadata), vector) in self.items.iter().zip(self.vectors.chunks_exact(dim.max(1))) {
            index.put(id, *seq, vector, metadata);
        }
    }
}

/// How the indexes of collections are made.
#[derive(Clone)]
pub struct IndexMaker {
    /// How vectors are kept and searched.
    pub options: IndexOptions,
    /// What reads those that are not kept as they came.
    pub vectors: Arc<VectorReaders>,
}

impl Collection {
    /// Without items.
    pub fn new(row: CollectionRow, make: &IndexMaker) -> Self {
        let vectors = CollectionVectors::new(Arc::clone(&make.vectors), row.clone());
        let index = CollectionIndex::with_options(row.dim, make.options).with_source(Arc::new(vectors));
        Self { row, index, damaged: Mutex::default() }
    }

    /// Builds the index from the database, and from a frozen graph where there is one.
    pub fn load(
        connection: &Connection,
        row: CollectionRow,
        make: &IndexMaker,
        frozen: Option<Frozen>,
    ) -> rusqlite::Result<Self> {
        const LOGGED: usize = 10;
        let collection = Self::new(row, make);
        let mut damaged = HashSet::new();
        if let Some(frozen) = frozen {
            collection.index.thaw(frozen);
        }
        // One thread reads while another puts in what was read.
        let (sender, receiver) = sync_channel::<Batch>(WAITING);
        std::thread::scope(|scope| -> rusqlite::Result<()> {
            let index = &collection.index;
            scope.spawn(move || receiver.into_iter().for_each(|batch| batch.put(index)));
            let mut batch = Batch::default();
            rows::scan(connection, &collection.row, |item| match item {
                Checked::Sound((id, seq, vector, metadata)) => {
                    batch.items.push((id, seq, metadata));
                    batch.vectors.extend_from_slice(vector);
                    if batch.items.len() == TOGETHER {
                        // Refused only where the other thread panicked, which the scope passes on.
                        let _ = sender.send(std::mem::take(&mut batch));
                    }
                }
                Checked::Damaged(id) => {
                    if damaged.len() < LOGGED {
                        tracing::error!(collection = %collection.row.name, id,
                            "this item does not fit its checksum and is left out of searches: write it again");
                    }
                    damaged.insert(id);
                }
            })?;
            let _ = sender.send(batch);
            drop(sender);
            Ok(())
        })?;
        collection.index.thawed();
        if damaged.len() > LOGGED {
            tracing::error!(collection = %collection.row.name, items = damaged.len(), "more items are damaged");
        }
        *collection.damaged.lock() = damaged;
        Ok(collection)
    }

    /// Shows a committed write to searches.
    pub fn put(&self, item: &NewItem, seq: u64) {
        self.index.put(&item.id, seq, item.vector.as_slice(), &item.metadata);
        self.damaged.lock().remove(item.id.as_str());
    }

    /// Shows a committed deletion to searches.
    pub fn remove(&self, id: &ItemId) {
        self.index.remove(id);
        self.damaged.lock().remove(id.as_str());
    }

    /// Whether a vector belongs here.
    pub fn check(&self, vector: &Embedding, contract: Contract) -> Result<(), StoreError> {
        let collection = || self.row.name.clone();
        if contract != self.row.contract {
            return Err(StoreError::ContractMismatch {
                collection: collection(),
                collection_contract: self.row.contract,
                vector_contract: contract,
            });
        }
        if vector.dim() != self.row.dim {
            let (expected, actual) = (self.row.dim, vector.dim());
            return Err(StoreError::DimensionMismatch { collection: collection(), expected, actual });
        }
        Ok(())
    }

    fn info(&self) -> CollectionInfo {
        CollectionInfo {
            name: self.row.name.clone(),
            contract: self.row.contract,
            dim: self.row.dim,
            items: self.index.len() as u64,
            damaged: self.damaged.lock().len() as u64,
            created: self.row.created,
            index: self.index.info(),
        }
    }
}

/// All collections that are open. Only the writer changes it, after a commit.
#[derive(Default)]
pub struct Registry(RwLock<Open>);

#[derive(Default)]
struct Open {
    serving: BTreeMap<CollectionName, Arc<Collection>>,
    /// The other generation of some of them.
    spares: BTreeMap<CollectionName, Arc<Collection>>,
}

impl Registry {
    /// The collection, if it came into being.
    pub fn find(&self, name: &CollectionName) -> Option<Arc<Collection>> {
        self.0.read().serving.get(name).cloned()
    }

    /// The collection; `default` may have none yet, any other name must.
    pub fn expect(&self, name: &CollectionName) -> Result<Option<Arc<Collection>>, StoreError> {
        match self.find(name) {
            None if !name.is_default() => Err(StoreError::UnknownCollection(name.clone())),
            found => Ok(found),
        }
    }

    /// Adds a collection.
    pub fn insert(&self, collection: Arc<Collection>) {
        let mut open = self.0.write();
        let open = if collection.row.spare { &mut open.spares } else { &mut open.serving };
        open.insert(collection.row.name.clone(), collection);
    }

    /// Adds the spare generation of a collection.
    pub fn insert_spare(&self, spare: Arc<Collection>) {
        self.0.write().spares.insert(spare.row.name.clone(), spare);
    }

    /// The spare generation of a collection, if it has one.
    pub fn spare(&self, name: &CollectionName) -> Option<Arc<Collection>> {
        self.0.read().spares.get(name).cloned()
    }

    /// All spare generations.
    pub fn spares(&self) -> Vec<Arc<Collection>> {
        self.0.read().spares.values().cloned().collect()
    }

    /// A collection and its spare of that contract.
    pub fn pair(&self, name: &CollectionName, to: Contract) -> Option<(Arc<Collection>, Arc<Collection>)> {
        let open = self.0.read();
        let spare = open.spares.get(name).filter(|spare| spare.row.contract == to)?;
        Some((open.serving.get(name)?.clone(), spare.clone()))
    }

    /// The collections that serve vectors of a contract, by name.
    pub fn of_contract(&self, contract: Contract) -> Vec<Arc<Collection>> {
        let open = self.0.read();
        open.serving.values().filter(|collection| collection.row.contract == contract).cloned().collect()
    }

    /// Takes the spare of a collection out.
    pub fn remove_spare(&self, name: &CollectionName) {
        let removed = self.0.write().spares.remove(name);
        drop(removed);
    }

    /// Makes the spares of these collections serve, all at once.
    pub fn switch(&self, names: &[CollectionName]) {
        let mut open = self.0.write();
        for name in names {
            if let (Some(serving), Some(spare)) = (open.serving.remove(name), open.spares.remove(name)) {
                open.serving.insert(name.clone(), spare);
                open.spares.insert(name.clone(), serving);
            }
        }
    }

    /// Takes a collection out.
    pub fn remove(&self, name: &CollectionName) {
        // Freed outside the lock: dropping a large index takes a while.
        let mut open = self.0.write();
        let removed = (open.serving.remove(name), open.spares.remove(name));
        drop(open);
        drop(removed);
    }

    /// All of them, by name.
    pub fn infos(&self) -> Vec<CollectionInfo> {
        // An index that is being made anew is waited for without the lock.
        let serving: Vec<_> = self.0.read().serving.values().cloned().collect();
        serving.iter().map(|collection| collection.info()).collect()
    }

    /// All of them, spares too.
    pub fn all(&self) -> Vec<Arc<Collection>> {
        let open = self.0.read();
        open.serving.values().chain(open.spares.values()).cloned().collect()
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        self.all().iter().map(|collection| collection.index.bytes()).sum()
    }
}
