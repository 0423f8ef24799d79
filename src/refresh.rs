//! Refresh: from one encoder to another while the server serves.
//!
//! The next encoder embeds what is kept of every item's picture into a spare generation, in the background. Items
//! written meanwhile are found again by the number of their write. At the end writes wait for a moment, the rest is
//! made up for, and store and embedder change together. A refresh that a crash or a shutdown broke off goes on at
//! the next start.

mod follow;
mod progress;
mod record;
mod worker;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use latentd_model::{Artefact, ArtefactError, Contract, Golden};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::app::{App, AppState};
use crate::backend;
use crate::config::Config;
use crate::embedder::{Embedder, GoldenCheckError, Shared};
use crate::store::StoreError;
use crate::store::refresh::Remaining;
use crate::telemetry::Metrics;
pub use progress::{Progress, RefreshState};
pub use record::{MissingEncoder, ModelRecord};

/// The encoder whose vectors the collections hold, once one was activated.
const ACTIVE: &str = "active_model";
/// The one before it, whose generation is kept.
const PREVIOUS: &str = "previous_model";
/// The order that is being carried out.
const ORDER: &str = "activation";

/// What to change to, and on what terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The encoder.
    pub model: ModelRecord,
    /// Whether items that cannot be embedded again may be left out.
    pub leave_out: bool,
    /// Least mean overlap of neighbours, before against after; any when none.
    pub min_overlap: Option<f64>,
}

/// Why a refresh did not begin, or did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// One is under way.
    #[error("a refresh to {0} is under way: wait for it, or cancel it with DELETE /models/refresh")]
    Busy(String),
    /// It is the one that serves.
    #[error("{0} serves already")]
    AlreadyActive(String),
    /// Nothing to go back to.
    #[error("there is no encoder to go back to: none was activated before the one that serves")]
    NoPrevious,
    /// The artefact is not sound.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// The encoder cannot be opened.
    #[error("the encoder cannot be opened: {0}")]
    Encoder(String),
    /// It does not give the vectors that it must.
    #[error(transparent)]
    Golden(#[from] GoldenCheckError),
    /// Items of which nothing is kept that could be embedded.
    #[error(
        "{without_picture} of {items} items cannot be embedded again, since no picture of them is kept (they were given as vectors, or with --keep-pictures none): write them again, or leave them out with ?drop_unembeddable=true"
    )]
    Unembeddable {
        /// Such items.
        without_picture: u64,
        /// All.
        items: u64,
    },
    /// Items whose pictures failed.
    #[error(
        "{stale} items could not be embedded again ({example}): leave them out with ?drop_unembeddable=true"
    )]
    Failed {
        /// Such items.
        stale: u64,
        /// One of them and why.
        example: String,
    },
    /// The neighbours change more than allowed.
    #[error("the neighbours overlap by {overlap:.4} between the two encoders, below the bound of {bound}")]
    Differs {
        /// The mean overlap@10 found.
        overlap: f64,
        /// The least that was asked for.
        bound: f64,
    },
    /// Somebody cancelled it.
    #[error("it was cancelled")]
    Cancelled,
    /// The server is ending; the refresh goes on at the next start.
    #[error("the server is shutting down")]
    Interrupted,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The encoder is missing here.
    #[error(transparent)]
    Missing(#[from] MissingEncoder),
    /// Another process had the lead.
    #[error("it ended without a change; the latentd that led it says why")]
    Elsewhere,
    /// Work was lost.
    #[error("a task of the refresh panicked")]
    Panicked,
}

/// The refresh of an app: at most one at a time.
#[derive(Default)]
pub struct Refresh {
    progress: Mutex<Progress>,
    running: Mutex<Option<Running>>,
    /// What the store remembers as the previous encoder.
    previous: Mutex<Option<ModelRecord>>,
    /// Why the encoder that another process activated cannot be served here.
    missing: Mutex<Option<String>>,
    /// Ends the task that follows other processes.
    following: CancellationToken,
}

#[derive(Clone)]
struct Running {
    stop: CancellationToken,
    /// Whether a person stopped it; otherwise it goes on at the next start.
    cancelled: Arc<AtomicBool>,
}

