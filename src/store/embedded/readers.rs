//! Readers: a few threads, each with a connection that only reads.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::files::{DataDir, database_error};
use crate::store::StoreError;

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// The threads and the queue before them.
pub struct Readers {
    path: PathBuf,
    queue: Mutex<Option<SyncSender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Readers {
    /// Starts `count` threads before which at most `waiting` reads queue.
    pub fn start(data: &DataDir, count: usize, waiting: usize) -> Result<Self, StoreError> {
        let (sender, receiver) = sync_channel(waiting);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let (connection, receiver) = (data.open_reader()?, Arc::clone(&receiver));
            let thread = std::thread::Builder::new()
                .name(format!("store-read-{number}"))
                .spawn(move || work(&connection, &receiver))
                .map_err(|_| StoreError::Internal("a reader thread could not be started"))?;
            threads.push(thread);
        }
        let (queue, threads) = (Mutex::new(Some(sender)), Mutex::new(threads));
        Ok(Self { path: data.database(), queue, threads })
    }

    /// Runs `read` on one of the threads.
    pub async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            if !sender.is_closed() {
                // The caller may go while the read runs.
                let _: Result<(), _> = sender.send(read(connection));
            }
        });
        match self.queue.lock().as_ref().map(|queue| queue.try_send(job)) {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => return Err(StoreError::Busy { what: "reads" }),
            Some(Err(TrySendError::Disconnected(_))) | None => return Err(StoreError::Closed),
        }
        let result = receiver.await.map_err(|_| StoreError::Closed)?;
        result.map_err(|error| database_error(error, &self.path))
    }

    /// Takes no more reads; gives the threads, which end after those that wait.
    pub fn stop(&self) -> Vec<JoinHandle<()>> {
        self.queue.lock().take();
        std::mem::take(&mut self.threads.lock())
    }
}

fn work(connection: &Connection, queue: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held while waiting, and let go of before working.
        let job = queue.lock().recv();
        match job {
            Ok(job) => job(connection),
            Err(_) => return,
        }
    }
}
