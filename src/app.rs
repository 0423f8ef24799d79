//! The app: everything that handlers share, from start-up to the last answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use latentd_model::{Artefact, RuntimeInfo};
use parking_lot::RwLock;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::admission::Admission;
use crate::backend::Backends;
use crate::cache::EmbeddingCache;
use crate::config::Config;
use crate::embedder::{Embedder, Shared};
use crate::fetch::Fetcher;
use crate::keys::{Keys, KeysError};
use crate::precision::PrecisionReport;
use crate::refresh::{self, Refresh};
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::tls::{Tls, TlsError};
use crate::trace::{TargetError, Tracer};
use crate::transfer::Transfers;
use crate::tuning::Tuned;
use crate::watch;

/// Longest wait at the end for the spans that were not sent yet.
const FLUSH: Duration = Duration::from_secs(3);

/// What handlers get.
pub type AppState = Arc<App>;

/// The parts of a running server.
pub struct App {
    /// The effective settings.
    pub config: Config,
    /// The items and their neighbours.
    pub store: Arc<dyn Store>,
    /// The metrics of this app.
    pub metrics: Arc<Metrics>,
    /// What may be inside at once.
    pub admission: Admission,
    /// The bodies that are being read.
    pub incoming: Transfers,
    /// Large replies, of which their clients have yet to read some. Apart, so that slow readers keep nobody's request out.
    pub replies: Transfers,
    /// The vectors of pictures seen lately, if any are kept.
    pub cache: Option<Arc<EmbeddingCache>>,
    /// Whether requests are taken.
    pub lifecycle: Lifecycle,
    /// ONNX Runtime in use; absent where a test brings its own backend.
    pub runtime: Option<RuntimeInfo>,
    /// What was chosen at start, and why.
    pub chosen: Chosen,
    /// When the app was put together.
    pub started: Instant,
    /// Who may call.
    pub keys: Keys,
    /// What connections are encrypted with, if they are.
    pub tls: Option<Tls>,
    /// Gets pictures that clients name by address, where that is on.
    pub fetcher: Option<Fetcher>,
    /// Sends what requests did to a collector, where one is named.
    pub tracer: Option<Tracer>,
    /// The change of the encoder, at most one at a time.
    pub refresh: Refresh,
    /// Listings of near-duplicates that may go on at once; each is many searches.
    pub listings: Semaphore,
    /// Held for reading by whoever embeds and writes items, for writing while the encoder changes.
    pub writes: Arc<tokio::sync::RwLock<()>>,
    embedder: RwLock<Embedder>,
}

/// Bytes of large replies that may be held however little may come in: a few of the largest.
const LEAST_REPLIES: usize = 64 << 20;

/// After how long without progress a body can be asked for its place.
const SLOW_BODY: Duration = Duration::from_secs(1);

/// The same for a reply. The kernel takes a reply in lumps as large as a third of what it keeps for the client, of which
/// one that reads slowly makes few a minute.
const SLOW_REPLY: Duration = Duration::from_secs(10);

/// Listings of near-duplicates at once.
const LISTINGS: usize = 8;

/// What was chosen for the encoder at start, and why.
#[derive(Debug, Clone, Default)]
pub struct Chosen {
    /// Float or int8; absent where the store's encoder left no choice.
    pub precision: Option<PrecisionReport>,
    /// Sessions and sizes of a run.
    pub tuned: Tuned,
}

