//! The pool: a fixed number of threads and one queue, fair between requests.
//!
//! Idle threads sleep rather than spin: on a server they would take the cores from the requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::fair::{FairQueue, Flow};

type Task = Box<dyn FnOnce() + Send>;

/// Runs tasks on its threads, pictures' decoding whole. What waits must be bounded by whoever hands it in.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: FairQueue<Task>,
    closed: bool,
}

impl Pool {
    /// A pool of `threads` threads, called `<name>-<number>`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(name: &str, threads: usize) -> std::io::Result<Self> {
        let pool = Self { shared: Arc::default(), threads };
        for number in 0..threads {
            let shared = pool.shared.clone();
            std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || work(&shared))?;
        }
        Ok(pool)
    }

    /// Queues a task of a flow; a panic in it is logged and ends nothing else.
    pub fn spawn(&self, flow: Flow, task: impl FnOnce() + Send + 'static) {
        self.shared.state.lock().queue.push(flow, Box::new(task));
        self.shared.wake.notify_one();
    }

    /// Drops the tasks of a flow that have not begun, and gives their number.
    pub fn cancel(&self, flow: Flow) -> usize {
        let tasks = self.shared.state.lock().queue.remove(flow);
        // Dropped outside the lock: they may hold much.
        tasks.len()
    }

    /// Tasks that have not begun.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    /// How many threads it has.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }
}

impl Drop for Pool {
    /// Lets the threads finish what is queued and end. Does not wait for them: one of them may be the caller.
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

fn work(shared: &Shared) {
    // There are as many threads as cores: whatever one of them decodes would wait for another core in vain.
    latentd_model::decode_alone();
    while let Some(task) = next(shared) {
        if catch_unwind(AssertUnwindSafe(task)).is_err() {
            tracing::error!("a task of the pool panicked");
        }
    }
}

fn next(shared: &Shared) -> Option<Task> {
    let mut state = shared.state.lock();
    loop {
        if let Some(task) = state.queue.pop() {
            return Some(task);
        }
        if state.closed {
            return None;
        }
        shared.wake.wait(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn tasks_run_in_order_a_panic_ends_nothing_and_what_is_queued_is_finished() {
        let (sender, receiver) = mpsc::channel();
        let pool = Pool::start("test", 1).unwrap();
        let flow = Flow::new();
        for number in 0..5 {
            let sender = sender.clone();
            pool.spawn(flow, move || {
                assert_ne!(number, 2);
                sender.send(number).unwrap();
            });
        }
        drop((pool, sender));
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [0, 1, 3, 4]);
    }
}
