//! Items, queries, neighbours and figures: what goes in and out of a store.

use latentd_model::{Contract, Embedding};

use super::content::{ContentHash, Metadata, Thumbnail, Timestamp};
use super::filter::Filter;
use super::names::{CollectionName, ItemId};

/// An item that is to be kept.
#[derive(Debug, Clone)]
pub struct NewItem {
    /// What the client calls it; an item of the same id is replaced.
    pub id: ItemId,
    /// Its vector.
    pub vector: Embedding,
    /// The encoder that made the vector.
    pub contract: Contract,
    /// What the client keeps with it.
    pub metadata: Metadata,
    /// Of the picture or vector.
    pub content_hash: ContentHash,
    /// What [`super::Store::thumbnail`] gives.
    pub thumbnail: Option<Thumbnail>,
    /// The picture file, kept to be embedded again by another encoder.
    pub picture: Option<bytes::Bytes>,
}

/// An item as it is kept.
#[derive(Debug, Clone)]
pub struct Item {
    /// What the client calls it.
    pub id: ItemId,
    /// Its vector; left out by [`super::Store::list`] unless asked for.
    pub vector: Option<Embedding>,
    /// The encoder that made the vector.
    pub contract: Contract,
    /// What the client keeps with it.
    pub metadata: Metadata,
    /// Of the picture or vector.
    pub content_hash: ContentHash,
    /// Whether there is a thumbnail.
    pub has_thumbnail: bool,
    /// Number of the write that made it so; later writes have larger numbers.
    pub seq: u64,
    /// When the id was first written.
    pub created: Timestamp,
    /// When it was last written.
    pub updated: Timestamp,
}

/// What became of one item of an upsert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upserted {
    /// The item.
    pub id: ItemId,
    /// Number of this write.
    pub seq: u64,
    /// Whether the id was new.
    pub created: bool,
}

/// A search for the nearest items.
#[derive(Debug, Clone)]
pub struct Query {
    /// What to be near to.
    pub vector: Embedding,
    /// The encoder that made the vector.
    pub contract: Contract,
    /// How many at most, 1 to [`Query::MAX_K`].
    pub k: usize,
    /// Which items count; all when absent.
    pub filter: Option<Filter>,
    /// Ids that do not count.
    pub exclude: Vec<ItemId>,
    /// Lowest score that counts.
    pub min_score: Option<f32>,
    /// Whether neighbours tell their vectors.
    pub with_vectors: bool,
}

impl Query {
    /// Most neighbours of one search.
    pub const MAX_K: usize = 1000;
}

/// An item that a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbour {
    /// The item.
    pub id: ItemId,
    /// Cosine similarity, -1 to 1.
    pub score: f32,
    /// What the client keeps with it.
    pub metadata: Metadata,
    /// Its vector, where the query asks for it.
    pub vector: Option<Embedding>,
}

/// How a collection is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IndexKind {
    /// All vectors are compared.
    #[default]
    Exact,
    /// A graph tells which are compared.
    Hnsw,
}

impl IndexKind {
    /// For replies and figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Hnsw => "hnsw",
        }
    }
}

/// How a collection is searched, and how well.
#[derive(Debug, Clone, Copy, Default)]
pub struct IndexInfo {
    /// How.
    pub kind: IndexKind,
    /// Items that the graph does not lead to yet, so that they are compared with every query.
    pub waiting: u64,
    /// Nodes that a walk for ten neighbours keeps.
    pub ef: Option<usize>,
    /// Neighbours that sampled searches should have found.
    pub sampled: u64,
    /// Share of them that they found.
    pub recall: Option<f64>,
}

/// A collection and its size.
#[derive(Debug, Clone)]
pub struct CollectionInfo {
    /// Its name.
    pub name: CollectionName,
    /// The encoder that all its vectors came from.
    pub contract: Contract,
    /// Length of its vectors.
    pub dim: usize,
    /// How many items.
    pub items: u64,
    /// Items left out of searches because their checksum does not fit; written again they heal.
    pub damaged: u64,
    /// When it came into being.
    pub created: Timestamp,
    /// How it is searched.
    pub index: IndexInfo,
}

/// What a store holds and does.
#[derive(Debug, Clone)]
pub struct StoreStats {
    /// Which engine.
    pub engine: &'static str,
    /// Its collections, by name.
    pub collections: Vec<CollectionInfo>,
    /// Number of the last write.
    pub seq: u64,
    /// Bytes of the database on disk.
    pub disk_bytes: u64,
    /// Bytes of memory that answer searches.
    pub index_bytes: u64,
    /// How vectors are compared, e.g. `int8+f32, avx512-vnni`.
    pub scan: String,
    /// Writes waiting for the disk.
    pub queued_writes: usize,
}
