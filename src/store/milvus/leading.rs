//! Leading: what the process that leads a change of the encoder does in the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use latentd_model::Contract;

use super::MilvusStore;
use super::agreement::SETTLE;
use super::compare::{Pass, Source};
use super::engine::{View, query};
use super::record::{Change, Kept, Record};
use super::registry::Handle;
use super::rows::Columns;
use super::writer::LIMIT;
use crate::store::refresh::{Place, Remaining, Setting, Stale, Switched};
use crate::store::{CollectionName, StoreError};

/// Items that no picture is kept of.
const WITHOUT_PICTURE: &str = "has_thumbnail == false && has_original == false";
/// Up to so many items a collection is compared whole before the switch, while writes wait.
const EXACT: u64 = 50_000;
/// How often settings are written anew when another process was quicker.
const TRIES: usize = 5;

/// What the process that leads a change knows of its progress.
#[derive(Default)]
pub struct Leading {
    /// When the others began to be told.
    since: Option<Instant>,
    pass: Option<Pass>,
    /// The engine's time at the beginning of the last whole pass.
    complete: Option<u64>,
}

fn put(record: &mut Record, settings: Vec<Setting>) {
    for (name, value) in settings {
        match value {
            Some(value) => drop(record.settings.insert(name.to_owned(), value)),
            None => drop(record.settings.remove(name)),
        }
    }
}

fn led(change: Option<&Change>) -> StoreError {
    let by = change.map_or_else(|| "which was quicker".to_owned(), |change| change.leader_name.clone());
    StoreError::Led { by }
}

impl MilvusStore {
    /// The change that this process leads.
    pub(super) fn leading(&self) -> Result<(Arc<Record>, Change), StoreError> {
        let agreement = &self.engine.agreement;
        let last = agreement.last();
        match &last.change {
            Some(change) if agreement.is_mine(change) && agreement.leads() => {
                let change = change.clone();
                Ok((last, change))
            }
            Some(change) if agreement.is_mine(change) => Err(StoreError::Unavailable {
                address: self.options.address.to_string(),
                reason: "this process could not say that it leads the change of the encoder".to_owned(),
            }),
            other => Err(led(other.as_ref())),
        }
    }

    /// A collection that a change concerns, and its spare.
    pub(super) async fn pair(
        &self,
        (serving, spare): (u64, u64),
        name: &CollectionName,
    ) -> Result<Option<(Arc<Handle>, Arc<Handle>)>, StoreError> {
        let registry = &self.engine.registry;
        let Some(serving) = registry.find_in(serving, name).await? else { return Ok(None) };
        let spare = registry.find_in(spare, name).await?;
        Ok(spare.filter(|spare| spare.physical != serving.physical).map(|spare| (serving, spare)))
    }

    pub(super) async fn lead(
        &self,
        from: Contract,
        to: Contract,
        settings: Vec<Setting>,
    ) -> Result<(), StoreError> {
        let agreement = &self.engine.agreement;
        let last = agreement.look().await?;
        if let Some(change) = &last.change
            && !agreement.is_mine(change)
            && !agreement.abandoned(&last).await?
        {
            return Err(led(Some(change)));
        }
        let appended = agreement.append(&last, |record| {
            let kept = record.previous.filter(|kept| kept.contract == to).map(|kept| kept.generation);
            let begun = record.change.take().filter(|change| (change.from, change.to) == (from, to));
            let generation = kept.or(begun.map(|change| change.generation)).unwrap_or(record.number);
            if kept.is_none() {
                // It is taken for this one.
                record.previous = None;
            }
            record.change = Some(agreement.change(from, to, generation));
            put(record, settings);
        });
        appended.await?.ok_or_else(|| led(agreement.last().change.as_ref()))?;
        *self.leading.lock().await = Leading { since: Some(Instant::now()), ..Leading::default() };
        Ok(())
    }

