//! Compare: two generations of a collection side by side, by the numbers of their items' writes.

use std::collections::{HashMap, VecDeque};

use super::MilvusStore;
use super::engine::{Fault, IDS, View, query};
use super::expression;
use super::proto::Pair;
use super::registry::Handle;
use super::rows::{self, Columns, Kept};
use crate::store::refresh::{Place, Remaining, Stale};
use crate::store::{CollectionName, ItemId, StoreError};

/// Items that are compared at a time.
const PAGE: usize = 4096;

/// An item's state: the number of its write, and what is kept of its picture.
type State = (ItemId, u64, Kept);

/// What is kept of a picture, and in which folder.
pub type Source = (String, Kept);

/// What a comparison of a part of a collection found.
pub struct Found {
    /// Items that the spare lacks, or has in another state, and what of their pictures.
    pub stale: Vec<(Stale, Kept)>,
    /// What the spare has in another state.
    pub wrong: Vec<ItemId>,
    /// What only the spare has.
    pub others: Vec<ItemId>,
    /// Items of the part.
    pub items: u64,
    /// Where the next part begins; none at the end.
    pub next: Option<ItemId>,
}

/// A way through all that is stale.
pub struct Pass {
    /// The engine's time when it began, if it began at the beginning.
    pub began: Option<u64>,
    /// Only items written after this are looked at.
    since: Option<u64>,
    /// Collections left to compare, the first from an item on.
    left: VecDeque<CollectionName>,
    from: Option<ItemId>,
    found: VecDeque<(Stale, Source)>,
    /// The last item that was given.
    pub given: Option<Place>,
    /// Where the pictures of the items given last are: asked for one by one, each would wait until the engine has
    /// seen all that was written meanwhile.
    pub sources: HashMap<Place, Source>,
}

impl Pass {
    /// Through these collections, behind `after`.
    pub fn new(
        names: Vec<CollectionName>,
        after: Option<Place>,
        began: Option<u64>,
        since: Option<u64>,
    ) -> Self {
        let first = after.as_ref().map(|(name, _)| name.clone());
        let left: VecDeque<_> =
            names.into_iter().filter(|name| first.as_ref().is_none_or(|first| name >= first)).collect();
        let from = after.clone().filter(|(name, _)| left.front() == Some(name)).map(|(_, id)| id);
        Self { began, since, left, from, found: VecDeque::new(), given: after, sources: HashMap::new() }
    }
}

impl MilvusStore {
    /// What an expression finds, by id; nothing where the collection is gone.
    async fn states(
        &self,
        handle: &Handle,
        expr: String,
        limit: Option<usize>,
    ) -> Result<Vec<State>, StoreError> {
        let mut request = query(handle, View::STRONG, expr, &rows::STATE);
        request.query_params.extend(limit.map(|limit| Pair::new("limit", limit)));
        let Some(reply) = self.engine.ask(request).await? else { return Ok(Vec::new()) };
        let columns = Columns::new(reply.fields_data);
        let state = |row| columns.state(row).ok_or_else(|| self.broken("an item without its fields"));
        let mut states = (0..columns.rows()).map(state).collect::<Result<Vec<_>, _>>()?;
        states.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(states)
    }

    /// The states of these items.
    pub(super) async fn states_of(
        &self,
        handle: &Handle,
        ids: &[ItemId],
    ) -> Result<HashMap<ItemId, u64>, StoreError> {
        let mut all = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(IDS) {
            let states = self.states(handle, expression::ids(ids), None).await?;
            all.extend(states.into_iter().map(|(id, seq, _)| (id, seq)));
        }
        Ok(all)
    }

