//! The embedder: a picture file in, an embedding out, by way of a pool of threads and the batcher.
//!
//! A thread of the pool decodes a picture, brings it to size, and where a session is idle runs it too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use latentd_model::{
    Artefact, DecodeError, DecodeLimits, Embedding, Golden, ImageBytes, Pixels, Preprocess, PreprocessError,
};
use tokio::sync::oneshot;

use crate::admission::{Admission, Overloaded, Permit};
use crate::backend::{Backends, DeviceReport};
use crate::batcher::{Batcher, Job};
use crate::config::Config;
use crate::fair::Flow;
use crate::pool::Pool;
use crate::telemetry::Metrics;

/// What the phases of one picture took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Decode and resize.
    pub decode: Duration,
    /// The wait for a session.
    pub queue: Duration,
    /// The run that it was in.
    pub inference: Duration,
    /// Pictures in that run.
    pub batch: usize,
}

/// An embedding and what it took.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// The vector.
    pub embedding: Embedding,
    /// What its phases took.
    pub timing: Timing,
}

/// Gets a decoded picture in its own size, on the decode pool, before it is brought to the encoder's.
pub type Seen = Box<dyn FnOnce(&Pixels) + Send>;

/// Why a picture has no embedding.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The file is no usable picture.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The picture cannot be brought to the encoder's size.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
    /// The model failed on it.
    #[error("the model failed on this image: {0}")]
    Inference(String),
    /// The server is full.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// The server is ending.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// A defect of the server.
    #[error("the server failed on this image; its log says more")]
    Internal,
}

impl EmbedError {
    /// A stable code for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Decode(error) => error.code(),
            Self::Preprocess(_) => "preprocess_failed",
            Self::Inference(_) => "inference_failed",
            Self::Overloaded(_) => "overloaded",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal_error",
        }
    }
}

