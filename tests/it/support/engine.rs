//! Engine: the store that tests of any engine run on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use latentd::cli::serve::open_store;
use latentd::config::Config;
use latentd::store::{Store, StoreChoice};
use tempfile::TempDir;

/// Names a distributed engine, e.g. `milvus://127.0.0.1:19530`; without it the embedded one is used.
const URL: &str = "STORE_TEST_URL";

/// The address of the distributed engine that was named, if any.
pub fn distributed() -> Option<String> {
    std::env::var(URL).ok().filter(|url| !url.is_empty())
}

/// A place for a store, empty and a test's own: a folder, or a database of the engine that was named.
pub fn choice() -> StoreChoice {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    match distributed() {
        None => StoreChoice::Embedded,
        Some(url) => {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            format!("{url}/test_{}_{number}", std::process::id()).parse().unwrap()
        }
    }
}

/// A store's place, which can be opened again.
pub struct Engine {
    pub config: Config,
    _dir: TempDir,
}

impl Engine {
    /// An empty one.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data_dir: dir.path().join("data"), store: choice(), ..Config::default() };
        Self { config, _dir: dir }
    }

    /// Opens it.
    pub async fn open(&self) -> Arc<dyn Store> {
        open_store(&self.config).await.unwrap()
    }
}