impl Refresh {
    /// How far it is, or how the last one ended.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().clone()
    }

    /// The encoder that a rollback goes back to.
    #[must_use]
    pub fn previous(&self) -> Option<ModelRecord> {
        self.previous.lock().clone()
    }

    /// Why the encoder that the store was changed to cannot be served here, if so.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.missing.lock().clone()
    }

    /// Stops the one under way; tells whether there was one.
    pub fn cancel(&self) -> bool {
        let running = self.running.lock().clone();
        running.is_some_and(|running| {
            running.cancelled.store(true, Ordering::Release);
            running.stop.cancel();
            true
        })
    }

    /// Breaks off for a shutdown.
    pub fn interrupt(&self) {
        self.following.cancel();
        if let Some(running) = self.running.lock().as_ref() {
            running.stop.cancel();
        }
    }

    fn refusal(&self) -> RefreshError {
        RefreshError::Busy(self.progress().model.unwrap_or_else(|| "an encoder".to_owned()))
    }

    /// The error to refuse another refresh with, while one is under way.
    fn busy(&self) -> Option<RefreshError> {
        let under_way = self.running.lock().is_some();
        under_way.then(|| self.refusal())
    }

    fn occupy(&self) -> Result<Running, RefreshError> {
        let mut running = self.running.lock();
        if running.is_some() {
            return Err(self.refusal());
        }
        let new = Running { stop: CancellationToken::new(), cancelled: Arc::default() };
        Ok(running.insert(new).clone())
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock());
    }
}

/// Begins to change to an encoder. What can be refused is refused here; the rest goes on in the background.
///
/// # Errors
/// See [`RefreshError`].
pub async fn start(app: &AppState, order: Order) -> Result<(), RefreshError> {
    let running = app.refresh.occupy()?;
    // A task of its own: whoever asked for it may leave, and then nobody would end what was begun.
    let begun = tokio::spawn(set_out(app.clone(), order, running));
    begun.await.unwrap_or(Err(RefreshError::Panicked))
}

async fn set_out(app: AppState, order: Order, running: Running) -> Result<(), RefreshError> {
    let begun = AssertUnwindSafe(begin(&app, &order)).catch_unwind().await;
    match begun.unwrap_or(Err(RefreshError::Panicked)) {
        Ok((next, from, remaining)) => {
            app.refresh.note(|progress| *progress = Progress::begin(&order, from, &remaining));
            tokio::spawn(watch(app, order, next, running));
            Ok(())
        }
        Err(error) => {
            app.refresh.running.lock().take();
            Err(error)
        }
    }
}

/// Runs the worker; should it panic, the next refresh is not kept out by it.
async fn watch(app: AppState, order: Order, next: worker::Next, running: Running) {
    let name = order.model.name.clone();
    if tokio::spawn(worker::run(app.clone(), order, next, running)).await.is_err() {
        tracing::error!(model = name, "the refresh panicked");
        app.refresh.note(|progress| progress.fail(&name, &RefreshError::Panicked));
        if let Err(error) = app.store.refresh_end(vec![(ORDER, None)]).await {
            tracing::error!(%error, "what the refresh left could not be removed");
        }
        app.refresh.running.lock().take();
    }
}

/// Goes back to the encoder before, whose generation is kept: only what was written since is embedded again.
///
/// # Errors
/// See [`RefreshError`].
pub async fn roll_back(app: &AppState, leave_out: bool) -> Result<(), RefreshError> {
    let Some(model) = app.refresh.previous() else {
        return Err(app.refresh.busy().unwrap_or(RefreshError::NoPrevious));
    };
    start(app, Order { model, leave_out, min_overlap: None }).await
}

/// Goes on with what a crash or a shutdown broke off; where several processes share the store, with what they do.
pub async fn resume(app: &AppState) {
    *app.refresh.previous.lock() = record(app, PREVIOUS).await;
    if let Some(agreed) = app.store.agreed() {
        tokio::spawn(follow::follow(app.clone(), agreed));
        return;
    }
    let order = match app.store.setting(ORDER).await {
        Ok(order) => order.and_then(|text| serde_json::from_str::<Order>(&text).ok()),
        Err(error) => {
            tracing::error!(%error, "cannot tell whether a refresh was broken off");
            None
        }
    };
    let Some(order) = order else { return };
    let model = order.model.name.clone();
    match start(app, order).await {
        Ok(()) => tracing::info!(model, "going on with the refresh that was broken off"),
        Err(error) => {
            tracing::error!(model, %error, "the refresh that was broken off cannot go on");
            app.refresh.note(|progress| progress.fail(&model, &error));
        }
    }
}

