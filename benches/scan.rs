//! Times the scans of the neighbour index and checks that none of them loses a neighbour.
//!
//! `cargo bench --bench scan -- [ITEMS] [DIM]`; `LATENTD_BENCH_VECTORS=x.npy` (float32, C order) takes real vectors.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use latentd::store::index::{CollectionIndex, Level, Precision};
use latentd::store::{Filter, ItemId, Metadata, Neighbour, Query};
use latentd_model::{Contract, Embedding};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const QUERIES: usize = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let items = numbers.first().copied().unwrap_or(60_000);
    let dim = numbers.get(1).copied().unwrap_or(512);
    let levels: Vec<&str> = Level::available().into_iter().map(Level::name).collect();
    println!("this machine: {}; one thread; k = 10; {QUERIES} queries", levels.join(", "));
    // As under load, when every core has a search of its own.
    rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(|| bench(items, dim)).map_err(Into::into)
}

fn bench(items: usize, dim: usize) -> Result<(), String> {
    let fail = |error: Box<dyn std::error::Error>| error.to_string();
    match std::env::var_os("LATENTD_BENCH_VECTORS") {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
            run("the file's vectors", &read_npy(&bytes).map_err(fail)?).map_err(fail)?;
        }
        None => {
            run("random vectors", &vectors(items, dim, None)).map_err(fail)?;
            run("clustered vectors", &vectors(items, dim, Some(0.5))).map_err(fail)?;
        }
    }
    Ok(())
}

fn run(title: &str, all: &[Embedding]) -> Result<(), Box<dyn std::error::Error>> {
    let (queries, kept) = all.split_at(QUERIES.min(all.len() / 2));
    println!("\n{title}: {} x {}", kept.len(), kept[0].dim());
    println!("| scan | build s | MiB | CPU ms | CPU ms per 60,000 | recall@10 | clock p50 ms | p99 ms |");
    println!("|---|---|---|---|---|---|---|---|");
    let reference = index(kept, Precision::Float, Level::Portable)?;
    let truth: Vec<Vec<Neighbour>> = queries.iter().map(|query| reference.search(&ask(query))).collect();
    for precision in [Precision::Float, Precision::Quantised] {
        for level in Level::available() {
            row(queries, kept, &truth, precision, level)?;
        }
    }
    let index = index(kept, Precision::Quantised, Level::detect())?;
    for (name, filter) in [("1 %", r#"{"n":{"$lt":1}}"#), ("50 %", r#"{"n":{"$lt":50}}"#)] {
        let filter = Filter::from_json(filter)?;
        let (mean, _) = time(queries, |query| {
            std::hint::black_box(index.search(&Query { filter: Some(filter.clone()), ..ask(query) }));
        });
        println!("filter that leaves {name}: {mean:.3} ms");
    }
    Ok(())
}

fn row(
    queries: &[Embedding],
    kept: &[Embedding],
    truth: &[Vec<Neighbour>],
    precision: Precision,
    level: Level,
) -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let index = index(kept, precision, level)?;
    let build = began.elapsed().as_secs_f64();
    let mut found = Vec::with_capacity(queries.len());
    let (mean, times) = time(queries, |query| found.push(index.search(&ask(query))));
    let mut hits = 0;
    for (found, truth) in found.iter().zip(truth) {
        let ids: HashSet<&ItemId> = truth.iter().map(|neighbour| &neighbour.id).collect();
        hits += found.iter().filter(|neighbour| ids.contains(&neighbour.id)).count();
    }
    let recall = hits as f64 / truth.iter().map(Vec::len).sum::<usize>() as f64;
    println!(
        "| {}, {} | {build:.2} | {} | {mean:.3} | {:.3} | {recall:.4} | {:.3} | {:.3} |",
        precision.name(),
        level.name(),
        index.bytes() >> 20,
        mean * 60_000.0 / kept.len() as f64,
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
    Ok(())
}

/// What searches took: the mean time of the thread on a CPU, which other processes disturb less than a clock
/// and which the system counts in steps of some milliseconds, and the times by the clock, sorted.
fn time(queries: &[Embedding], mut search: impl FnMut(&Embedding)) -> (f64, Vec<f64>) {
    let began = cpu_time();
    let one = |query: &Embedding| {
        let clock = Instant::now();
        search(query);
        clock.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<f64> = queries.iter().map(one).collect();
    let cpu = began.and_then(|began| Some((cpu_time()? - began).as_secs_f64() * 1e3));
    let mean = cpu.unwrap_or_else(|| times.iter().sum()) / times.len() as f64;
    times.sort_by(f64::total_cmp);
    (mean, times)
}

/// What this thread has spent on a CPU, on Linux.
fn cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

fn ask(vector: &Embedding) -> Query {
    let contract = Contract::from_bytes([0; 8]);
    let vector = vector.clone();
    Query { vector, contract, k: 10, filter: None, exclude: Vec::new(), min_score: None, with_vectors: false }
}

fn index(
    vectors: &[Embedding],
    precision: Precision,
    level: Level,
) -> Result<CollectionIndex, Box<dyn std::error::Error>> {
    let index = CollectionIndex::new(vectors[0].dim(), precision, level);
    for (n, vector) in vectors.iter().enumerate() {
        let metadata = Metadata::from_json(&format!("{{\"n\":{}}}", n % 100))?;
        index.put(&ItemId::new(&format!("{n:08}"))?, n as u64, vector.as_slice(), &metadata);
    }
    Ok(index)
}

/// Gaussian vectors; clustered ones lie around 100 centres, `spread` times a centre's length away.
fn vectors(count: usize, dim: usize, spread: Option<f32>) -> Vec<Embedding> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut gaussian = |scale: f32| -> Vec<f32> {
        let one = |rng: &mut ChaCha8Rng| (0..4).map(|_| rng.random_range(-1f32..1.0)).sum::<f32>() * scale;
        (0..dim).map(|_| one(&mut rng)).collect()
    };
    let centres: Vec<Vec<f32>> = (0..100).map(|_| gaussian(1.0)).collect();
    let make = |n: usize| match spread {
        None => gaussian(1.0),
        Some(spread) => gaussian(spread).iter().zip(&centres[n % 100]).map(|(a, b)| a + b).collect(),
    };
    (0..count + QUERIES).map(make).filter_map(|values| Embedding::from_unnormalised(values).ok()).collect()
}

fn read_npy(bytes: &[u8]) -> Result<Vec<Embedding>, Box<dyn std::error::Error>> {
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8_lossy(&bytes[10..10 + length]);
    let shape = header.split_once("'shape': (").ok_or("no shape")?.1;
    let dim: usize = shape.split([',', ')']).nth(1).ok_or("no second dimension")?.trim().parse()?;
    let numbers = bytes[10 + length..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let values: Vec<f32> = numbers.collect();
    Ok(values.chunks_exact(dim).filter_map(|row| Embedding::from_unnormalised(row.to_vec()).ok()).collect())
}