    /// Gives every collection concerned a spare, and the others a share in the generation that is filled.
    pub(super) async fn begin(&self, from: Contract, to: Contract, dim: usize) -> Result<(), StoreError> {
        let (record, change) = self.leading()?;
        let (registry, generation) = (&self.engine.registry, change.generation);
        let serving = registry.all_in(record.serving).await?;
        for handle in &serving {
            let spare = registry.find_in(generation, &handle.name).await?;
            let concerned = handle.contract == from;
            if let Some(spare) = spare {
                let shared = spare.physical == handle.physical;
                let fits = spare.contract == to && spare.dim == dim && spare.pictures == handle.pictures;
                let right = if concerned { fits && !shared } else { shared };
                if right {
                    continue;
                }
                registry.drop_in(generation, &handle.name).await?;
            }
            if concerned {
                registry.create(generation, &handle.name, (to, dim), Some(handle)).await?;
            } else {
                registry.share(generation, handle).await?;
            }
        }
        for spare in registry.all_in(generation).await? {
            if serving.iter().all(|handle| handle.name != spare.name) {
                registry.drop_in(generation, &spare.name).await?;
            }
        }
        registry.sweep(&record).await
    }

    async fn count_where(&self, handle: &Handle, expr: &str) -> Result<u64, StoreError> {
        let request = query(handle, View::STRONG, expr.to_owned(), &["count(*)"]);
        let reply = self.engine.client.ask(request).await?;
        Columns::new(reply.fields_data).count().ok_or_else(|| self.broken("no number"))
    }

    pub(super) async fn remaining(&self, from: Contract, to: Contract) -> Result<Remaining, StoreError> {
        let last = self.engine.agreement.look().await?;
        let begun = last.change.as_ref().filter(|change| change.to == to).map(|change| change.generation);
        let kept = last.previous.filter(|kept| kept.contract == to).map(|kept| kept.generation);
        let mut sum = Remaining::default();
        let serving = self.engine.registry.all_in(last.serving).await?;
        for handle in serving.into_iter().filter(|handle| handle.contract == from) {
            let pair = match begun.or(kept) {
                Some(generation) => self.pair((last.serving, generation), &handle.name).await?,
                None => None,
            };
            let one = match pair {
                Some((serving, spare)) => self.lacking(&serving, &spare).await?,
                None => {
                    let items = self.count_where(&handle, "").await?;
                    let without_picture = self.count_where(&handle, WITHOUT_PICTURE).await?;
                    Remaining { items, stale: items, without_picture }
                }
            };
            sum.items += one.items;
            sum.stale += one.stale;
            sum.without_picture += one.without_picture;
        }
        Ok(sum)
    }

    pub(super) async fn stale(&self, after: Option<Place>, limit: usize) -> Result<Vec<Stale>, StoreError> {
        let (record, change) = self.leading()?;
        let mut leading = self.leading.lock().await;
        if let Some(since) = leading.since {
            // From now on everybody deletes from the spares too.
            tokio::time::sleep(SETTLE.saturating_sub(since.elapsed())).await;
        }
        let goes_on = after.is_some() && leading.pass.as_ref().is_some_and(|pass| pass.given == after);
        if !goes_on {
            let mut concerned = self.engine.registry.all_in(record.serving).await?;
            concerned.retain(|handle| handle.contract == change.from);
            let names = concerned.iter().map(|handle| handle.name.clone()).collect();
            let whole = after.is_none();
            let since = leading.complete.filter(|_| whole);
            let began = if whole { Some(self.engine.client.now().await?) } else { None };
            leading.pass = Some(Pass::new(names, after, began, since));
        }
        let Leading { pass, complete, .. } = &mut *leading;
        let Some(pass) = pass else { return Ok(Vec::new()) };
        let found =
            self.further(pass, (record.serving, change.generation), limit, record.goes_back()).await?;
        if found.is_empty()
            && let Some(began) = pass.began
        {
            // Who wrote at that time has its number from before.
            let before = Duration::from_secs(2 * LIMIT.as_secs()).as_millis() as u64;
            *complete = Some(began.saturating_sub(before << 18));
        }
        Ok(found)
    }