/// The encoder that the store was changed to, if it ever was.
///
/// # Errors
/// When the store cannot be read.
pub async fn active(store: &dyn crate::store::Store) -> Result<Option<ModelRecord>, StoreError> {
    Ok(store.setting(ACTIVE).await?.and_then(|text| serde_json::from_str(&text).ok()))
}

async fn record(app: &App, name: &'static str) -> Option<ModelRecord> {
    let text = app.store.setting(name).await.ok().flatten()?;
    serde_json::from_str(&text).ok()
}

async fn begin(app: &AppState, order: &Order) -> Result<(worker::Next, Contract, Remaining), RefreshError> {
    let from = app.embedder().artefact().contract();
    let to = order.model.contract;
    if from == to {
        return Err(RefreshError::AlreadyActive(order.model.name.clone()));
    }
    let (model, config, runtime) = (order.model.clone(), app.config.clone(), app.runtime.clone());
    let opened = tokio::task::spawn_blocking(move || open_in_background(&model, &config, runtime)).await;
    let (artefact, embedder) = opened.map_err(|_| RefreshError::Panicked)??;
    embedder.check_golden().await?;
    let remaining = app.store.refresh_remaining(from, to).await?;
    let Remaining { items, without_picture, .. } = remaining;
    if without_picture > 0 && !order.leave_out {
        return Err(RefreshError::Unembeddable { without_picture, items });
    }
    let text = serde_json::to_string(order).map_err(|e| RefreshError::Encoder(e.to_string()))?;
    let mut settings = vec![(ORDER, Some(text))];
    let going_back = app.refresh.previous().is_some_and(|previous| previous.contract == to);
    if !going_back {
        // The spare generation is taken for this one.
        settings.push((PREVIOUS, None));
    }
    app.store.refresh_lead(from, to, settings).await?;
    if !going_back {
        app.refresh.previous.lock().take();
    }
    if let Err(error) = app.store.refresh_begin(from, to, artefact.manifest().output.dim).await {
        if let Err(error) = app.store.refresh_end(vec![(ORDER, None)]).await {
            tracing::error!(%error, "a change that did not begin could not be ended");
        }
        return Err(error.into());
    }
    Ok((worker::Next { artefact, embedder }, from, remaining))
}

/// The next encoder with one session and as few threads as can be: what serves comes first.
fn open_in_background(
    model: &ModelRecord,
    config: &Config,
    runtime: Option<latentd_model::RuntimeInfo>,
) -> Result<(Artefact, Embedder), RefreshError> {
    let artefact = model.open(config)?;
    let config = Config {
        sessions: 1,
        intra_threads: 1,
        solo_session: false,
        decode_threads: 1,
        max_batch: 4,
        ..config.clone()
    };
    let metrics = Metrics::new().map_err(|e| RefreshError::Encoder(e.to_string()))?;
    let admission = Admission::new(worker::AHEAD + Golden::MAX_PICTURES, usize::MAX);
    // Without a cache: pictures of the index would only drive out those that clients ask for.
    let shared = Shared { admission, metrics: Arc::new(metrics), cache: None };
    let embedder = open(&artefact, &config, runtime, shared)?;
    Ok((artefact, embedder))
}

fn open(
    artefact: &Artefact,
    config: &Config,
    runtime: Option<latentd_model::RuntimeInfo>,
    shared: Shared,
) -> Result<Embedder, RefreshError> {
    let refuse = |reason: String| RefreshError::Encoder(reason);
    let runtime = runtime.ok_or_else(|| refuse("this server runs without ONNX Runtime".to_owned()))?;
    let backends = backend::ort::open(config, artefact, &runtime).map_err(|e| refuse(e.to_string()))?;
    Embedder::start(config, artefact.clone(), backends, shared).map_err(|e| refuse(e.to_string()))
}