/// Why an app could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The metrics could not be made.
    #[error("metrics: {0}")]
    Metrics(String),
    /// A thread could not be started.
    #[error("cannot start threads: {0}")]
    Threads(#[from] std::io::Error),
    /// The keys cannot be had.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The certificate cannot be had.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The collector's address is none.
    #[error("otlp_endpoint: {0}")]
    Collector(#[from] TargetError),
}

impl App {
    /// Puts the parts together. It takes requests only after [`App::check`].
    ///
    /// # Errors
    /// When threads cannot be started, or what a setting names cannot be used. Call within a runtime.
    pub fn new(
        config: Config,
        artefact: Artefact,
        runtime: Option<RuntimeInfo>,
        backends: Backends,
        store: Arc<dyn Store>,
        chosen: Chosen,
    ) -> Result<AppState, AppError> {
        let metrics = Arc::new(Metrics::new().map_err(|error| AppError::Metrics(error.to_string()))?);
        metrics.device_fallback.set(if backends.device.fallback.is_some() { 1.0 } else { 0.0 });
        let admission = Admission::new(config.queue_images, config.queue_bytes);
        let incoming = Transfers::new(admission.clone(), SLOW_BODY);
        let replies = Admission::new(0, config.queue_bytes.max(LEAST_REPLIES));
        let replies = Transfers::new(replies, SLOW_REPLY);
        let cache = EmbeddingCache::new(config.cache_mib, &metrics).map(Arc::new);
        let shared = Shared { admission: admission.clone(), metrics: metrics.clone(), cache: cache.clone() };
        let embedder = Embedder::start(&config, artefact, backends, shared)?;
        let keys = Keys::open(&config.api_keys_file, &config.admin_key_file)?;
        let encrypted = !config.tls_cert.as_os_str().is_empty();
        let tls = if encrypted { Some(Tls::open(&config.tls_cert, &config.tls_key)?) } else { None };
        let tracer = Tracer::start(&config, &metrics)?;
        let fetcher = config.url_inputs.then(|| Fetcher::new(&config, admission.clone()));
        Ok(Arc::new(Self {
            config,
            store,
            metrics,
            admission,
            incoming,
            listings: Semaphore::new(LISTINGS),
            replies,
            cache,
            lifecycle: Lifecycle::default(),
            runtime,
            chosen,
            started: Instant::now(),
            keys,
            tls,
            fetcher,
            tracer,
            refresh: Refresh::default(),
            writes: Arc::default(),
            embedder: RwLock::new(embedder),
        }))
    }

    /// What an embedder of this app shares with the others.
    #[must_use]
    pub fn shared(&self) -> Shared {
        let (admission, metrics, cache) = (self.admission.clone(), self.metrics.clone(), self.cache.clone());
        Shared { admission, metrics, cache }
    }

    /// The embedder that serves now. A handler asks once and keeps it, so that one request meets one encoder.
    #[must_use]
    pub fn embedder(&self) -> Embedder {
        self.embedder.read().clone()
    }

    /// Puts another embedder in place of the one that serves; what is in hand finishes on the old one.
    pub fn replace_embedder(&self, embedder: Embedder) {
        let old = std::mem::replace(&mut *self.embedder.write(), embedder);
        // Dropped outside the lock: its sessions go with it.
        drop(old);
    }

    /// Runs the golden check through the whole path; the app is ready once it passed.
    ///
    /// # Errors
    /// When a golden picture does not give the vector it must.
    pub async fn check(self: &Arc<Self>) -> Result<(), crate::embedder::GoldenCheckError> {
        let began = Instant::now();
        let worst = self.embedder().check_golden().await?;
        // Before the first request, so that whoever asks is not told that nothing is under way.
        refresh::resume(self).await;
        self.lifecycle.enter(Phase::Ready);
        self.metrics.ready.set(1.0);
        let (check_ms, since_start_ms) = (began.elapsed().as_millis(), self.started.elapsed().as_millis());
        tracing::info!(worst_cosine = worst, check_ms, since_start_ms, "golden check passed: ready");
        Ok(())
    }

    /// Refuses a request that came before the golden check or during a shutdown.
    ///
    /// # Errors
    /// See [`NotReady`].
    pub fn ready(&self) -> Result<(), NotReady> {
        match self.lifecycle.phase() {
            Phase::Ready => self.refresh.missing().map_or(Ok(()), |why| Err(NotReady::EncoderMissing(why))),
            Phase::Starting => Err(NotReady::Starting),
            Phase::Draining => Err(NotReady::Draining),
        }
    }

    /// Marks the app as draining when `shutdown` is given.
    pub async fn drain_on(self: Arc<Self>, shutdown: Shutdown) {
        shutdown.wait().await;
        self.lifecycle.enter(Phase::Draining);
        self.metrics.ready.set(0.0);
    }

    /// Reads files again that may change while the server runs. Never ends when there are any.
    pub async fn follow_files(self: Arc<Self>) {
        // From here on it ends no process, also where there is no file to read again.
        if let Err(error) = signal(SignalKind::hangup()) {
            tracing::warn!(%error, "cannot listen for SIGHUP");
        }
        let keys = async {
            let Some(file) = self.keys.file().map(Path::to_owned) else { return };
            let app = self.clone();
            watch::watch(vec![file], move || match app.keys.reload() {
                Ok(keys) => tracing::info!(keys, "API keys read again"),
                Err(error) => tracing::error!(%error, "the API keys from before stay in force"),
            })
            .await;
        };
        let tls = async {
            let Some(tls) = &self.tls else { return };
            let app = self.clone();
            watch::watch(tls.files().map(Path::to_owned).to_vec(), move || {
                match app.tls.as_ref().map(Tls::reload) {
                    Some(Err(error)) => tracing::error!(%error, "the certificate from before stays in use"),
                    _ => tracing::info!("certificate read again"),
                }
            })
            .await;
        };
        tokio::join!(keys, tls);
    }

    /// Ends the embedder's threads and closes the store. Call when no request is left.
    pub async fn close(&self) {
        self.refresh.interrupt();
        let embedder = self.embedder();
        if tokio::task::spawn_blocking(move || embedder.close()).await.is_err() {
            tracing::error!("closing the embedder panicked");
        }
        if let Err(error) = self.store.close().await {
            tracing::error!(%error, "closing the store failed");
        }
        if let Some(tracer) = &self.tracer {
            tracer.flush(FLUSH).await;
        }
    }
}

/// Why no request is taken now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It has just started.
    #[error("the golden check has not passed yet")]
    Starting,
    /// Another process changed the store's encoder to one that is not here.
    #[error("{0}")]
    EncoderMissing(String),
    /// It is about to end.
    #[error("the server is shutting down")]
    Draining,
}

/// Where in its life the app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The golden check has not passed yet.
    Starting,
    /// Requests are taken.
    Ready,
    /// What was taken in is finished, nothing more is taken.
    Draining,
}

/// The phase, shared.
#[derive(Debug, Default)]
pub struct Lifecycle(AtomicU8, Shutdown);

impl Lifecycle {
    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Goes on to `phase`; there is no way back.
    pub fn enter(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::AcqRel);
        if phase == Phase::Draining {
            self.1.start();
        }
    }

    /// Given once the app drains, for whoever waits for something else meanwhile.
    #[must_use]
    pub fn draining(&self) -> &Shutdown {
        &self.1
    }
}
