//! The worker: embeds again what is stale until nothing is, then switches.

use std::time::{Duration, Instant};

use futures::StreamExt;
use latentd_model::{Artefact, Contract, ImageBytes};

use super::{ACTIVE, ModelRecord, ORDER, Order, PREVIOUS, RefreshError, RefreshState, Running, open};
use crate::app::AppState;
use crate::embedder::Embedder;
use crate::store::StoreError;
use crate::store::refresh::{KeptPicture, Place, Refreshed, Stale, Switched};

/// Pictures in hand at once.
pub const AHEAD: usize = 2;
/// Stale items of one page.
const PAGE: usize = 64;
/// A pass that found no more than this was the last before the switch.
const FEW: u64 = 64;
/// Passes after which the switch is tried however much was found: from then on writes wait until it is done.
const MAX_PASSES: usize = 8;
/// How long a switch waits for the writes in flight.
const WRITES_WAIT: Duration = Duration::from_secs(5);
/// Longest rest after a picture while requests are in flight.
const MAX_REST: Duration = Duration::from_millis(200);
/// How often a store that is busy is asked again, and after which rest.
const BUSY_TRIES: u32 = 100;
const BUSY_REST: Duration = Duration::from_millis(100);
/// After which rest a store that does not answer is asked again.
const STORE_REST: Duration = Duration::from_secs(2);
/// Neighbours and items of the comparison.
const K: usize = 10;
const SAMPLE: usize = 300;

/// The next encoder, in the background.
pub struct Next {
    pub artefact: Artefact,
    pub embedder: Embedder,
}

/// Carries an order out, to whatever end.
pub async fn run(app: AppState, order: Order, next: Next, running: Running) {
    let from = app.embedder().artefact().contract();
    let name = order.model.name.clone();
    tracing::info!(model = name, contract = %order.model.contract, %from, "refresh begun");
    let work = Work { app: &app, order: &order, next, from, running: &running };
    let outcome = loop {
        match work.carry_out().await {
            Err(RefreshError::Store(error @ StoreError::Unavailable { .. })) if work.go_on().is_ok() => {
                tracing::warn!(model = name, %error, "the refresh waits for the store");
                tokio::select! {
                    () = tokio::time::sleep(STORE_REST) => {}
                    () = running.stop.cancelled() => {}
                }
            }
            outcome => break outcome,
        }
    };
    let refresh = &app.refresh;
    match &outcome {
        Ok(left_out) => {
            tracing::info!(model = name, left_out, "refresh done: the new encoder serves");
            refresh.note(|progress| {
                progress.unembeddable = *left_out;
                progress.end(RefreshState::Done);
            });
        }
        Err(RefreshError::Interrupted | RefreshError::Store(StoreError::Closed)) => {
            tracing::info!(model = name, "refresh broken off; it goes on at the next start");
        }
        Err(error) => {
            tracing::warn!(model = name, %error, "refresh ended without a change");
            work.give_up().await;
            refresh.note(|progress| match error {
                RefreshError::Cancelled => progress.end(RefreshState::Cancelled),
                error => progress.fail(&name, error),
            });
        }
    }
    refresh.running.lock().take();
}

struct Work<'a> {
    app: &'a AppState,
    order: &'a Order,
    next: Next,
    from: Contract,
    running: &'a Running,
}

/// Whether requests come first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Rests while requests are in flight.
    Resting,
    /// Does not: what is written meanwhile must not come faster than it is made up for.
    CatchingUp,
}

/// What a pass over the stale items did.
#[derive(Default)]
struct Pass {
    filled: u64,
    /// An item that failed, and why.
    failed: Option<String>,
}

