//! Batch: items of an upload that are made and written together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::auth::{Caller, hold};
use super::entries::{self, BulkEntry};
use super::input::ItemError;
use super::problem::Problem;
use super::until::Until;
use crate::admission::Permit;
use crate::app::{AppState, NotReady};
use crate::embedder::Embedder;
use crate::indexer::{self, Entry, IndexError};
use crate::keys::InFlight;
use crate::slots::Slots;
use crate::store::{CollectionName, NewItem, Upserted};

/// How long a batch waits at a time for a place in the server.
const REST: Duration = Duration::from_millis(200);

/// Entries that are worked on together, and the place that their bytes take in the server.
pub struct Batch {
    /// The entries.
    pub entries: Vec<BulkEntry>,
    /// Their place, where it is their own.
    pub place: Option<Permit>,
}

/// What became of the items of a batch, with their ids as they were given.
pub type Written = Vec<(Option<String>, Result<Upserted, ItemError>)>;

/// What is the same for all batches of an upload.
#[derive(Clone)]
pub struct Work {
    /// Where they go.
    pub app: AppState,
    /// The collection there.
    pub collection: CollectionName,
    /// Whose they are, where that is known.
    pub caller: Option<Caller>,
    /// When the upload ends.
    pub until: Until,
}

/// The batches of an upload: made at the same time, and written in order.
pub struct Batches {
    work: Work,
    /// Tells that the last one that was begun is written.
    last: Option<oneshot::Receiver<()>>,
}

impl Batches {
    /// None yet.
    pub fn new(work: Work) -> Self {
        Self { work, last: None }
    }

    /// Begins a batch. It goes on whether or not the outcome is waited for, until that is dropped.
    pub fn begin(&mut self, batch: Batch) -> impl Future<Output = Result<Written, Problem>> + Send + use<> {
        let (after, next) = oneshot::channel();
        let turn = Turn { before: self.last.replace(next), after };
        // A task of its own: what it holds, others wait for, and its client may never read.
        let task = AbortOnDropHandle::new(tokio::spawn(self.work.clone().carry_out(batch, turn)));
        async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a batch of an upload was lost");
                Err(Problem::internal())
            })
        }
    }
}

/// When a batch may be written.
struct Turn {
    /// Tells that the one before is written.
    before: Option<oneshot::Receiver<()>>,
    /// Tells the one after.
    after: oneshot::Sender<()>,
}

impl Turn {
    /// Waits for it. Where the one before failed the upload ends there, and nothing more is written.
    async fn comes(&mut self) -> Result<(), Problem> {
        match self.before.take() {
            Some(before) => before.await.map_err(|_| Problem::internal()),
            None => Ok(()),
        }
    }
}

impl Work {
    /// Makes the items of a batch and writes them; tells what became of each, in order.
    async fn carry_out(self, batch: Batch, mut turn: Turn) -> Result<Written, Problem> {
        let Batch { entries, place } = batch;
        let mut held = self.hold(entries.iter().filter(|entry| entry.is_picture()).count()).await?;
        let mut permit = self.app.admission.admit(0, 0)?;
        permit.absorb(place);
        let (fetched, permit) = entries::fetched(&self.app, entries, Arc::new(permit)).await?;
        let (ids, entries): (Vec<_>, Vec<_>) =
            fetched.into_iter().map(|BulkEntry { id, entry }| (id, entry)).unzip();
        let (entries, slots) = Slots::split(entries);
        loop {
            let embedder = self.app.embedder();
            let made = self.make(&embedder, &entries, &permit).await?;
            drop(held.take());
            turn.comes().await?;
            self.allowed()?;
            // The encoder does not change while this is held: for a write, never while pictures wait to be embedded.
            let _writing = self.app.writes.read().await;
            // What another one made would be of no use.
            if self.app.embedder().artefact().contract() == embedder.artefact().contract() {
                let written = indexer::write(&*self.app.store, self.collection.clone(), made).await?;
                let _ = turn.after.send(());
                return Ok(ids.into_iter().zip(slots.fill(written, ItemError::lost)).collect());
            }
        }
    }

    /// Whose the batch is, if it may still be worked on.
    fn allowed(&self) -> Result<Option<Caller>, Problem> {
        // What was read before a shutdown is finished.
        self.app.ready().or_else(|why| if why == NotReady::Draining { Ok(()) } else { Err(why) })?;
        // An upload may outlast its key.
        self.caller.as_ref().map(|caller| caller.again(&self.app)).transpose()
    }

    /// Takes pictures in flight for whoever calls, as soon as there is a place for them.
    async fn hold(&self, pictures: usize) -> Result<Option<InFlight>, Problem> {
        let since = Instant::now();
        loop {
            match hold(self.allowed()?.as_ref(), pictures) {
                Err(problem) if problem.status == 429 => self.rest(since, problem).await?,
                held => return held,
            }
        }
    }

    /// Makes items, as soon as there is a place for their pictures.
    async fn make(
        &self,
        embedder: &Embedder,
        entries: &[Entry],
        permit: &Arc<Permit>,
    ) -> Result<Vec<Result<NewItem, IndexError>>, Problem> {
        let (since, keep) = (Instant::now(), self.app.config.keep_pictures);
        loop {
            match indexer::make(embedder, entries.to_vec(), keep, Some(permit.clone())).await {
                Err(overloaded) => self.rest(since, overloaded.into()).await?,
                Ok(made) => return Ok(made),
            }
        }
    }

    /// Waits a little before another try, unless that goes on for too long.
    async fn rest(&self, since: Instant, refused: Problem) -> Result<(), Problem> {
        if since.elapsed() >= self.app.config.request_timeout() {
            return Err(refused);
        }
        tokio::select! {
            biased;
            late = self.until.late() => Err(late),
            () = tokio::time::sleep(REST) => Ok(()),
        }
    }
}
