//! The embedder: a picture file in, an embedding out, by way of a pool of threads and the batcher.
//!
//! A thread of the pool looks a picture up in the cache; else it decodes it, brings it to size, and where a session
//! is idle runs it too.

mod flight;
mod golden;
mod spans;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use latentd_model::decode::decode_as;
use latentd_model::{Artefact, DecodeLimits, Embedding, ImageBytes, Pixels, Preprocess, fitted};
use tokio::sync::oneshot;

use self::flight::{Flights, Task};
pub use self::golden::GoldenCheckError;
use crate::admission::{Admission, Overloaded, Permit};
use crate::backend::{Backends, DeviceReport};
use crate::batcher::{Batcher, Job};
use crate::cache::{CacheKey, EmbeddingCache};
use crate::config::Config;
use crate::fair::Flow;
use crate::health::Health;
use crate::outcome::{EmbedError, Embedded, Outcome, Timing};
use crate::pool::Pool;
use crate::reply::Reply;
use crate::store::ContentHash;
use crate::telemetry::Metrics;
use crate::trace;

/// Wants to see a picture for itself, on the decode pool.
pub struct Seen {
    /// The longest side that is of use; the picture is shown at least so large, where it is.
    pub longest: u32,
    /// Gets it.
    pub show: Box<dyn FnOnce(&Pixels) + Send>,
}

/// What the embedders of a process share.
#[derive(Clone)]
pub struct Shared {
    /// What may be inside at once.
    pub admission: Admission,
    /// Where they count.
    pub metrics: Arc<Metrics>,
    /// The vectors of pictures seen lately; none where each picture is run.
    pub cache: Option<Arc<EmbeddingCache>>,
}

/// One served encoder and the way to it. Clones share it.
#[derive(Clone)]
pub struct Embedder(Arc<Inner>);

struct Inner {
    artefact: Artefact,
    device: DeviceReport,
    limits: DecodeLimits,
    pool: Pool,
    batcher: Batcher,
    admission: Admission,
    metrics: Arc<Metrics>,
    cache: Option<Arc<EmbeddingCache>>,
    flights: Flights,
    health: Arc<Health>,
}