    /// Where the picture of an item is that [`Self::stale`] told of last.
    pub(super) async fn source_of(&self, place: &Place) -> Option<Source> {
        self.leading.lock().await.pass.as_ref()?.sources.get(place).cloned()
    }

    pub(super) async fn hold(&self, held: bool) -> Result<(), StoreError> {
        let agreement = &self.engine.agreement;
        let (last, change) = self.leading()?;
        if change.held == held {
            return Ok(());
        }
        let appended = agreement.append(&last, |record| {
            if let Some(change) = &mut record.change {
                change.held = held;
            }
        });
        appended.await?.ok_or_else(|| led(agreement.last().change.as_ref()))?;
        if held {
            tokio::time::sleep(SETTLE).await;
        }
        Ok(())
    }

    pub(super) async fn switch(
        &self,
        from: Contract,
        to: Contract,
        leave_out: bool,
        settings: Vec<Setting>,
    ) -> Result<Switched, StoreError> {
        let agreement = &self.engine.agreement;
        let (record, change) = self.leading()?;
        let mut left = 0;
        for handle in self.engine.registry.all_in(record.serving).await? {
            if handle.contract != from {
                continue;
            }
            let Some((serving, spare)) = self.pair((record.serving, change.generation), &handle.name).await?
            else {
                // It came into being after the refresh began.
                return Ok(Switched::Stale(self.count_where(&handle, "").await?.max(1)));
            };
            if record.goes_back() {
                self.put_right(&serving, &spare, true).await?;
                left += self.lacking(&serving, &spare).await?.stale;
                continue;
            }
            let count = self.count_where(&serving, "").await?;
            if count <= EXACT || self.count_where(&spare, "").await? > count {
                // A deletion that was not answered may have reached only one of the two.
                self.put_right(&serving, &spare, false).await?;
            }
            left += count.saturating_sub(self.count_where(&spare, "").await?);
        }
        if left > 0 && !leave_out {
            return Ok(Switched::Stale(left));
        }
        if !change.held || change.to != to {
            return Err(StoreError::Internal("a switch before writes are held"));
        }
        let appended = agreement.append(&record, |record| {
            record.previous = Some(Kept { generation: record.serving, contract: from });
            record.serving = change.generation;
            record.change = None;
            put(record, settings);
        });
        appended.await?.ok_or_else(|| led(agreement.last().change.as_ref()))?;
        *self.leading.lock().await = Leading::default();
        if let Err(error) = agreement.tidy().await {
            tracing::warn!(%error, "old records of the store's agreement could not be deleted");
        }
        Ok(Switched::Done { left_out: left })
    }

    pub(super) async fn end(&self, settings: Vec<Setting>) -> Result<(), StoreError> {
        let agreement = &self.engine.agreement;
        let last = agreement.look().await?;
        let Some(change) = &last.change else { return Ok(()) };
        if !agreement.is_mine(change) && !agreement.abandoned(&last).await? {
            return Ok(());
        }
        agreement.resign();
        let ended = agreement.append(&last, |record| {
            record.change = None;
            put(record, settings);
        });
        *self.leading.lock().await = Leading::default();
        match ended.await? {
            Some(record) => self.engine.registry.sweep(&record).await,
            None => Ok(()),
        }
    }

    pub(super) async fn discard(&self, contract: Contract) -> Result<(), StoreError> {
        let last = self.engine.agreement.look().await?;
        let kept = last.previous.is_some_and(|kept| kept.contract == contract) && last.change.is_none();
        let record = if kept {
            self.engine.agreement.append(&last, |record| record.previous = None).await?
        } else {
            Some(last)
        };
        match record {
            Some(record) => self.engine.registry.sweep(&record).await,
            None => Ok(()),
        }
    }

    pub(super) async fn set_all(&self, settings: Vec<Setting>) -> Result<(), StoreError> {
        for _ in 0..TRIES {
            let last = self.engine.agreement.look().await?;
            let settings = settings.clone();
            if self.engine.agreement.append(&last, |record| put(record, settings)).await?.is_some() {
                return Ok(());
            }
        }
        Err(StoreError::Busy { what: "changes of its settings" })
    }
}
