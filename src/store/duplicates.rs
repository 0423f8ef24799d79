//! Near-duplicates: pairs of items that are nearly the same, page by page.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};

use super::{
    CollectionName, InvalidValue, Item, ItemId, MAX_PAGE, Neighbour, PAGE_BYTES, Query, Store, StoreError,
};

/// Near items of one item that are looked at.
pub const MOST: usize = 100;
/// Items of a page that are read at a time.
const AT_A_TIME: usize = 100;
/// Searches of one listing at a time: other searches wait no longer than for these.
const TOGETHER: usize = 2;

/// What to list.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Of this collection.
    pub collection: CollectionName,
    /// Lowest score of two items that count as nearly the same, -1 to 1.
    pub threshold: f32,
    /// The id after which the page begins.
    pub after: Option<ItemId>,
    /// Items that the page looks at, 1 to [`super::MAX_PAGE`].
    pub limit: usize,
    /// How long the page may take; it looks at one item at least.
    pub time: Duration,
}

/// Pairs of a page.
#[derive(Debug, Default)]
pub struct Page {
    /// By the item looked at, and for each of these the nearest first.
    pub pairs: Vec<Pair>,
    /// Items that were looked at.
    pub examined: usize,
    /// The last of them, where there may be more.
    pub next: Option<ItemId>,
}

/// Two items that are nearly the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The lesser id.
    pub id: ItemId,
    /// The greater id.
    pub other: ItemId,
    /// Cosine similarity.
    pub score: f32,
}

impl Pair {
    /// Bytes of its text, about.
    #[must_use]
    pub fn size(&self) -> usize {
        self.id.as_str().len() + self.other.as_str().len() + 64
    }
}

/// Goes through items in the order of their ids, and pairs each with those of greater ids that are near.
///
/// An item that has more near ones than are looked at is paired with the nearest of a lesser id too, since that
/// one's own list may have ended before it; so every item with a near one is in a pair, if maybe twice.
///
/// # Errors
/// A bad threshold or limit, an unknown collection, or what searches give.
pub async fn page(store: &dyn Store, listing: Listing) -> Result<Page, StoreError> {
    let Listing { collection, threshold, mut after, limit, time } = listing;
    if !(-1.0..=1.0).contains(&threshold) {
        return Err(InvalidValue::Threshold.into());
    }
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(InvalidValue::Limit(limit).into());
    }
    let began = Instant::now();
    let (mut page, mut bytes) = (Page::default(), 0);
    let full = |bytes: usize| bytes >= PAGE_BYTES || began.elapsed() >= time;
    loop {
        let wanted = AT_A_TIME.min(limit - page.examined);
        let items = store.list(collection.clone(), after, wanted, true).await?;
        let (all, before) = (items.len(), page.examined);
        let mut last = None;
        let searches = stream::iter(items).map(|item| near(store, &collection, item, threshold));
        let mut searches = std::pin::pin!(searches.buffered(TOGETHER));
        while let Some(found) = searches.next().await {
            let (id, pairs) = found?;
            bytes += pairs.iter().map(Pair::size).sum::<usize>();
            page.pairs.extend(pairs);
            page.examined += 1;
            last = Some(id);
            if full(bytes) {
                break;
            }
        }
        let more = all == wanted || page.examined < before + all;
        after = last.filter(|_| more);
        if !more || page.examined == limit || full(bytes) {
            page.next = after;
            return Ok(page);
        }
    }
}

/// An item's id, and the pairs that it is in.
async fn near(
    store: &dyn Store,
    collection: &CollectionName,
    item: Item,
    threshold: f32,
) -> Result<(ItemId, Vec<Pair>), StoreError> {
    let Item { id, vector: Some(vector), contract, .. } = item else { return Ok((item.id, Vec::new())) };
    let query = Query {
        vector,
        contract,
        k: MOST,
        filter: None,
        exclude: vec![id.clone()],
        min_score: Some(threshold),
        with_vectors: false,
    };
    let found = match store.search(collection.clone(), query).await {
        // The collection changed its encoder or went away between the page and the search.
        Err(StoreError::ContractMismatch { .. } | StoreError::UnknownCollection(_)) => Vec::new(),
        found => found?,
    };
    let pairs = pairs(&id, found);
    Ok((id, pairs))
}

fn pairs(id: &ItemId, found: Vec<Neighbour>) -> Vec<Pair> {
    let full = found.len() == MOST;
    let mut lesser = false;
    let counts =
        |neighbour: &Neighbour| neighbour.id > *id || (full && !std::mem::replace(&mut lesser, true));
    let pair = |Neighbour { id: near, score, .. }: Neighbour| match near > *id {
        true => Pair { id: id.clone(), other: near, score },
        false => Pair { id: near, other: id.clone(), score },
    };
    found.into_iter().filter(counts).map(pair).collect()
}