impl Embedder {
    /// Starts the pool and the batcher of `artefact`.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn start(
        config: &Config,
        artefact: Artefact,
        backends: Backends,
        shared: Shared,
    ) -> std::io::Result<Self> {
        let Shared { admission, metrics, cache } = shared;
        let Backends { sessions, solo, device } = backends;
        // A thread that runs a GPU waits rather than works, so others must be there to decode meanwhile.
        let waiting = if device.used == "cpu" { 0 } else { sessions.len() };
        let threads = config.decode_threads().max(sessions.len()) + waiting;
        let pool = Pool::start("picture", threads)?;
        let known = artefact.reference().unwrap_or_else(|error| {
            // Its hash was right: whoever wrote it is at fault, and serving does not need it.
            tracing::warn!(%error, "the artefact's reference cannot be read");
            None
        });
        let health = Arc::new(Health::new(artefact.manifest().output.dim, known, &metrics));
        let (watch, counts) = (health.clone(), metrics.clone());
        let batcher = Batcher::new(sessions, solo, config.max_batch(), admission.clone(), counts, watch);
        let limits = config.decode_limits();
        let flights = Flights::default();
        let inner =
            Inner { artefact, device, limits, pool, batcher, admission, metrics, cache, flights, health };
        Ok(Self(Arc::new(inner)))
    }

    /// The encoder served.
    #[must_use]
    pub fn artefact(&self) -> &Artefact {
        &self.0.artefact
    }

    /// Where it runs.
    #[must_use]
    pub fn device(&self) -> &DeviceReport {
        &self.0.device
    }

    /// How many sessions it has.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.0.batcher.sessions()
    }

    /// Whether a picture that is alone has a session of its own.
    #[must_use]
    pub fn has_solo(&self) -> bool {
        self.0.batcher.has_solo()
    }

    /// Threads of the decode pool.
    #[must_use]
    pub fn decode_threads(&self) -> usize {
        self.0.pool.threads()
    }

    /// Pictures waiting for a session.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.0.batcher.depth()
    }

    /// Pictures waiting for a thread of the decode pool.
    #[must_use]
    pub fn decode_queue_depth(&self) -> usize {
        self.0.pool.waiting()
    }

    /// Embeds one picture. Dropping the future abandons it.
    ///
    /// # Errors
    /// See [`EmbedError`].
    pub async fn embed(&self, image: ImageBytes) -> Result<Embedded, EmbedError> {
        self.embed_one(image, true).await
    }

    async fn embed_one(&self, image: ImageBytes, cached: bool) -> Outcome {
        let permit = self.0.admission.admit(1, 0)?;
        let place = Place::new(&self.0);
        self.submit(place.flow, (0, image, None), permit, None, cached).await
    }

    /// Embeds pictures, each with its own outcome, in order. `body` is held until the last file was decoded.
    ///
    /// # Errors
    /// [`Overloaded`] when they do not all fit in the server; none is taken then.
    pub async fn embed_all(
        &self,
        images: Vec<ImageBytes>,
        body: Option<Arc<Permit>>,
    ) -> Result<Vec<Outcome>, Overloaded> {
        self.embed_all_seen(images.into_iter().map(|image| (image, None)).collect(), body).await
    }

    /// As [`Embedder::embed_all`], and shows decoded pictures to whoever wants to see them.
    ///
    /// # Errors
    /// As [`Embedder::embed_all`].
    pub async fn embed_all_seen(
        &self,
        images: Vec<(ImageBytes, Option<Seen>)>,
        body: Option<Arc<Permit>>,
    ) -> Result<Vec<Outcome>, Overloaded> {
        let permits: Result<Vec<_>, _> = images.iter().map(|_| self.0.admission.admit(1, 0)).collect();
        let place = Place::new(&self.0);
        let submit = |(index, ((image, seen), permit))| {
            self.submit(place.flow, (index, image, seen), permit, body.clone(), true)
        };
        let pending: Vec<_> = images.into_iter().zip(permits?).enumerate().map(submit).collect();
        drop(body);
        Ok(futures::future::join_all(pending).await)
    }

    /// What the encoder would see of a picture.
    ///
    /// # Errors
    /// See [`EmbedError`].
    pub async fn preprocess(
        &self,
        image: ImageBytes,
        body: Option<Arc<Permit>>,
    ) -> Result<Pixels, EmbedError> {
        let permit = self.0.admission.admit(1, 0)?;
        let inner = self.0.clone();
        self.on_pool(move || {
            let _held = (permit, body);
            inner.pixels(&image, None)
        })
        .await
        .ok_or(EmbedError::Internal)?
    }

    /// Runs `work` on the decode pool; `None` when it panicked. What it may use must be admitted by the caller.
    pub async fn on_pool<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let place = Place::new(&self.0);
        self.0.pool.spawn(place.flow, move || {
            if let Ok(outcome) = catch_unwind(AssertUnwindSafe(work)) {
                let _ = reply.send(outcome);
            }
        });
        answer.await.ok()
    }

    /// Measures what the last embeddings look like together, on the decode pool.
    pub async fn measure_health(&self) {
        let health = self.0.health.clone();
        // It panics for no input; were it to, the gauges would only stay.
        let _ = self.on_pool(move || health.measure()).await;
    }

    /// Takes no more pictures and waits for those in hand. Blocks; call it off the async runtime.
    pub fn close(&self) {
        self.0.batcher.close();
    }

    /// Hands in a picture, the one at `index` of its request.
    fn submit(
        &self,
        flow: Flow,
        (index, image, seen): (usize, ImageBytes, Option<Seen>),
        permit: Permit,
        body: Option<Arc<Permit>>,
        cached: bool,
    ) -> Pending {
        let (sender, answer) = oneshot::channel();
        let reply = Reply::new(sender, permit);
        let since = Instant::now();
        self.0.spawn(Task { flow, image, seen, body, cached, reply, since });
        let traced = trace::current().map(|record| (record, index, since));
        Pending { answer, metrics: self.0.metrics.clone(), traced }
    }

    /// The hash by which the cache knows a picture file; `None` where there is no cache.
    pub async fn content_hash(&self, image: ImageBytes) -> Option<ContentHash> {
        self.0.cache.as_ref()?;
        self.on_pool(move || ContentHash::of(image.as_slice())).await
    }
}

/// A request's place in the queues: dropped with the request, answered or not, it takes out what still waits there,
/// with the memory that it holds.
struct Place<'a> {
    flow: Flow,
    inner: &'a Inner,
}

