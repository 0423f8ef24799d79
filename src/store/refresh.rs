//! Refresh: how a store changes from one encoder's vectors to another's while it serves.
//!
//! A collection has one *generation* that serves, and at most one *spare*: the vectors of the next encoder while
//! they are made, those of the previous one after the switch. A spare item has the `seq` of the write it was made
//! from, so that an item written meanwhile is told from one that is up to date, also after a crash.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::FutureExt;
use latentd_model::{Contract, Embedding};
use tokio::sync::watch;

use super::{Answer, CollectionName, ItemId};

/// Where an item stands among all collections, in the order in which a refresh goes through them.
pub type Place = (CollectionName, ItemId);

/// An item whose spare generation lacks it, or has an older state of it.
#[derive(Debug, Clone)]
pub struct Stale {
    /// Its collection.
    pub collection: CollectionName,
    /// Its id.
    pub id: ItemId,
    /// The write to make the spare from.
    pub seq: u64,
    /// Whether a picture or a thumbnail of it is kept.
    pub has_picture: bool,
}

/// What is kept of the picture that an item was made from.
#[derive(Debug, Clone)]
pub enum KeptPicture {
    /// The file as it came.
    Original(Bytes),
    /// A JPEG of at most 256 pixels a side.
    Thumbnail(Bytes),
}

/// A vector of the next encoder.
#[derive(Debug, Clone)]
pub struct Refreshed {
    /// The collection.
    pub collection: CollectionName,
    /// The item.
    pub id: ItemId,
    /// The write that it was made from.
    pub seq: u64,
    /// The vector.
    pub vector: Embedding,
}

/// How much a refresh has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Items of all collections concerned.
    pub items: u64,
    /// Those that the spare lacks or has an older state of.
    pub stale: u64,
    /// Those of the stale ones of which no picture is kept.
    pub without_picture: u64,
}

/// What a switch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switched {
    /// Every collection concerned serves the other generation now; this many items were left out.
    Done {
        /// Items that are only in the previous generation.
        left_out: u64,
    },
    /// Nothing was switched: this many items are not up to date.
    Stale(u64),
}

/// Who changes the encoder of a store that several processes share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Lead {
    /// Nobody.
    #[default]
    Nobody,
    /// This process.
    Ours,
    /// Another one, of this name.
    Other(String),
    /// Another one, which gave no sign of life for so long that its place may be taken.
    Abandoned,
}

/// What the processes that share a store agree on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Number of the agreement; later ones have larger numbers.
    pub number: u64,
    /// Whether nobody may write, since a switch is near.
    pub held: bool,
    /// Who changes the encoder.
    pub lead: Lead,
    /// All values that are kept.
    pub settings: BTreeMap<String, String>,
}

/// Keeps two generations of a collection. Concerned are the collections whose contract is `from`.
pub trait Generations {
    /// Takes the lead of a change and keeps `settings` with it; of several processes one at a time has it.
    fn refresh_lead(&self, _from: Contract, _to: Contract, settings: Vec<Setting>) -> Answer<'_, ()> {
        self.set(settings)
    }

    /// Gives every collection concerned a spare for vectors of `to`; one of that contract is kept, one of another
    /// is deleted.
    fn refresh_begin(&self, from: Contract, to: Contract, dim: usize) -> Answer<'_, ()>;

    /// What there is to do.
    fn refresh_remaining(&self, from: Contract, to: Contract) -> Answer<'_, Remaining>;

    /// At most `limit` stale items behind `after`, by collection and id.
    fn refresh_stale(
        &self,
        from: Contract,
        to: Contract,
        after: Option<Place>,
        limit: usize,
    ) -> Answer<'_, Vec<Stale>>;

    /// What is kept of an item's picture.
    fn kept_picture(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<KeptPicture>>;

    /// Puts vectors into the spares, each if its item is still that of its `seq`; tells how many it took.
    fn refresh_fill(&self, to: Contract, items: Vec<Refreshed>) -> Answer<'_, u64>;

    /// The mean share of `k` neighbours that both generations name, on about `sample` items; none without items.
    fn refresh_overlap(&self, to: Contract, k: usize, sample: usize) -> Answer<'_, Option<f64>>;

    /// Keeps other processes from writing, or lets them again. Once it is held, every write that was answered is
    /// seen, and none is answered before the switch, or the end.
    fn refresh_hold(&self, _held: bool) -> Answer<'_, ()> {
        std::future::ready(Ok(())).boxed()
    }

    /// Makes the spares serve and what served the spares, all at once, and keeps `settings` with it.
    ///
    /// Stale items are left out where `leave_out` allows it; otherwise nothing happens while there are any.
    fn refresh_switch(
        &self,
        from: Contract,
        to: Contract,
        leave_out: bool,
        settings: Vec<Setting>,
    ) -> Answer<'_, Switched>;

    /// Gives the lead back without a change, and keeps `settings`.
    fn refresh_end(&self, settings: Vec<Setting>) -> Answer<'_, ()> {
        self.set(settings)
    }

    /// Deletes the spares of a contract.
    fn refresh_discard(&self, contract: Contract) -> Answer<'_, ()>;

    /// A value that is kept with the items.
    fn setting(&self, name: &'static str) -> Answer<'_, Option<String>>;

    /// Keeps values; one of none is deleted.
    fn set(&self, settings: Vec<Setting>) -> Answer<'_, ()>;

    /// What the processes that share the store agree on, as it changes; none where one process has it alone.
    fn agreed(&self) -> Option<watch::Receiver<Agreed>> {
        None
    }
}

/// The name of a value and the value.
pub type Setting = (&'static str, Option<String>);
