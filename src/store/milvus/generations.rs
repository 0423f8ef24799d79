//! Generations: the collections of the next encoder beside those that serve, and the switch from one to the other.
//!
//! One process leads a change ([`super::agreement`]). The others go on, and delete from the spare generation too
//! what they delete; what they write is found by its number, which grows with time. Before the switch everybody's
//! writes are held, the rest is made up for, and the next record names the other generation.

use futures::FutureExt;
use latentd_model::Contract;
use tokio::sync::watch;

use super::MilvusStore;
use crate::store::refresh::{
    Agreed, Generations, KeptPicture, Place, Refreshed, Remaining, Setting, Stale, Switched,
};
use crate::store::{Answer, CollectionName, ItemId};

impl Generations for MilvusStore {
    fn refresh_lead(&self, from: Contract, to: Contract, settings: Vec<Setting>) -> Answer<'_, ()> {
        self.lead(from, to, settings).boxed()
    }

    fn refresh_begin(&self, from: Contract, to: Contract, dim: usize) -> Answer<'_, ()> {
        self.begin(from, to, dim).boxed()
    }

    fn refresh_remaining(&self, from: Contract, to: Contract) -> Answer<'_, Remaining> {
        self.remaining(from, to).boxed()
    }

    fn refresh_stale(
        &self,
        _: Contract,
        _: Contract,
        after: Option<Place>,
        limit: usize,
    ) -> Answer<'_, Vec<Stale>> {
        self.stale(after, limit).boxed()
    }

    fn kept_picture(&self, collection: CollectionName, id: ItemId) -> Answer<'_, Option<KeptPicture>> {
        async move {
            let place = (collection, id);
            if let Some(source) = self.source_of(&place).await
                && let Some(picture) = self.picture_of(&place.1, source).await?
            {
                return Ok(Some(picture));
            }
            let (collection, id) = place;
            match self.kept(&collection, &id).await? {
                Some(source) => self.picture_of(&id, source).await,
                None => Ok(None),
            }
        }
        .boxed()
    }

    fn refresh_fill(&self, to: Contract, items: Vec<Refreshed>) -> Answer<'_, u64> {
        self.fill(to, items).boxed()
    }

    fn refresh_overlap(&self, to: Contract, k: usize, sample: usize) -> Answer<'_, Option<f64>> {
        self.overlap(to, k, sample).boxed()
    }

    fn refresh_hold(&self, held: bool) -> Answer<'_, ()> {
        self.hold(held).boxed()
    }

    fn refresh_switch(
        &self,
        from: Contract,
        to: Contract,
        leave_out: bool,
        settings: Vec<Setting>,
    ) -> Answer<'_, Switched> {
        self.switch(from, to, leave_out, settings).boxed()
    }

    fn refresh_end(&self, settings: Vec<Setting>) -> Answer<'_, ()> {
        self.end(settings).boxed()
    }

    fn refresh_discard(&self, contract: Contract) -> Answer<'_, ()> {
        self.discard(contract).boxed()
    }

    fn setting(&self, name: &'static str) -> Answer<'_, Option<String>> {
        async move { Ok(self.engine.agreement.look().await?.settings.get(name).cloned()) }.boxed()
    }

    fn set(&self, settings: Vec<Setting>) -> Answer<'_, ()> {
        self.set_all(settings).boxed()
    }

    fn agreed(&self) -> Option<watch::Receiver<Agreed>> {
        Some(self.engine.agreement.news())
    }
}
