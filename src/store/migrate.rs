//! Migration: all items of one store into another, compared until they are the same.
//!
//! What the other store already has and is the same is not written again, so a migration that was broken off goes on
//! where it was, and one that is repeated only compares.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::refresh::KeptPicture;
use super::{CollectionInfo, CollectionName, Item, ItemId, MAX_PAGE, NewItem, Store, StoreError};

/// Items of one page.
const PAGE: usize = 500;
/// Bytes of pictures in one write, unless one item alone has more.
const BYTES: usize = 32 << 20;

/// Why two stores are not the same.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// One of them failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Items that only the other store has.
    #[error(
        "collection {collection:?} has {items} items in the other store which are not in this one, {example:?} for one: choose an empty one, or delete them there"
    )]
    Others {
        /// The collection.
        collection: CollectionName,
        /// How many.
        items: u64,
        /// One of them.
        example: ItemId,
    },
    /// An item that is missing or differs after it was written.
    #[error(
        "item {id:?} of collection {collection:?} is not the same in the other store: run the migration again"
    )]
    Differs {
        /// The collection.
        collection: CollectionName,
        /// The item.
        id: ItemId,
    },
}

/// What became of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The collection.
    pub name: CollectionName,
    /// Its items, in both stores.
    pub items: u64,
    /// Those that were written now; the others were there.
    pub written: u64,
    /// SHA-256 over all items by id: ids, vectors, metadata, content hashes. The same in both.
    pub checksum: String,
}

/// Migrates one collection and compares it; `done` is told after each page how many items were gone through.
///
/// # Errors
/// See [`MigrateError`].
pub async fn collection(
    from: &dyn Store,
    to: &dyn Store,
    info: &CollectionInfo,
    done: &mut (dyn FnMut(usize) + Send),
) -> Result<Migrated, MigrateError> {
    let name = &info.name;
    let (mut after, mut written) = (None, 0);
    loop {
        let page = from.list(name.clone(), after.clone(), PAGE, true).await?;
        let Some(last) = page.last().map(|item| item.id.clone()) else { break };
        let there = page_of(to, name, after, MAX_PAGE).await?;
        let there: HashMap<ItemId, Vec<u8>> =
            there.iter().map(|item| (item.id.clone(), digest(item))).collect();
        let length = page.len();
        let missing = page.into_iter().filter(|item| there.get(&item.id) != Some(&digest(item)));
        written += write(from, to, name, missing.collect()).await?;
        done(length);
        after = Some(last);
    }
    let (items, checksum) = compare(from, to, name, done).await?;
    Ok(Migrated { name: name.clone(), items, written, checksum })
}

/// A page of a collection that may not be there yet.
async fn page_of(
    store: &dyn Store,
    name: &CollectionName,
    after: Option<ItemId>,
    limit: usize,
) -> Result<Vec<Item>, StoreError> {
    match store.list(name.clone(), after, limit, true).await {
        Err(StoreError::UnknownCollection(_)) => Ok(Vec::new()),
        page => page,
    }
}

async fn write(
    from: &dyn Store,
    to: &dyn Store,
    name: &CollectionName,
    items: Vec<Item>,
) -> Result<u64, MigrateError> {
    let count = items.len() as u64;
    let (mut ready, mut bytes) = (Vec::new(), 0);
    for item in items {
        let Some(new) = with_pictures(from, name, item).await? else { continue };
        bytes += new.picture.as_ref().map_or(0, bytes::Bytes::len);
        ready.push(new);
        if bytes > BYTES {
            upsert(to, name, std::mem::take(&mut ready)).await?;
            bytes = 0;
        }
    }
    upsert(to, name, ready).await?;
    Ok(count)
}

async fn upsert(to: &dyn Store, name: &CollectionName, items: Vec<NewItem>) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    to.upsert(name.clone(), items).await?.into_iter().try_for_each(|result| result.map(drop))
}

async fn with_pictures(
    from: &dyn Store,
    name: &CollectionName,
    item: Item,
) -> Result<Option<NewItem>, StoreError> {
    let Item { id, vector: Some(vector), contract, metadata, content_hash, has_thumbnail, .. } = item else {
        return Ok(None);
    };
    let thumbnail = match has_thumbnail {
        true => from.thumbnail(name.clone(), id.clone()).await?,
        false => None,
    };
    let picture = match from.kept_picture(name.clone(), id.clone()).await? {
        Some(KeptPicture::Original(file)) => Some(file),
        _ => None,
    };
    Ok(Some(NewItem { id, vector, contract, metadata, content_hash, thumbnail, picture }))
}

/// Goes through both stores side by side; gives how many items there are, and their checksum.
async fn compare(
    from: &dyn Store,
    to: &dyn Store,
    name: &CollectionName,
    done: &mut (dyn FnMut(usize) + Send),
) -> Result<(u64, String), MigrateError> {
    let (mut after, mut items, mut all) = (None, 0, Sha256::new());
    let (mut others, mut example) = (0, None);
    loop {
        let ours = from.list(name.clone(), after.clone(), PAGE, true).await?;
        let end = ours.last().map(|item| item.id.clone());
        // Up to the end of our page, or of everything.
        let mut theirs = HashMap::new();
        let mut place = after;
        loop {
            let page = page_of(to, name, place, PAGE).await?;
            let Some(last) = page.last().map(|item| item.id.clone()) else { break };
            let beyond = end.as_ref().is_some_and(|end| last >= *end);
            let within = page.into_iter().filter(|item| end.as_ref().is_none_or(|end| item.id <= *end));
            theirs.extend(within.map(|item| (item.id.clone(), digest(&item))));
            if beyond {
                break;
            }
            place = Some(last);
        }
        for item in &ours {
            let digest = digest(item);
            if theirs.remove(&item.id).as_ref() != Some(&digest) {
                return Err(MigrateError::Differs { collection: name.clone(), id: item.id.clone() });
            }
            all.update(&digest);
        }
        others += theirs.len() as u64;
        example = example.or_else(|| theirs.into_keys().min());
        items += ours.len() as u64;
        done(ours.len());
        match end {
            Some(end) => after = Some(end),
            None => break,
        }
    }
    match example {
        Some(example) => Err(MigrateError::Others { collection: name.clone(), items: others, example }),
        None => Ok((items, latentd_model::digest::hex(&all.finalize()))),
    }
}

/// SHA-256 of what makes an item.
pub fn digest(item: &Item) -> Vec<u8> {
    let mut hasher = Sha256::new();
    // No id and no JSON text has a zero byte in it, so the parts cannot be mistaken for each other.
    hasher.update(item.id.as_str());
    hasher.update([0]);
    hasher.update(item.metadata.as_str());
    hasher.update([0, u8::from(item.has_thumbnail)]);
    hasher.update(item.content_hash.as_bytes());
    hasher.update(item.contract.to_bytes());
    for value in item.vector.iter().flat_map(|vector| vector.as_slice()) {
        hasher.update(value.to_le_bytes());
    }
    hasher.finalize().to_vec()
}
