//! Times the embedded store: writes alone and together, and opening it again.
//!
//! `cargo bench --bench store -- [ITEMS] [DIM]`; the data folder is made under TMPDIR and deleted.

use std::sync::Arc;
use std::time::Instant;

use latentd::store::{
    CollectionName, ContentHash, EmbeddedOptions, EmbeddedStore, ItemId, Metadata, NewItem, Query, Store,
};
use latentd_model::{Contract, Embedding};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const CONTRACT: Contract = Contract::from_bytes([1; 8]);

fn main() -> Result<(), Failure> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let items = numbers.first().copied().unwrap_or(100_000);
    let dim = numbers.get(1).copied().unwrap_or(512);
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let options = EmbeddedOptions::new(dir.path());
    println!("{items} items of {dim} numbers in {}", dir.path().display());
    runtime.block_on(write(&options, items, dim))?;

    let began = Instant::now();
    let store = EmbeddedStore::open_blocking(options)?;
    println!("opened again in {:.3} s", began.elapsed().as_secs_f64());
    runtime.block_on(async {
        let stats = store.stats().await?;
        let vector = item(1, dim)?.vector;
        let (filter, exclude, min_score) = (None, Vec::new(), None);
        let query =
            Query { vector, contract: CONTRACT, k: 10, filter, exclude, min_score, with_vectors: false };
        let began = Instant::now();
        for _ in 0..100 {
            store.search(CollectionName::default(), query.clone()).await?;
        }
        println!("a search takes {:.3} ms ({})", began.elapsed().as_secs_f64() * 10.0, stats.scan);
        println!("{} MiB on disk, {} MiB in memory", stats.disk_bytes >> 20, stats.index_bytes >> 20);
        Ok(store.close().await?)
    })
}

async fn write(options: &EmbeddedOptions, items: usize, dim: usize) -> Result<(), Failure> {
    let store = Arc::new(EmbeddedStore::open(options.clone()).await?);
    let rate = |name: &str, count: usize, began: Instant| {
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{name}: {:.0} items/s, {:.3} ms each",
            count as f64 / seconds,
            seconds * 1e3 / count as f64
        );
    };
    let began = Instant::now();
    for n in 0..items.min(500) {
        put(&store, vec![item(n, dim)?]).await?;
    }
    rate("one writer, one item at a time", items.min(500), began);
    let began = Instant::now();
    let writer = |task: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..100 {
                put(&store, vec![item(task * 100 + n, dim)?]).await?;
            }
            Ok::<(), Failure>(())
        })
    };
    for task in (0..32).map(writer).collect::<Vec<_>>() {
        task.await??;
    }
    rate("32 writers, one item at a time", 3200, began);
    let all: Result<Vec<NewItem>, Failure> = (0..items).map(|n| item(n, dim)).collect();
    let mut all = all?;
    let began = Instant::now();
    while !all.is_empty() {
        let rest = all.split_off(all.len().min(1000));
        put(&store, std::mem::replace(&mut all, rest)).await?;
    }
    rate("one writer, 1000 items at a time", items, began);
    Ok(store.close().await?)
}

async fn put(store: &EmbeddedStore, items: Vec<NewItem>) -> Result<(), Failure> {
    for result in store.upsert(CollectionName::default(), items).await? {
        result?;
    }
    Ok(())
}

fn item(n: usize, dim: usize) -> Result<NewItem, Failure> {
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    let vector = Embedding::from_unnormalised((0..dim).map(|_| rng.random_range(-1f32..1.0)).collect())?;
    let content_hash = ContentHash::of_vector(&vector);
    let metadata = Metadata::from_json(&format!(r#"{{"n":{n},"kind":"shirt","tags":["a","b"]}}"#))?;
    Ok(NewItem {
        id: ItemId::new(&format!("shirts/{n:08}.jpg"))?,
        vector,
        contract: CONTRACT,
        metadata,
        content_hash,
        thumbnail: None,
        picture: None,
    })
}