impl<'a> Place<'a> {
    fn new(inner: &'a Inner) -> Self {
        Self { flow: Flow::new(), inner }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Self { flow, inner } = self;
        let left = inner.pool.cancel(*flow) + inner.batcher.cancel(*flow) + inner.flights.cancel(*flow);
        if left > 0 {
            inner.metrics.abandoned.increment(left as u64);
        }
    }
}

/// An answer on its way.
struct Pending {
    answer: oneshot::Receiver<Outcome>,
    metrics: Arc<Metrics>,
    /// Where its spans go, as which picture's, and when it was handed in.
    traced: Option<(Arc<trace::Record>, usize, Instant)>,
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let answer = std::pin::Pin::new(&mut self.answer).poll(context);
        answer.map(|answer| {
            let outcome = answer.unwrap_or(Err(EmbedError::Internal));
            if let Err(error) = &outcome {
                self.metrics.image_error(error.code());
            }
            if let Some((record, index, since)) = &self.traced {
                spans::note(record, *index, *since, &outcome);
            }
            outcome
        })
    }
}

impl Inner {
    fn spawn(self: &Arc<Self>, task: Task) {
        let inner = self.clone();
        self.pool.spawn(task.flow, move || inner.take(task));
    }

    fn take(self: &Arc<Self>, mut task: Task) {
        if task.reply.is_closed() {
            self.metrics.abandoned.increment(1);
            return;
        }
        task.reply.wait = task.since.elapsed();
        self.metrics.wait_seconds.record(task.reply.wait.as_secs_f64());
        if let (Some(cache), true) = (&self.cache, task.cached) {
            let content = ContentHash::of(task.image.as_slice());
            let key = CacheKey { content, contract: self.artefact.contract() };
            task.reply.content = Some(content);
            if let Some(vector) = cache.get(&key) {
                return self.answer_from_cache(task, vector);
            }
            match Flights::join(self, key, task) {
                Some(flown) => task = flown,
                None => return,
            }
            cache.miss();
        }
        self.decode_and_queue(task);
    }

    /// A known picture is decoded only for whoever wants to see it.
    fn answer_from_cache(&self, task: Task, embedding: Embedding) {
        let Task { image, seen, body, reply, .. } = task;
        let shown = seen.map(|seen| self.guarded(|| self.show(&image, seen).map(drop)));
        drop((image, body));
        self.admission.finished(1);
        let content = reply.content;
        let timing = Timing { wait: reply.wait, ..Timing::default() };
        let embedded = Embedded { embedding, timing, content };
        reply.send(shown.unwrap_or(Ok(())).map(|()| embedded));
    }

    fn decode_and_queue(&self, task: Task) {
        let Task { flow, image, seen, body, reply, .. } = task;
        let started = Instant::now();
        let outcome = self.guarded(|| self.pixels(&image, seen));
        drop((image, body));
        let decode = started.elapsed();
        self.metrics.decode_seconds.record(decode.as_secs_f64());
        match outcome {
            Ok(pixels) => self.batcher.submit(Job { flow, pixels, decode, reply }),
            Err(error) => {
                self.admission.finished(1);
                reply.send(Err(error));
            }
        }
    }

    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, EmbedError>) -> Result<T, EmbedError> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            tracing::error!("decoding a picture panicked");
            Err(EmbedError::Internal)
        })
    }

    /// The picture as it was shown, whole where the encoder wants files decoded whole.
    fn show(&self, image: &ImageBytes, seen: Seen) -> Result<Pixels, EmbedError> {
        let fits = |height, width| fitted(height, width, seen.longest);
        let decoding = &self.preprocess().decoding;
        let (picture, _) = decode_as(image.as_slice(), &self.limits, decoding, &fits)?;
        (seen.show)(&picture);
        Ok(picture)
    }

    fn pixels(&self, image: &ImageBytes, seen: Option<Seen>) -> Result<Pixels, EmbedError> {
        let preprocess = self.preprocess();
        if let Some(seen) = seen {
            let picture = self.show(image, seen)?;
            // One that was shown whole need not be decoded again.
            if preprocess.decoding.reducing_gap.is_none() {
                return Ok(preprocess.apply(&picture)?);
            }
        }
        Ok(preprocess.load(image.as_slice(), &self.limits)?)
    }

    fn preprocess(&self) -> &Preprocess {
        &self.artefact.manifest().preprocess
    }
}
