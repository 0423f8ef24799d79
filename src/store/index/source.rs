//! The source: where the vectors are that memory does not keep as they came.

use crate::store::ItemId;

/// An item as it is kept.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// Its metadata, as compact JSON.
    pub metadata: &'a str,
    /// Its vector.
    pub vector: &'a [f32],
}

/// Reads the items of one collection. What cannot be read or is damaged is left out.
pub trait Source: Send + Sync {
    /// Gives those of `ids` that are there, each with its place among them.
    fn read(&self, ids: &[ItemId], each: &mut dyn FnMut(usize, Stored<'_>));

    /// Gives all items.
    fn scan(&self, each: &mut dyn FnMut(&ItemId, &[f32]));
}
