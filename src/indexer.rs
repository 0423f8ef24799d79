//! The indexer: pictures and ready vectors in, items kept.

use std::sync::Arc;

use latentd_model::{Contract, Embedding, ImageBytes, Pixels};
use tokio::sync::oneshot;

use crate::admission::{Overloaded, Permit};
use crate::config::KeepPictures;
use crate::embedder::{Embedder, Seen};
use crate::outcome::EmbedError;
use crate::slots::Slots;
use crate::store::{
    CollectionName, ContentHash, ItemId, Metadata, NewItem, Store, StoreError, Thumbnail, Upserted,
};
use crate::thumbnail;
use crate::trace;

/// What an item is made from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A picture file, to be embedded.
    Picture(ImageBytes),
    /// A vector, with the contract of the encoder that made it.
    Vector(Embedding, Contract),
}

/// An item that is to be made.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its id.
    pub id: ItemId,
    /// What it is made from.
    pub source: Source,
    /// What is kept with it.
    pub metadata: Metadata,
}

/// Why an item was not kept.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Its picture has no embedding.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// A vector under the contract of the encoder that serves, of another length than its vectors.
    #[error("the vectors of contract {contract} have {expected} numbers, but this one has {actual}")]
    Length {
        /// The contract.
        contract: Contract,
        /// Numbers of the encoder's vectors.
        expected: usize,
        /// Numbers of this one.
        actual: usize,
    },
    /// The store refused it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IndexError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Embed(error) => error.code(),
            Self::Length { .. } => "dimension_mismatch",
            Self::Store(error) => error.code(),
        }
    }
}

impl From<Overloaded> for IndexError {
    fn from(error: Overloaded) -> Self {
        Self::Embed(error.into())
    }
}

/// Embeds what are pictures and writes everything in one upsert; each entry has its own outcome, in order.
///
/// # Errors
/// When the server is too full to begin, or the write as a whole failed; nothing was kept then.
pub async fn index(
    embedder: &Embedder,
    store: &dyn Store,
    collection: CollectionName,
    entries: Vec<Entry>,
    keep: KeepPictures,
    body: Option<Arc<Permit>>,
) -> Result<Vec<Result<Upserted, IndexError>>, IndexError> {
    let made = make(embedder, entries, keep, body).await?;
    write(store, collection, made).await
}

/// Writes the items that there are in one upsert; each has its own outcome, in order, those that failed before too.
///
/// # Errors
/// When the write as a whole failed; nothing was kept then.
pub async fn write(
    store: &dyn Store,
    collection: CollectionName,
    items: impl IntoIterator<Item = Result<NewItem, IndexError>>,
) -> Result<Vec<Result<Upserted, IndexError>>, IndexError> {
    let (items, slots) = Slots::split(items);
    let written = match items.is_empty() {
        true => Vec::new(),
        false => trace::part("store upsert", store.upsert(collection, items)).await?,
    };
    let lost = || StoreError::Internal("an item got no answer").into();
    Ok(slots.fill(written, lost))
}

/// The items of entries, with the vectors and thumbnails of their pictures.
///
/// # Errors
/// When the server is too full for all of them.
pub async fn make(
    embedder: &Embedder,
    entries: Vec<Entry>,
    keep: KeepPictures,
    body: Option<Arc<Permit>>,
) -> Result<Vec<Result<NewItem, IndexError>>, Overloaded> {
    let (mut pictures, mut thumbnails) = (Vec::new(), Vec::new());
    for entry in &entries {
        if let Source::Picture(image) = &entry.source {
            let (sender, receiver) = oneshot::channel::<(Option<Thumbnail>, ContentHash)>();
            let file = image.clone();
            let show = Box::new(move |pixels: &Pixels| {
                let thumbnail = (keep != KeepPictures::None).then(|| thumbnail::make(pixels)).flatten();
                // Here, on the decode pool: a large file takes a while. Whoever asked may have gone.
                let _ = sender.send((thumbnail, ContentHash::of(file.as_slice())));
            });
            pictures.push((image.clone(), Some(Seen { longest: thumbnail::MAX_SIDE, show })));
            thumbnails.push(receiver);
        }
    }
    let (serving, dim) = (embedder.artefact().contract(), embedder.artefact().manifest().output.dim);
    let embedded = embedder.embed_all_seen(pictures, body).await?;
    let mut pictures = embedded.into_iter().zip(thumbnails);
    let item = |Entry { id, source, metadata }: Entry| match source {
        // In a collection of their own these would keep all pictures out.
        Source::Vector(vector, contract) if contract == serving && vector.dim() != dim => {
            Err(IndexError::Length { contract, expected: dim, actual: vector.dim() })
        }
        Source::Vector(vector, contract) => {
            let content_hash = ContentHash::of_vector(&vector);
            Ok(NewItem { id, vector, contract, metadata, content_hash, thumbnail: None, picture: None })
        }
        Source::Picture(image) => {
            let (outcome, mut made) = pictures.next().ok_or(EmbedError::Internal)?;
            let vector = outcome?.embedding;
            let (thumbnail, content_hash) = made.try_recv().map_err(|_| EmbedError::Internal)?;
            let contract = serving;
            let picture = (keep == KeepPictures::Original).then_some(image.0);
            Ok(NewItem { id, vector, contract, metadata, content_hash, thumbnail, picture })
        }
    };
    Ok(entries.into_iter().map(item).collect())
}
