//! The batcher: a queue of pictures and one worker thread per session, without any fixed wait.
//!
//! A worker takes what queued while it was busy, up to the largest batch, and leaves other idle
//! workers their share. A batch that fails is run again picture by picture, so that only the
//! pictures at fault fail.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use latentd_model::{Embedding, Pixels};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::admission::{Admission, Permit};
use crate::backend::{Backend, BackendError};
use crate::embedder::{EmbedError, Embedded, Timing};
use crate::telemetry::Metrics;

/// A picture on its way through the batcher.
pub struct Job {
    /// The picture at the encoder's size.
    pub pixels: Pixels,
    /// What decode and resize took.
    pub decode: Duration,
    /// Where the answer goes; when its receiver is gone, so is the client.
    pub reply: oneshot::Sender<Result<Embedded, EmbedError>>,
    /// The picture's place in the server.
    pub permit: Permit,
}

struct Queued {
    job: Job,
    since: Instant,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    idle: usize,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    max_batch: usize,
    admission: Admission,
    metrics: Arc<Metrics>,
}

/// Hands pictures to the sessions.
pub struct Batcher {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Batcher {
    /// Starts one worker thread per session.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        sessions: Vec<Box<dyn Backend>>,
        max_batch: usize,
        admission: Admission,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { state, wake: Condvar::new(), max_batch, admission, metrics });
        let mut workers = Vec::with_capacity(sessions.len());
        for (number, backend) in sessions.into_iter().enumerate() {
            let shared = shared.clone();
            let name = format!("session-{number}");
            workers.push(std::thread::Builder::new().name(name).spawn(move || work(&shared, backend))?);
        }
        Ok(Self { shared, workers: Mutex::new(workers) })
    }

    /// Queues a picture. Its bound is the admission that gave the job its permit.
    pub fn submit(&self, job: Job) {
        let mut state = self.shared.state.lock();
        if state.closed {
            drop(state);
            let _ = job.reply.send(Err(EmbedError::ShuttingDown));
            return;
        }
        state.queue.push_back(Queued { job, since: Instant::now() });
        self.shared.metrics.queue_depth.set(state.queue.len() as f64);
        let wake = state.idle > 0;
        drop(state);
        if wake {
            self.shared.wake.notify_one();
        }
    }

    /// Pictures waiting for a session.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    /// Takes no more pictures, lets the workers finish what is queued, and waits for them.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
        for worker in std::mem::take(&mut *self.workers.lock()) {
            if worker.join().is_err() {
                tracing::error!("a session's thread had panicked");
            }
        }
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.close();
    }
}

fn work(shared: &Shared, mut backend: Box<dyn Backend>) {
    while let Some(batch) = next_batch(shared) {
        run(shared, backend.as_mut(), batch);
    }
}

/// Waits for pictures; `None` when the batcher is closed and nothing is left.
fn next_batch(shared: &Shared) -> Option<Vec<Queued>> {
    let mut state = shared.state.lock();
    loop {
        let batch = take_share(&mut state, shared);
        if !batch.is_empty() {
            shared.metrics.queue_depth.set(state.queue.len() as f64);
            return Some(batch);
        }
        if state.closed {
            return None;
        }
        state.idle += 1;
        shared.wake.wait(&mut state);
        state.idle -= 1;
    }
}

/// The oldest pictures whose clients still wait: this worker's share of the queue, at most one batch.
fn take_share(state: &mut State, shared: &Shared) -> Vec<Queued> {
    let share = state.queue.len().div_ceil(state.idle + 1).min(shared.max_batch);
    let mut batch = Vec::with_capacity(share);
    while batch.len() < share {
        match state.queue.pop_front() {
            Some(queued) if queued.job.reply.is_closed() => shared.metrics.abandoned.increment(1),
            Some(queued) => batch.push(queued),
            None => break,
        }
    }
    batch
}

fn run(shared: &Shared, backend: &mut dyn Backend, batch: Vec<Queued>) {
    let started = Instant::now();
    let size = batch.len();
    let (mut pixels, mut waiting) = (Vec::with_capacity(size), Vec::with_capacity(size));
    for Queued { job, since } in batch {
        let timing = Timing { decode: job.decode, queue: started - since, ..Timing::default() };
        shared.metrics.queue_seconds.record(timing.queue.as_secs_f64());
        pixels.push(job.pixels);
        waiting.push((job.reply, job.permit, timing));
    }
    let outcomes = embed_each(backend, &pixels);
    let inference = started.elapsed();
    shared.metrics.inference_seconds.record(inference.as_secs_f64());
    shared.metrics.batch_size.record(size as f64);
    shared.admission.finished(size);
    for ((reply, permit, timing), outcome) in waiting.into_iter().zip(outcomes) {
        let answer = match outcome {
            Ok(embedding) => {
                shared.metrics.images.increment(1);
                Ok(Embedded { embedding, timing: Timing { inference, batch: size, ..timing } })
            }
            Err(error) => Err(EmbedError::Inference(error.0)),
        };
        drop(permit);
        let _ = reply.send(answer);
    }
}

/// One outcome per picture: in one run, or after a failure picture by picture.
fn embed_each(backend: &mut dyn Backend, pixels: &[Pixels]) -> Vec<Result<Embedding, BackendError>> {
    match embed_guarded(backend, pixels) {
        Ok(embeddings) => embeddings.into_iter().map(Ok).collect(),
        Err(error) if pixels.len() == 1 => {
            tracing::error!(%error, "the model failed on a picture");
            vec![Err(error)]
        }
        Err(error) => {
            tracing::warn!(%error, pictures = pixels.len(), "a run failed: trying its pictures one by one");
            pixels.iter().flat_map(|one| embed_each(backend, std::slice::from_ref(one))).collect()
        }
    }
}

/// A run that cannot panic and gives exactly one embedding per picture.
fn embed_guarded(backend: &mut dyn Backend, pixels: &[Pixels]) -> Result<Vec<Embedding>, BackendError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| backend.embed(pixels)));
    let embeddings = outcome.map_err(|_| BackendError("the backend panicked".to_owned()))??;
    if embeddings.len() != pixels.len() {
        let (got, wanted) = (embeddings.len(), pixels.len());
        return Err(BackendError(format!("the backend gave {got} vectors for {wanted} pictures")));
    }
    Ok(embeddings)
}
