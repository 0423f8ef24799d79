//! The tender: a thread that keeps the collections' graphs up with what is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::registry::Registry;
use super::snapshots::Snapshots;
use crate::memory;
use crate::store::StoreError;

/// Tells the tender that there may be something to do.
#[derive(Clone)]
pub struct Wake(SyncSender<()>);

impl Wake {
    /// Wakes it; where it is awake or has ended, nothing happens.
    pub fn wake(&self) {
        let _ = self.0.try_send(());
    }
}

/// The thread, which ends when it is told to.
pub struct Tender {
    pool: Arc<rayon::ThreadPool>,
    stop: Arc<AtomicBool>,
    wake: Wake,
    thread: JoinHandle<()>,
}

impl Tender {
    /// Starts it, with `threads` threads of its own that link; they share the cores with searches.
    pub fn start(registry: Arc<Registry>, threads: usize, snapshots: Snapshots) -> Result<Self, StoreError> {
        let failed = |_| StoreError::Internal("the threads that link could not be started");
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|number| format!("store-link-{number}"))
            .build()
            .map_err(failed)?;
        let pool = Arc::new(pool);
        let (sender, receiver) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let (told, linkers) = (Arc::clone(&stop), Arc::clone(&pool));
        let thread = std::thread::Builder::new()
            .name("store-tend".to_owned())
            .spawn(move || work(&registry, &linkers, &receiver, &told, &snapshots))
            .map_err(|_| StoreError::Internal("the thread that tends graphs could not be started"))?;
        let wake = Wake(sender);
        wake.wake();
        Ok(Self { pool, stop, wake, thread })
    }

    /// The threads that link, for other work that no search waits for.
    pub fn pool(&self) -> Arc<rayon::ThreadPool> {
        Arc::clone(&self.pool)
    }

    /// What wakes it.
    pub fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Ends it, after what it has in hand.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.wake();
        // One that panicked has ended too.
        let _ = self.thread.join();
    }
}

/// Rounds after which memory is worth being given back.
const MANY: usize = 16;

fn work(
    registry: &Registry,
    pool: &rayon::ThreadPool,
    wake: &Receiver<()>,
    stop: &AtomicBool,
    snapshots: &Snapshots,
) {
    let freeze = |least: &dyn Fn(usize) -> usize| {
        for collection in registry.all() {
            let (changes, items) = collection.index.unfrozen();
            if changes >= least(items) {
                snapshots.write(&collection);
            }
        }
    };
    while wake.recv().is_ok() && !stop.load(Ordering::Relaxed) {
        // In turn, so that a large collection does not keep a small one waiting.
        let round = || registry.all().iter().filter(|collection| collection.index.tend(stop)).count();
        let mut rounds = 0;
        while pool.install(round) > 0 {
            rounds += 1;
        }
        if rounds > MANY {
            // What scans needed of what is linked now lies between what stays.
            memory::give_back();
        }
        // Linking a few again takes less than writing all.
        freeze(&|items| (items / 20).max(1000));
    }
    freeze(&|_| 1);
}
