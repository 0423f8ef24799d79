//! The batcher: a queue of pictures in front of the sessions, without any fixed wait and without threads of its own.
//!
//! Whoever hands in a picture while a session is idle runs it there and then, and goes on with
//! what queued meanwhile, up to the largest batch at a time; where no session is idle, the
//! picture waits for one. A picture that is alone runs in the solo session, where there is one: on all cores, which
//! nobody else wants then. Requests take turns. A batch that fails is run again picture by picture, so that only the
//! pictures at fault fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use latentd_model::{Embedding, Pixels};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::admission::Admission;
use crate::backend::{Backend, BackendError};
use crate::fair::{FairQueue, Flow};
use crate::health::Health;
use crate::outcome::{EmbedError, Embedded, Outcome, Timing};
use crate::reply::Reply;
use crate::telemetry::Metrics;

/// A picture on its way through the batcher.
pub struct Job {
    /// The request it belongs to.
    pub flow: Flow,
    /// The picture at the encoder's size.
    pub pixels: Pixels,
    /// What decode and resize took.
    pub decode: Duration,
    /// Where the answer goes.
    pub reply: Reply,
}

struct Queued {
    job: Job,
    since: Instant,
}

struct State {
    queue: FairQueue<Queued>,
    idle: Vec<Box<dyn Backend>>,
    /// The solo session while it is idle.
    solo: Option<Box<dyn Backend>>,
    closed: bool,
}

/// Hands pictures to the sessions.
pub struct Batcher {
    state: Mutex<State>,
    came_back: Condvar,
    sessions: usize,
    has_solo: bool,
    max_batch: usize,
    admission: Admission,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

impl Batcher {
    /// A batcher in front of `sessions`, and of `solo` for a picture that is alone.
    #[must_use]
    pub fn new(
        sessions: Vec<Box<dyn Backend>>,
        solo: Option<Box<dyn Backend>>,
        max_batch: usize,
        admission: Admission,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        let (sessions, idle) = (sessions.len(), sessions);
        let has_solo = solo.is_some();
        let state = Mutex::new(State { queue: FairQueue::default(), idle, solo, closed: false });
        Self { state, came_back: Condvar::new(), sessions, has_solo, max_batch, admission, metrics, health }
    }

    /// Hands in a picture, and blocks to run it where a session is idle. What waits is bounded by the
    /// admission that gave the job its permit.
    pub fn submit(&self, job: Job) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            job.reply.send(Err(EmbedError::ShuttingDown));
            return;
        }
        state.queue.push(job.flow, Queued { job, since: Instant::now() });
        // Neither here nor on its way to here is any other.
        let alone = self.admission.images() == 1 && state.idle.len() == self.sessions;
        if alone && let Some(solo) = state.solo.take() {
            return self.run_alone(solo, state);
        }
        let idle = state.idle.pop();
        self.metrics.queue_depth.set(state.queue.len() as f64);
        drop(state);
        if let Some(backend) = idle {
            self.run_what_queued(backend);
        }
    }

    /// Runs the one picture there is, then what queued while no other session took it.
    fn run_alone(&self, mut solo: Box<dyn Backend>, mut state: MutexGuard<'_, State>) {
        let batch: Vec<Queued> = state.queue.pop().into_iter().collect();
        self.metrics.queue_depth.set(state.queue.len() as f64);
        drop(state);
        let answers = self.run(solo.as_mut(), batch);
        let mut state = self.state.lock();
        state.solo = Some(solo);
        let next = if state.queue.is_empty() { None } else { state.idle.pop() };
        self.came_back.notify_all();
        drop(state);
        // Its client's next picture finds the session there.
        send(answers);
        if let Some(backend) = next {
            self.run_what_queued(backend);
        }
    }

    /// Drops the pictures of a flow that wait for a session, and gives their number.
    pub fn cancel(&self, flow: Flow) -> usize {
        let mut state = self.state.lock();
        let left = state.queue.remove(flow);
        self.metrics.queue_depth.set(state.queue.len() as f64);
        drop(state);
        left.len()
    }

    /// Pictures waiting for a session.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Whether a picture that is alone has a session of its own.
    #[must_use]
    pub fn has_solo(&self) -> bool {
        self.has_solo
    }

    /// How many sessions there are, beside that for a picture that is alone.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    /// Takes no more pictures and waits until those taken are done.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        while state.idle.len() < self.sessions || state.solo.is_some() != self.has_solo {
            self.came_back.wait(&mut state);
        }
    }

    fn run_what_queued(&self, mut backend: Box<dyn Backend>) {
        loop {
            let mut state = self.state.lock();
            let batch = self.take_share(&mut state);
            self.metrics.queue_depth.set(state.queue.len() as f64);
            if batch.is_empty() {
                state.idle.push(backend);
                self.came_back.notify_all();
                return;
            }
            drop(state);
            send(self.run(backend.as_mut(), batch));
        }
    }

    /// The next pictures, request by request in turn: this session's share of the queue, at most one batch.
    fn take_share(&self, state: &mut State) -> Vec<Queued> {
        let share = state.queue.len().div_ceil(state.idle.len() + 1).min(self.max_batch);
        let mut batch = Vec::with_capacity(share);
        while batch.len() < share {
            match state.queue.pop() {
                // Its client left between its decoding and its place in the queue.
                Some(queued) if queued.job.reply.is_closed() => self.metrics.abandoned.increment(1),
                Some(queued) => batch.push(queued),
                None => break,
            }
        }
        batch
    }

    /// Runs a batch; the answers are yet to be sent.
    fn run(&self, backend: &mut dyn Backend, batch: Vec<Queued>) -> Vec<(Reply, Outcome)> {
        let started = Instant::now();
        let size = batch.len();
        let (mut pixels, mut waiting) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for Queued { job, since } in batch {
            let timing = Timing { decode: job.decode, queue: started - since, ..Timing::default() };
            self.metrics.queue_seconds.record(timing.queue.as_secs_f64());
            pixels.push(job.pixels);
            waiting.push((job.reply, timing));
        }
        let outcomes = embed_each(backend, &pixels);
        let inference = started.elapsed();
        self.metrics.inference_seconds.record(inference.as_secs_f64());
        self.metrics.batch_size.record(size as f64);
        self.admission.finished(size);
        let answer = |((reply, timing), outcome): ((Reply, Timing), Result<Embedding, BackendError>)| {
            let answer = match outcome {
                Ok(embedding) => {
                    self.metrics.images.increment(1);
                    self.health.note(&embedding);
                    let timing = Timing { wait: reply.wait, inference, batch: size, ..timing };
                    Ok(Embedded { embedding, timing, content: reply.content })
                }
                Err(error) => Err(EmbedError::Inference(error.0)),
            };
            (reply, answer)
        };
        waiting.into_iter().zip(outcomes).map(answer).collect()
    }
}

fn send(answers: Vec<(Reply, Outcome)>) {
    answers.into_iter().for_each(|(reply, answer)| reply.send(answer));
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