impl Work<'_> {
    fn to(&self) -> Contract {
        self.order.model.contract
    }

    fn go_on(&self) -> Result<(), RefreshError> {
        use std::sync::atomic::Ordering;
        match (self.running.stop.is_cancelled(), self.running.cancelled.load(Ordering::Acquire)) {
            (false, _) => Ok(()),
            (true, true) => Err(RefreshError::Cancelled),
            (true, false) => Err(RefreshError::Interrupted),
        }
    }

    /// Gives how many items were left out.
    async fn carry_out(&self) -> Result<u64, RefreshError> {
        let dim = self.next.artefact.manifest().output.dim;
        let (mut compared, mut failures) = (false, None);
        // A try before may have ended in the middle of a switch.
        self.app.store.refresh_hold(false).await?;
        self.app.refresh.note(|progress| progress.state = RefreshState::Embedding);
        for pass in 1.. {
            // Collections that came into being meanwhile get their spare too.
            self.app.store.refresh_begin(self.from, self.to(), dim).await?;
            let (pace, stale) = match pass {
                // Counted when it began.
                1 => (Pace::Resting, self.app.refresh.progress().total),
                _ => {
                    let left = self.app.store.refresh_remaining(self.from, self.to()).await?;
                    (Pace::CatchingUp, left.stale)
                }
            };
            // Items that come meanwhile, behind where the pass is, would keep it going for as long as they come.
            let Pass { filled, failed } = self.pass(pace, stale.max(FEW)).await?;
            failures = failed.or(failures);
            if filled > FEW && pass < MAX_PASSES {
                continue;
            }
            if !std::mem::replace(&mut compared, true) {
                self.compare().await?;
            }
            if let Some(left_out) = self.switch(failures.as_deref()).await? {
                return Ok(left_out);
            }
        }
        Err(RefreshError::Panicked)
    }

    /// Goes once through what is stale, or until it has seen about so many items.
    async fn pass(&self, pace: Pace, most: u64) -> Result<Pass, RefreshError> {
        let mut pass = Pass::default();
        let (mut after, mut seen): (Option<Place>, u64) = (None, 0);
        loop {
            self.go_on()?;
            // One that saw no more goes on to its end, so that the store knows it for a whole one.
            if seen > most {
                return Ok(pass);
            }
            let page = self.app.store.refresh_stale(self.from, self.to(), after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(pass) };
            after = Some((last.collection.clone(), last.id.clone()));
            seen += page.len() as u64;
            let work = futures::stream::iter(page.into_iter().filter(|stale| stale.has_picture));
            let made: Vec<_> =
                work.map(|stale| self.embed(stale, pace)).buffer_unordered(AHEAD).collect().await;
            let mut items = Vec::with_capacity(made.len());
            for outcome in made {
                match outcome? {
                    Ok(item) => items.push(item),
                    Err(reason) => pass.failed = Some(reason),
                }
            }
            if !items.is_empty() {
                pass.filled += self.fill(items).await?;
            }
        }
    }

    async fn fill(&self, items: Vec<Refreshed>) -> Result<u64, RefreshError> {
        for _ in 0..BUSY_TRIES {
            match self.app.store.refresh_fill(self.to(), items.clone()).await {
                Err(StoreError::Busy { .. } | StoreError::Unavailable { .. }) => {
                    self.go_on()?;
                    tokio::time::sleep(BUSY_REST).await;
                }
                filled => return Ok(filled?),
            }
        }
        Err(StoreError::Busy { what: "writes" }.into())
    }

    /// The inner error is the item's own.
    async fn embed(&self, stale: Stale, pace: Pace) -> Result<Result<Refreshed, String>, RefreshError> {
        self.go_on()?;
        let Stale { collection, id, seq, .. } = stale;
        let began = Instant::now();
        let kept = self.app.store.kept_picture(collection.clone(), id.clone()).await;
        let (bytes, original) = match kept {
            Ok(Some(KeptPicture::Original(bytes))) => (bytes, true),
            Ok(Some(KeptPicture::Thumbnail(bytes))) => (bytes, false),
            // Deleted meanwhile, by itself or with its collection.
            Ok(None) | Err(StoreError::UnknownCollection(_)) => {
                return Ok(Err(format!("{collection}/{id}: gone")));
            }
            Err(error) => return Err(error.into()),
        };
        let embedded = self.next.embedder.embed(ImageBytes::from(bytes)).await;
        if pace == Pace::Resting && self.app.admission.images() > 0 {
            tokio::time::sleep(began.elapsed().min(MAX_REST)).await;
        }
        Ok(match embedded {
            Ok(embedded) => {
                self.app.refresh.note(|progress| progress.took(original));
                Ok(Refreshed { collection, id, seq, vector: embedded.embedding })
            }
            Err(error) => Err(format!("{collection}/{id}: {error}")),
        })
    }

    /// The quality gate.
    async fn compare(&self) -> Result<(), RefreshError> {
        let Some(bound) = self.order.min_overlap else { return Ok(()) };
        let Some(overlap) = self.app.store.refresh_overlap(self.to(), K, SAMPLE).await? else {
            return Ok(());
        };
        self.app.refresh.note(|progress| progress.overlap = Some(overlap));
        if overlap < bound { Err(RefreshError::Differs { overlap, bound }) } else { Ok(()) }
    }

    /// Switches, unless writes are in flight for too long; then another pass comes first.
    async fn switch(&self, failures: Option<&str>) -> Result<Option<u64>, RefreshError> {
        let (artefact, config) = (self.next.artefact.clone(), self.app.config.clone());
        let (runtime, shared) = (self.app.runtime.clone(), self.app.shared());
        let opened = tokio::task::spawn_blocking(move || open(&artefact, &config, runtime, shared)).await;
        let embedder = opened.map_err(|_| RefreshError::Panicked)??;
        let Ok(_writes) = tokio::time::timeout(WRITES_WAIT, self.app.writes.write()).await else {
            return Ok(None);
        };
        self.app.refresh.note(|progress| progress.state = RefreshState::Switching);
        let switched = self.exchange(embedder, failures).await;
        if switched.is_err()
            && let Err(error) = self.app.store.refresh_hold(false).await
        {
            tracing::warn!(%error, "writes stay held");
        }
        switched.map(Some)
    }

    /// Makes up for the rest and changes store and embedder. Writes wait meanwhile.
    async fn exchange(&self, embedder: Embedder, failures: Option<&str>) -> Result<u64, RefreshError> {
        // No write begins now; what came since the last pass is little.
        self.app.store.refresh_hold(true).await?;
        let dim = self.next.artefact.manifest().output.dim;
        self.app.store.refresh_begin(self.from, self.to(), dim).await?;
        let Pass { failed, .. } = self.pass(Pace::CatchingUp, u64::MAX).await?;
        let was = ModelRecord::of(self.app.embedder().artefact());
        let text = |record: &ModelRecord| serde_json::to_string(record).ok();
        let settings = vec![(ACTIVE, text(&self.order.model)), (PREVIOUS, text(&was)), (ORDER, None)];
        let leave_out = self.order.leave_out;
        match self.app.store.refresh_switch(self.from, self.to(), leave_out, settings).await? {
            Switched::Done { left_out } => {
                self.app.replace_embedder(embedder);
                *self.app.refresh.previous.lock() = Some(was);
                Ok(left_out)
            }
            Switched::Stale(_) => {
                let left = self.app.store.refresh_remaining(self.from, self.to()).await?;
                match failed.or_else(|| failures.map(str::to_owned)) {
                    Some(example) => Err(RefreshError::Failed { stale: left.stale, example }),
                    None => Err(RefreshError::Unembeddable {
                        without_picture: left.without_picture,
                        items: left.items,
                    }),
                }
            }
        }
    }

    /// Forgets the order, and the spare generation unless it is the previous encoder's.
    async fn give_up(&self) {
        let keep = self.app.refresh.previous().is_some_and(|previous| previous.contract == self.to());
        let forgotten = self.app.store.refresh_end(vec![(ORDER, None)]).await;
        let discarded = if keep { Ok(()) } else { self.app.store.refresh_discard(self.to()).await };
        if let Err(error) = forgotten.and(discarded) {
            tracing::error!(%error, "what the refresh left could not be removed");
        }
    }
}
