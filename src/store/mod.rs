//! The store: items, their vectors, and which of them are nearest.
//!
//! [`Store`] is the trait that the rest of the server sees; [`EmbeddedStore`] is the engine that needs nothing
//! beside it, [`MilvusStore`] the one that several servers share. Every value that goes in or out is typed and checked, every queue and size has a bound.

pub mod choice;
pub mod content;
pub mod diversify;
pub mod duplicates;
pub mod embedded;
pub mod error;
pub mod examples;
pub mod filter;
pub mod index;
pub mod migrate;
pub mod milvus;
pub mod names;
mod queue;
pub mod refresh;
pub mod types;

use futures::future::BoxFuture;

pub use choice::StoreChoice;
pub use content::{ContentHash, Metadata, Thumbnail, Timestamp};
pub use embedded::{Durability, EmbeddedOptions, EmbeddedStore};
pub use error::StoreError;
pub use filter::{Filter, FilterError};
pub use index::{IndexChoice, IndexOptions, Vectors};
pub use milvus::{MilvusOptions, MilvusStore};
pub use names::{CollectionName, InvalidValue, ItemId};
pub use types::{
    CollectionInfo, IndexInfo, IndexKind, Item, Neighbour, NewItem, Query, StoreStats, Upserted,
};

/// Most items of one upsert or delete.
pub const MAX_BULK: usize = 10_000;
/// Most items of one page of [`Store::list`].
pub const MAX_PAGE: usize = 1000;
/// Bytes of what was found after which a page ends.
pub const PAGE_BYTES: usize = 8 << 20;

/// What a call gives in time.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Keeps items and finds the nearest ones.
///
/// A write that was answered is durable, and every later read and search sees it. Each collection is bound to
/// the contract of its first item; a vector of another contract is refused. `default` exists from the start,
/// empty and unbound; other collections come into being with their first item.
///
/// A call that is dropped before it answers may or may not have happened.
pub trait Store: refresh::Generations + Send + Sync + 'static {
    /// Writes items, in order; each fails alone.
    ///
    /// # Errors
    /// The outer error means that nothing was written; an inner one belongs to its item.
    fn upsert(
        &self,
        collection: CollectionName,
        items: Vec<NewItem>,
    ) -> Answer<'_, Vec<Result<Upserted, StoreError>>>;

    /// Deletes items; tells of each whether it was there.
    fn delete(&self, collection: CollectionName, ids: Vec<ItemId>) -> Answer<'_, Vec<bool>>;

    /// One item with its vector.
    fn get(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<Item>>;

    /// The thumbnail of one item.
    fn thumbnail(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<Thumbnail>>;

    /// At most `limit` items in the order of their ids' bytes, those after `after`.
    ///
    /// # Errors
    /// Also a limit that is not 1 to [`MAX_PAGE`].
    fn list(
        &self,
        collection: CollectionName,
        after: Option<ItemId>,
        limit: usize,
        vectors: bool,
    ) -> Answer<'_, Vec<Item>>;

    /// The nearest items, best first; of equal scores the lesser id first.
    ///
    /// # Errors
    /// Also a vector of another contract than the collection's, and an unknown collection.
    fn search(&self, collection: CollectionName, query: Query) -> Answer<'_, Vec<Neighbour>>;

    /// All collections, by name.
    fn collections(&self) -> Answer<'_, Vec<CollectionInfo>>;

    /// Deletes a collection with all its items; tells whether it was there.
    fn drop_collection(&self, collection: CollectionName) -> Answer<'_, bool>;

    /// What the store holds and does.
    fn stats(&self) -> Answer<'_, StoreStats>;

    /// Whether it can take writes.
    fn health(&self) -> Answer<'_, ()>;

    /// Waits for the writes taken so far, tidies up and lets go of the data; later calls fail.
    fn close(&self) -> Answer<'_, ()>;
}
