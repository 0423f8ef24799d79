//! Crates that keep a graph of nearest neighbours, on vectors of a file: build time, memory, and recall@10 against
//! searches per second.
//!
//! `benches/neighbours/run.py --engines hnsw_rs,usearch,hannoy` builds and runs it beside the other engines:
//! `neighbours-crates ENGINE BASE.npy QUERIES.npy WORST.npy THREADS`; each line of the output is a JSON object.

#[path = "../../npy.rs"]
mod npy;
#[path = "../../process.rs"]
mod process;

use std::error::Error;
use std::fs;
use std::time::Instant;

use hannoy::distances::Cosine;
use hnsw_rs::prelude::{DistDot, Hnsw};
use process::{cpu_seconds, resident};
use rand::SeedableRng;
use rayon::prelude::*;
use serde_json::json;
use usearch::{IndexOptions, MetricKind, ScalarKind};

type Failure = Box<dyn Error + Send + Sync>;

const M: usize = 16;
const EF_CONSTRUCTION: usize = 100;
const K: usize = 10;
const LENGTHS: [usize; 8] = [16, 32, 48, 64, 96, 128, 192, 256];

/// Rows of numbers, one after the other.
struct Rows {
    dim: usize,
    numbers: Vec<f32>,
}

impl Rows {
    /// A file of numpy's, float32 in C order.
    fn read(path: &str) -> Result<Self, Failure> {
        let (dim, rows) = npy::rows(path)?;
        Ok(Self { dim, numbers: rows.into_iter().flatten().collect() })
    }

    fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.numbers.chunks_exact(self.dim)
    }

    fn row(&self, n: usize) -> &[f32] {
        &self.numbers[n * self.dim..][..self.dim]
    }
}

/// A graph of a crate.
trait Graph {
    /// Places of the nearest of `query`.
    fn search(&self, query: &[f32], ef: usize) -> Result<Vec<usize>, Failure>;
}

impl Graph for Hnsw<'_, f32, DistDot> {
    fn search(&self, query: &[f32], ef: usize) -> Result<Vec<usize>, Failure> {
        Ok(Hnsw::search(self, query, K, ef).iter().map(|near| near.d_id).collect())
    }
}

fn hnsw_rs(base: &Rows) -> Result<Box<dyn Graph + '_>, Failure> {
    let graph = Hnsw::new(M, base.rows().len(), 16, EF_CONSTRUCTION, DistDot {});
    let rows: Vec<(&[f32], usize)> = base.rows().enumerate().map(|(n, row)| (row, n)).collect();
    graph.parallel_insert_slice(&rows);
    Ok(Box::new(graph))
}

impl Graph for usearch::Index {
    fn search(&self, query: &[f32], ef: usize) -> Result<Vec<usize>, Failure> {
        self.change_expansion_search(ef);
        Ok(usearch::Index::search(self, query, K)?.keys.iter().map(|&key| key as usize).collect())
    }
}

fn usearch(base: &Rows, quantization: ScalarKind) -> Result<Box<dyn Graph>, Failure> {
    let index = usearch::Index::new(&IndexOptions {
        dimensions: base.dim,
        metric: MetricKind::IP,
        quantization,
        connectivity: M,
        expansion_add: EF_CONSTRUCTION,
        ..IndexOptions::default()
    })?;
    index.reserve_capacity_and_threads(base.rows().len(), rayon::current_num_threads())?;
    (0..base.rows().len()).into_par_iter().try_for_each(|n| index.add(n as u64, base.row(n)))?;
    Ok(Box::new(index))
}

/// A graph in LMDB, with the transaction that reads it.
struct Stored {
    reader: hannoy::Reader<'static, Cosine>,
    read: heed::RoTxn<'static, heed::WithTls>,
    _folder: tempfile::TempDir,
}

impl Graph for Stored {
    fn search(&self, query: &[f32], ef: usize) -> Result<Vec<usize>, Failure> {
        let found = self.reader.nns(K).ef_search(ef).by_vector(&self.read, query)?.into_nns();
        Ok(found.iter().map(|(id, _)| *id as usize).collect())
    }
}

fn hannoy(base: &Rows) -> Result<Box<dyn Graph>, Failure> {
    let folder = tempfile::tempdir()?;
    let mut options = heed::EnvOpenOptions::new();
    options.map_size(base.numbers.len() * 16 + (1 << 30));
    // SAFETY: nothing else opens the folder, which is new.
    let env: &'static heed::Env = Box::leak(Box::new(unsafe { options.open(folder.path()) }?));
    let made = env.create_databases_and_commit(env.write_txn()?, |opener, write| -> heed::Result<_> {
        opener.create_database(write, None).map(heed::CommitOrAbort::<_, ()>::Commit)
    })?;
    let database: hannoy::Database<'static, Cosine> = made.unwrap_commit();
    let mut write = env.write_txn()?;
    let writer = hannoy::Writer::new(database, 0, base.dim);
    for (n, row) in base.rows().enumerate() {
        writer.add_item(&mut write, n as u32, row)?;
    }
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    writer.builder(&mut random).ef_construction(EF_CONSTRUCTION).build::<M, { 2 * M }>(&mut write)?;
    write.commit()?;
    let read = env.read_txn()?;
    let reader = hannoy::Reader::open(&read, 0, database)?;
    Ok(Box::new(Stored { reader, read, _folder: folder }))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, base, queries, worst, threads] = arguments.as_slice() else {
        return Err("ENGINE BASE.npy QUERIES.npy WORST.npy THREADS".into());
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    let (base, queries, worst) = (Rows::read(base)?, Rows::read(queries)?, npy::floats(&fs::read(worst)?));
    let (before, began, cpu) = (resident(), Instant::now(), cpu_seconds());
    let graph = match engine.as_str() {
        "hnsw_rs" => hnsw_rs(&base)?,
        "usearch" => usearch(&base, ScalarKind::F32)?,
        "usearch_bf16" => usearch(&base, ScalarKind::BF16)?,
        "hannoy" => hannoy(&base)?,
        other => return Err(format!("no engine {other}").into()),
    };
    let (build, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let (items, mib) = (base.rows().len(), (resident() - before) as f64 / 1024.0);
    println!(
        "{}",
        json!({ "engine": engine, "items": items, "build_s": build, "build_cpu_s": cpu, "mib": mib })
    );
    for ef in LENGTHS {
        let began = Instant::now();
        let found: Vec<_> = queries.rows().map(|query| graph.search(query, ef)).collect::<Result<_, _>>()?;
        let qps = queries.rows().len() as f64 / began.elapsed().as_secs_f64();
        let near = |(query, (found, worst)): (&[f32], (&Vec<usize>, &f32))| {
            let score = |n: usize| base.row(n).iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
            found.iter().filter(|&&n| score(n) >= worst - 1e-6).count()
        };
        let hits: usize = queries.rows().zip(found.iter().zip(&worst)).map(near).sum();
        let recall = hits as f64 / (K * queries.rows().len()) as f64;
        println!("{}", json!({ "engine": engine, "ef": ef, "qps": qps, "recall": recall }));
    }
    Ok(())
}
