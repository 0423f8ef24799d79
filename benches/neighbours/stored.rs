//! A store in a folder: how long opening it takes, its memory, and recall@10 against searches per second, at each
//! precision of the vectors in memory.
//!
//! `fill` writes the vectors of a file and waits until the graph leads to all of them; `open`, in a process of its own,
//! opens what was written, so that its memory is that of a server.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use latentd::store::{
    CollectionName, ContentHash, Durability, EmbeddedOptions, EmbeddedStore, IndexChoice, IndexOptions,
    ItemId, Metadata, Neighbour, NewItem, Store, Vectors,
};
use latentd_model::{Contract, Embedding};
use serde_json::json;

use crate::npy::{floats, rows};
use crate::process::{cpu_seconds, resident};
use crate::{Failure, ask};

/// Items of one write.
const TOGETHER: usize = 4096;

fn options(dir: &str, threads: usize, vectors: Vectors, ef: usize) -> EmbeddedOptions {
    let index = IndexOptions { choice: IndexChoice::Hnsw, vectors, ef, ..IndexOptions::default() };
    let (search_threads, durability) = (threads, Durability::Normal);
    EmbeddedOptions { index, search_threads, durability, ..EmbeddedOptions::new(dir) }
}

/// `fill DIR BASE.npy THREADS VECTORS`, or `open DIR BASE.npy THREADS VECTORS EF QUERIES.npy WORST.npy`.
pub fn run(arguments: &[&str]) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    match *arguments {
        ["fill", dir, base, threads, vectors] => {
            let vectors = Vectors::from_str(vectors, true)?;
            runtime.block_on(fill(options(dir, threads.parse()?, vectors, 0), base))
        }
        ["open", dir, base, threads, vectors, ef, queries, worst] => {
            let vectors = Vectors::from_str(vectors, true)?;
            let options = options(dir, threads.parse()?, vectors, ef.parse()?);
            runtime.block_on(open(options, base, queries, worst))
        }
        _ => Err("fill DIR BASE THREADS VECTORS, or open DIR BASE THREADS VECTORS EF QUERIES WORST".into()),
    }
}

async fn fill(options: EmbeddedOptions, base: &str) -> Result<(), Failure> {
    let (vectors, name) = (options.index.vectors, CollectionName::default());
    let store = EmbeddedStore::open(options).await?;
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut items = Vec::with_capacity(TOGETHER);
    for (n, values) in rows(base)?.1.into_iter().enumerate() {
        let vector = Embedding::from_unnormalised(values)?;
        items.push(NewItem {
            id: ItemId::new(&format!("{n:08}"))?,
            content_hash: ContentHash::of_vector(&vector),
            vector,
            contract: Contract::from_bytes([0; 8]),
            metadata: Metadata::from_json(&format!(r#"{{"h":{}}}"#, n % 100))?,
            thumbnail: None,
            picture: None,
        });
        if items.len() == TOGETHER {
            store.upsert(name.clone(), std::mem::take(&mut items)).await?;
        }
    }
    store.upsert(name, items).await?;
    let written = began.elapsed().as_secs_f64();
    wait(&store).await?;
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let disk = store.stats().await?.disk_bytes;
    store.close().await?;
    println!(
        "{}",
        json!({ "engine": "latentd store", "vectors": vectors.name(), "write_s": written, "linked_s": wall,
            "cpu_s": cpu, "disk_mib": disk >> 20, "mib": resident() / 1024 })
    );
    Ok(())
}

/// Waits until the graph leads to all items, and the length of walks was found.
async fn wait(store: &EmbeddedStore) -> Result<(), Failure> {
    loop {
        let info = store.collections().await?.remove(0).index;
        if info.waiting == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn open(options: EmbeddedOptions, base: &str, queries: &str, worst: &str) -> Result<(), Failure> {
    let (vectors, name, before) = (options.index.vectors, CollectionName::default(), resident());
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let store = Arc::new(EmbeddedStore::open(options).await?);
    let (opened, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    wait(&store).await?;
    let mib = (resident() - before) as f64 / 1024.0;
    let asked: Vec<_> = rows(queries)?.1.into_iter().filter_map(ask).collect();
    // As in a server that has been up for a while.
    for query in asked.iter().take(100) {
        store.search(name.clone(), query.clone()).await?;
    }
    let (mut found, began) = (Vec::with_capacity(asked.len()), Instant::now());
    for query in &asked {
        found.push(store.search(name.clone(), query.clone()).await?);
    }
    let seconds = began.elapsed().as_secs_f64();
    let worst: Vec<f32> = floats(&std::fs::read(worst)?);
    let base = Base::open(base)?;
    let mut hits = 0;
    for ((found, query), worst) in found.iter().zip(&asked).zip(&worst) {
        hits += base.at_least(found, query.vector.as_slice(), *worst)?;
    }
    let info = store.collections().await?.remove(0);
    println!(
        "{}",
        json!({ "engine": "latentd store", "vectors": vectors.name(), "items": info.items, "ef": info.index.ef,
            "qps": asked.len() as f64 / seconds, "recall": hits as f64 / (10 * asked.len()) as f64, "mib": mib,
            "after_mib": (resident() - before) / 1024, "index_mib": store.stats().await?.index_bytes >> 20,
            "open_s": opened, "open_cpu_s": cpu })
    );
    store.close().await?;
    Ok(())
}

/// The vectors of the file, read one by one.
struct Base {
    file: std::fs::File,
    header: u64,
    dim: usize,
}

impl Base {
    fn open(path: &str) -> Result<Self, Failure> {
        let (dim, _) = rows(path)?;
        let file = std::fs::File::open(Path::new(path))?;
        let mut start = [0; 10];
        file.read_exact_at(&mut start, 0)?;
        let header = 10 + u64::from(u16::from_le_bytes([start[8], start[9]]));
        Ok(Self { file, header, dim })
    }

    /// How many neighbours are, by their own vectors, at least as near as the tenth is.
    fn at_least(&self, found: &[Neighbour], query: &[f32], worst: f32) -> Result<usize, Failure> {
        let mut bytes = vec![0; self.dim * 4];
        let mut count = 0;
        for near in found {
            let row: u64 = near.id.as_str().parse()?;
            let at = self.header + row * bytes.len() as u64;
            self.file.read_exact_at(&mut bytes, at)?;
            let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let score: f32 = bytes.chunks_exact(4).zip(query).map(|(b, q)| value(b) * q).sum();
            count += usize::from(score >= worst - 1e-6);
        }
        Ok(count)
    }
}