/// Why the golden check did not pass.
#[derive(Debug, thiserror::Error)]
pub enum GoldenCheckError {
    /// The golden pictures cannot be read.
    #[error(transparent)]
    Read(#[from] latentd_model::GoldenError),
    /// A picture gave no embedding.
    #[error("golden picture {name}: {source}")]
    Embed {
        /// File name.
        name: String,
        /// Why.
        source: EmbedError,
    },
    /// A picture gave another embedding.
    #[error(
        "golden picture {name} has cosine {cosine:.6} to its expected vector, below {min}: this machine does not give the vectors this artefact was made with"
    )]
    Differs {
        /// File name.
        name: String,
        /// What was found.
        cosine: f32,
        /// What is asked for.
        min: f32,
    },
    /// There is nothing to check with.
    #[error("the artefact has no golden pictures")]
    Empty,
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
        admission: Admission,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let Backends { sessions, device } = backends;
        // A thread that runs a GPU waits rather than works, so others must be there to decode meanwhile.
        let waiting = if device.used == "cpu" { 0 } else { sessions.len() };
        let threads = config.decode_threads().max(sessions.len()) + waiting;
        let pool = Pool::start("picture", threads)?;
        let batcher = Batcher::new(sessions, config.max_batch, admission.clone(), metrics.clone());
        let limits = config.decode_limits();
        let inner = Inner { artefact, device, limits, pool, batcher, admission, metrics };
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

    /// Embeds one picture. Dropping the future abandons it.
    ///
    /// # Errors
    /// See [`EmbedError`].
    pub async fn embed(&self, image: ImageBytes) -> Result<Embedded, EmbedError> {
        let mut outcomes = self.embed_all(vec![image], None).await?;
        outcomes.pop().unwrap_or(Err(EmbedError::Internal))
    }

    /// Embeds pictures, each with its own outcome, in order. `body` is held until the last file was decoded.
    ///
    /// # Errors
    /// [`Overloaded`] when they do not all fit in the server; none is taken then.
    pub async fn embed_all(
        &self,
        images: Vec<ImageBytes>,
        body: Option<Arc<Permit>>,
    ) -> Result<Vec<Result<Embedded, EmbedError>>, Overloaded> {
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
    ) -> Result<Vec<Result<Embedded, EmbedError>>, Overloaded> {
        let permits: Result<Vec<_>, _> = images.iter().map(|_| self.0.admission.admit(1, 0)).collect();
        let place = Place::new(&self.0);
        let submit = |((image, seen), permit)| self.submit(place.flow, image, seen, permit, body.clone());
        let pending: Vec<_> = images.into_iter().zip(permits?).map(submit).collect();
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

    /// Runs the golden pictures through the whole path and gives the worst cosine.
    ///
    /// # Errors
    /// See [`GoldenCheckError`].
    pub async fn check_golden(&self) -> Result<f32, GoldenCheckError> {
        let mut worst = f32::INFINITY;
        for picture in self.0.artefact.golden()?.pictures {
            let name = picture.name;
            let embedded = match self.embed(ImageBytes::from(picture.bytes)).await {
                Ok(embedded) => embedded,
                Err(source) => return Err(GoldenCheckError::Embed { name, source }),
            };
            let cosine = embedded.embedding.cosine(&picture.expected);
            if cosine < Golden::MIN_COSINE {
                return Err(GoldenCheckError::Differs { name, cosine, min: Golden::MIN_COSINE });
            }
            worst = worst.min(cosine);
        }
        if worst.is_finite() { Ok(worst) } else { Err(GoldenCheckError::Empty) }
    }

    /// Takes no more pictures and waits for those in hand. Blocks; call it off the async runtime.
    pub fn close(&self) {
        self.0.batcher.close();
    }

    fn submit(
        &self,
        flow: Flow,
        image: ImageBytes,
        seen: Option<Seen>,
        permit: Permit,
        body: Option<Arc<Permit>>,
    ) -> Pending {
        let (reply, answer) = oneshot::channel();
        let inner = self.0.clone();
        self.0.pool.spawn(flow, move || inner.decode_and_queue(flow, image, seen, permit, body, reply));
        Pending { answer, metrics: self.0.metrics.clone() }
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
        let left = self.inner.pool.cancel(self.flow) + self.inner.batcher.cancel(self.flow);
        if left > 0 {
            self.inner.metrics.abandoned.increment(left as u64);
        }
    }
}

/// An answer on its way.
struct Pending {
    answer: oneshot::Receiver<Result<Embedded, EmbedError>>,
    metrics: Arc<Metrics>,
}

impl Future for Pending {
    type Output = Result<Embedded, EmbedError>;

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
            outcome
        })
    }
}

impl Inner {
    fn decode_and_queue(
        &self,
        flow: Flow,
        image: ImageBytes,
        seen: Option<Seen>,
        permit: Permit,
        body: Option<Arc<Permit>>,
        reply: oneshot::Sender<Result<Embedded, EmbedError>>,
    ) {
        if reply.is_closed() {
            self.metrics.abandoned.increment(1);
            return;
        }
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.pixels(&image, seen))).unwrap_or_else(|_| {
            tracing::error!("decoding a picture panicked");
            Err(EmbedError::Internal)
        });
        drop((image, body));
        let decode = started.elapsed();
        self.metrics.decode_seconds.record(decode.as_secs_f64());
        match outcome {
            Ok(pixels) => self.batcher.submit(Job { flow, pixels, decode, reply, permit }),
            Err(error) => {
                drop(permit);
                self.admission.finished(1);
                let _ = reply.send(Err(error));
            }
        }
    }

    fn pixels(&self, image: &ImageBytes, seen: Option<Seen>) -> Result<Pixels, EmbedError> {
        let decoded = latentd_model::decode(image.as_slice(), &self.limits)?;
        if let Some(seen) = seen {
            seen(&decoded);
        }
        Ok(self.preprocess().apply(&decoded)?)
    }

    fn preprocess(&self) -> &Preprocess {
        &self.artefact.manifest().preprocess
    }
}
