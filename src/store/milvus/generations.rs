//! Generations: refused for now. A change of the encoder must reach every process that serves the collections.

use futures::FutureExt;
use latentd_model::Contract;

use super::MilvusStore;
use super::pictures::Kind;
use crate::store::refresh::{
    Generations, KeptPicture, Place, Refreshed, Remaining, Setting, Stale, Switched,
};
use crate::store::{Answer, CollectionName, ItemId, StoreError};

fn refuse<T: Send + 'static>() -> Answer<'static, T> {
    let what =
        "changing the encoder of a distributed store: index into another database with the new encoder";
    async move { Err(StoreError::Unsupported { what }) }.boxed()
}

impl Generations for MilvusStore {
    fn refresh_begin(&self, _: Contract, _: Contract, _: usize) -> Answer<'_, Remaining> {
        refuse()
    }

    fn refresh_remaining(&self, _: Contract, _: Contract) -> Answer<'_, Remaining> {
        refuse()
    }

    fn refresh_stale(&self, _: Contract, _: Contract, _: Option<Place>, _: usize) -> Answer<'_, Vec<Stale>> {
        refuse()
    }

    fn kept_picture(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<KeptPicture>> {
        async move {
            let original = self.picture(&collection, id.clone(), Kind::Original).await?;
            if let Some(original) = original {
                return Ok(Some(KeptPicture::Original(original)));
            }
            Ok(self.picture(&collection, id, Kind::Thumbnail).await?.map(KeptPicture::Thumbnail))
        }
        .boxed()
    }

    fn refresh_fill(&self, _: Contract, _: Vec<Refreshed>) -> Answer<'_, u64> {
        refuse()
    }

    fn refresh_overlap(&self, _: Contract, _: usize, _: usize) -> Answer<'_, Option<f64>> {
        refuse()
    }

    fn refresh_switch(&self, _: Contract, _: Contract, _: bool, _: Vec<Setting>) -> Answer<'_, Switched> {
        refuse()
    }

    fn refresh_discard(&self, _: Contract) -> Answer<'_, ()> {
        refuse()
    }

    /// None is kept, since none can be set.
    fn setting(&self, _: &'static str) -> Answer<'_, Option<String>> {
        async { Ok(None) }.boxed()
    }

    fn set(&self, _: Vec<Setting>) -> Answer<'_, ()> {
        refuse()
    }
}