    /// Compares the items behind `after`, a page of them; only those written after `since` where that is given.
    pub(super) async fn compare(
        &self,
        (serving, spare): (&Handle, &Handle),
        after: Option<&ItemId>,
        since: Option<u64>,
    ) -> Result<Found, StoreError> {
        let mut expr = format!("id > {}", expression::quote(after.map_or("", ItemId::as_str)));
        if let Some(since) = since {
            expr = format!("{expr} && seq > {since}");
        }
        let ours = self.states(serving, expr, Some(PAGE)).await?;
        let next = ours.last().filter(|_| ours.len() == PAGE).map(|(id, ..)| id.clone());
        let mut theirs = if since.is_some() {
            self.states_of(spare, &ours.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>()).await?
        } else {
            let mut expr = format!("id > {}", expression::quote(after.map_or("", ItemId::as_str)));
            if let Some(last) = &next {
                expr = format!("{expr} && id <= {}", expression::quote(last.as_str()));
            }
            self.states(spare, expr, None).await?.into_iter().map(|(id, seq, _)| (id, seq)).collect()
        };
        let (mut stale, mut wrong) = (Vec::new(), Vec::new());
        let items = ours.len() as u64;
        for (id, seq, kept) in ours {
            match theirs.remove(&id) {
                Some(other) if other == seq => continue,
                Some(_) => wrong.push(id.clone()),
                None => {}
            }
            let (collection, has_picture) = (serving.name.clone(), kept.is_something());
            stale.push((Stale { collection, id, seq, has_picture }, kept));
        }
        Ok(Found { stale, wrong, others: theirs.into_keys().collect(), items, next })
    }

    /// Compares a whole collection, and deletes from the spare what it should not have; what only the spare has too,
    /// unless that is to `stay`.
    pub(super) async fn put_right(
        &self,
        serving: &Handle,
        spare: &Handle,
        stay: bool,
    ) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let found = self.compare((serving, spare), after.as_ref(), None).await?;
            self.delete_wrong(spare, &found, stay).await?;
            after = found.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn delete_wrong(&self, spare: &Handle, found: &Found, stay: bool) -> Result<(), StoreError> {
        for ids in [Some(&found.wrong), Some(&found.others).filter(|_| !stay)].into_iter().flatten() {
            Fault::unless_gone(self.engine.delete_rows(spare, ids).await)?;
        }
        Ok(())
    }

    /// At most `limit` further stale items of a pass; none at its end. What the spares should not have is deleted.
    pub(super) async fn further(
        &self,
        pass: &mut Pass,
        generations: (u64, u64),
        limit: usize,
        stay: bool,
    ) -> Result<Vec<Stale>, StoreError> {
        while pass.found.len() < limit {
            let Some(name) = pass.left.front().cloned() else { break };
            let Some((serving, spare)) = self.pair(generations, &name).await? else {
                pass.left.pop_front();
                pass.from = None;
                continue;
            };
            let found = self.compare((&serving, &spare), pass.from.as_ref(), pass.since).await?;
            self.delete_wrong(&spare, &found, stay).await?;
            let folder = || serving.pictures.clone();
            pass.found.extend(found.stale.into_iter().map(|(stale, kept)| (stale, (folder(), kept))));
            pass.from = found.next;
            if pass.from.is_none() {
                pass.left.pop_front();
            }
        }
        let (given, sources): (Vec<Stale>, Vec<Source>) =
            pass.found.drain(..limit.min(pass.found.len())).unzip();
        let places = given.iter().map(|stale| (stale.collection.clone(), stale.id.clone()));
        pass.given = places.clone().next_back().or(pass.given.take());
        pass.sources = places.zip(sources).collect();
        Ok(given)
    }

    /// Counts what a spare lacks.
    pub(super) async fn lacking(&self, serving: &Handle, spare: &Handle) -> Result<Remaining, StoreError> {
        let (mut sum, mut after) = (Remaining::default(), None);
        loop {
            let found = self.compare((serving, spare), after.as_ref(), None).await?;
            sum.items += found.items;
            sum.stale += found.stale.len() as u64;
            sum.without_picture += found.stale.iter().filter(|(stale, _)| !stale.has_picture).count() as u64;
            after = found.next;
            if after.is_none() {
                return Ok(sum);
            }
        }
    }
}
