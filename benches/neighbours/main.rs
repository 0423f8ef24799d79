//! The index on vectors of a file: how long a graph takes, its memory, and recall@10 against searches per second.
//!
//! `benches/neighbours/run.py` runs it beside faiss and hnswlib. Alone: `cargo bench --bench neighbours -- BASE.npy
//! QUERIES.npy THREADS` (float32, C order), or what [`stored`] says; each line of the output is a JSON object.

mod npy;
mod process;
mod stored;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use latentd::store::index::{CollectionIndex, IndexOptions};
use latentd::store::{Filter, IndexChoice, ItemId, Metadata, Neighbour, Query};
use latentd_model::{Contract, Embedding};
use serde_json::json;

use npy::rows;
use process::{cpu_seconds, resident};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const LENGTHS: [usize; 8] = [16, 24, 32, 48, 64, 96, 128, 256];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(&("fill" | "open")) = arguments.first() {
        return stored::run(&arguments);
    }
    let &[base, queries, threads] = arguments.as_slice() else {
        return Err("BASE.npy QUERIES.npy THREADS".into());
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build()?;
    pool.install(|| run(base, queries))
}

fn run(base: &str, queries: &str) -> Result<(), Failure> {
    let options = IndexOptions { choice: IndexChoice::Hnsw, ..IndexOptions::default() };
    let before = resident();
    let index = fill(base, options)?;
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let stop = AtomicBool::new(false);
    while index.tend(&stop) {}
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let (found_ef, items) = (index.ef(), index.len());
    println!(
        "{}",
        json!({ "engine": "latentd", "items": items, "build_s": wall, "build_cpu_s": cpu,
            "mib": (resident() - before) as f64 / 1024.0, "index_mib": index.bytes() >> 20, "found_ef": found_ef })
    );
    let asked: Vec<Query> = rows(queries)?.1.into_iter().filter_map(ask).collect();
    let (truth, ms) = time(&asked, |query| index.search_exactly(query));
    println!("{}", json!({ "engine": "latentd exact f32", "qps": 1e3 / ms, "recall": 1.0 }));
    for ef in LENGTHS.into_iter().chain([found_ef]) {
        index.set_ef(ef);
        let (found, ms) = time(&asked, |query| index.search(query));
        let recall = recall(&found, &truth);
        println!("{}", json!({ "engine": "latentd", "ef": ef, "qps": 1e3 / ms, "recall": recall }));
    }
    for percent in [1, 10, 50] {
        let filter = Filter::from_json(&format!(r#"{{"h":{{"$lt":{percent}}}}}"#))?;
        let with = |query: &Query| Query { filter: Some(filter.clone()), ..query.clone() };
        let asked: Vec<Query> = asked.iter().take(200).map(with).collect();
        let (truth, exact_ms) = time(&asked, |query| index.search_exactly(query));
        let (found, ms) = time(&asked, |query| index.search(query));
        let (qps, exact_qps, recall) = (1e3 / ms, 1e3 / exact_ms, recall(&found, &truth));
        println!(
            "{}",
            json!({ "engine": "latentd", "filter_percent": percent, "qps": qps, "exact_qps": exact_qps, "recall": recall })
        );
    }
    Ok(())
}

fn fill(base: &str, options: IndexOptions) -> Result<CollectionIndex, Failure> {
    let (dim, vectors) = rows(base)?;
    let index = CollectionIndex::with_options(dim, options);
    for (n, vector) in vectors.into_iter().enumerate() {
        let metadata = Metadata::from_json(&format!(r#"{{"h":{}}}"#, n % 100))?;
        let vector = Embedding::from_unnormalised(vector)?;
        index.put(&ItemId::new(&format!("{n:08}"))?, n as u64 + 1, vector.as_slice(), &metadata);
    }
    Ok(index)
}

fn ask(vector: Vec<f32>) -> Option<Query> {
    let (contract, filter, exclude) = (Contract::from_bytes([0; 8]), None, Vec::new());
    let vector = Embedding::from_unnormalised(vector).ok()?;
    Some(Query { vector, contract, k: 10, filter, exclude, min_score: None, with_vectors: false })
}

/// Answers, and the mean milliseconds of one.
fn time(asked: &[Query], search: impl Fn(&Query) -> Vec<Neighbour>) -> (Vec<Vec<Neighbour>>, f64) {
    let began = Instant::now();
    let found = asked.iter().map(search).collect();
    (found, began.elapsed().as_secs_f64() * 1e3 / asked.len() as f64)
}

/// Share of the exact neighbours that were found; of equal scores any will do.
fn recall(found: &[Vec<Neighbour>], truth: &[Vec<Neighbour>]) -> f64 {
    let hits = |(found, truth): (&Vec<Neighbour>, &Vec<Neighbour>)| {
        let worst = truth.last().map_or(f32::INFINITY, |neighbour| neighbour.score);
        found.iter().filter(|neighbour| neighbour.score >= worst).count().min(truth.len())
    };
    let all: usize = truth.iter().map(Vec::len).sum();
    found.iter().zip(truth).map(hits).sum::<usize>() as f64 / all as f64
}
