//! The gallery: pictures of a folder and the vectors that encoders give them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::artefact::Artefact;
use crate::decode::{DecodeLimits, decode};
use crate::encoder::{Encoder, EncoderError, GraphShape, SessionOptions};
use crate::pixels::Pixels;
use crate::preprocess::{LoadError, Preprocess};

/// Most pictures that are embedded at once.
pub const MAX_PICTURES: usize = 100_000;
/// Most bytes of vectors that are held at once, all encoders together.
pub const MAX_VECTOR_BYTES: usize = 2 << 30;
/// Pictures of one run.
const BATCH: usize = 16;

/// An encoder to embed a gallery with, opened once for each thread.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    preprocess: &'a Preprocess,
    shape: GraphShape,
    graph: Graph<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Graph<'a> {
    Artefact(&'a Artefact),
    Onnx(&'a [u8]),
}

impl<'a> From<&'a Artefact> for Subject<'a> {
    fn from(artefact: &'a Artefact) -> Self {
        let preprocess = &artefact.manifest().preprocess;
        let shape = GraphShape::of(artefact.manifest());
        Self { preprocess, shape, graph: Graph::Artefact(artefact) }
    }
}

impl<'a> Subject<'a> {
    /// A graph that is not written yet, with vectors of `dim` numbers.
    #[must_use]
    pub fn graph(onnx: &'a [u8], preprocess: &'a Preprocess, dim: usize) -> Self {
        let shape = GraphShape { height: preprocess.height, width: preprocess.width, dim };
        Self { preprocess, shape, graph: Graph::Onnx(onnx) }
    }

    /// A graph that is not written yet, of the preprocessing and shape of `artefact`.
    #[must_use]
    pub fn graph_like(onnx: &'a [u8], artefact: &'a Artefact) -> Self {
        Self { graph: Graph::Onnx(onnx), ..Self::from(artefact) }
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.shape.dim
    }

    fn open(&self) -> Result<Encoder, EncoderError> {
        let options = SessionOptions::default();
        match self.graph {
            Graph::Artefact(artefact) => Encoder::open(artefact, &options),
            Graph::Onnx(onnx) => Encoder::from_onnx(onnx, self.shape, &options),
        }
    }
}

/// Vectors of one encoder, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    dim: usize,
    data: Vec<f32>,
}

impl Vectors {
    /// Rows of `dim` numbers each; a rest that is no whole row is cut off.
    #[must_use]
    pub fn new(dim: usize, mut data: Vec<f32>) -> Self {
        data.truncate(data.len() / dim.max(1) * dim.max(1));
        Self { dim: dim.max(1), data }
    }

    /// Numbers of a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.data.len() / self.dim
    }

    /// All numbers, row-major.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// Keeps only these rows; `kept` ascends.
    fn keep(&mut self, kept: &[usize]) {
        for (to, &from) in kept.iter().enumerate() {
            self.data.copy_within(from * self.dim..(from + 1) * self.dim, to * self.dim);
        }
        self.data.truncate(kept.len() * self.dim);
    }
}

/// What became of the pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Gallery {
    /// One for each encoder, in order; row `i` belongs to `pictures[i]`.
    pub vectors: Vec<Vectors>,
    /// The pictures that were embedded.
    pub pictures: Vec<PathBuf>,
    /// The pictures that could not be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
    /// How many pictures there were to choose from.
    pub offered: usize,
}

/// Why a gallery could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum GalleryError {
    /// An encoder could not be opened or failed on pictures.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// A preprocessing refused a picture.
    #[error("{path}: {reason}")]
    Preprocess {
        /// The picture.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A thread panicked.
    #[error("a thread that embeds pictures panicked")]
    Panicked,
}

/// `count` of `all`, evenly spaced, the first among them; all when there are no more than that.
#[must_use]
pub fn evenly_spaced<T: Clone>(all: &[T], count: usize) -> Vec<T> {
    let count = count.min(all.len());
    let place = |i: usize| (i as u128 * all.len() as u128 / count as u128) as usize;
    (0..count).map(|i| all[place(i)].clone()).collect()
}

/// Embeds pictures with every one of `subjects`, on all cores. Each picture is read and decoded once.
///
/// Of more than [`MAX_PICTURES`], or as many as give [`MAX_VECTOR_BYTES`] of vectors, an evenly spaced
/// sample is taken. `progress` is told how many pictures are done. A picture that cannot be read or
/// decoded is set aside.
///
/// # Errors
/// When an encoder cannot be opened or fails.
pub fn embed_pictures(
    subjects: &[Subject<'_>],
    pictures: &[PathBuf],
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Gallery, GalleryError> {
    let row_bytes = 4 * subjects.iter().map(Subject::dim).sum::<usize>().max(1);
    let offered = pictures.len();
    let pictures = evenly_spaced(pictures, MAX_PICTURES.min(MAX_VECTOR_BYTES / row_bytes));
    let work = Work {
        subjects,
        pictures: &pictures,
        next: AtomicUsize::new(0),
        done: Mutex::new(Done {
            vectors: subjects
                .iter()
                .map(|s| Vectors::new(s.dim(), vec![0.0; s.dim() * pictures.len()]))
                .collect(),
            kept: Vec::new(),
            unreadable: Vec::new(),
        }),
        progress,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(pictures.len().div_ceil(BATCH)).max(1);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
        let outcomes = running.into_iter().map(|thread| thread.join().unwrap_or(Err(GalleryError::Panicked)));
        outcomes.collect::<Vec<_>>().into_iter().collect::<Result<(), _>>()
    })?;
    let Done { mut vectors, mut kept, mut unreadable } =
        work.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    kept.sort_unstable();
    unreadable.sort();
    vectors.iter_mut().for_each(|vectors| vectors.keep(&kept));
    let chosen = |index: usize| pictures[index].clone();
    Ok(Gallery {
        vectors,
        pictures: kept.into_iter().map(chosen).collect(),
        unreadable: unreadable.into_iter().map(|(index, why)| (chosen(index), why)).collect(),
        offered,
    })
}

/// What the threads share.
struct Work<'a> {
    subjects: &'a [Subject<'a>],
    pictures: &'a [PathBuf],
    /// The first picture that no thread has taken.
    next: AtomicUsize,
    done: Mutex<Done>,
    progress: &'a (dyn Fn(usize) + Sync),
}

struct Done {
    vectors: Vec<Vectors>,
    kept: Vec<usize>,
    unreadable: Vec<(usize, String)>,
}

impl Work<'_> {
    fn run(&self) -> Result<(), GalleryError> {
        let mut encoders = self.subjects.iter().map(Subject::open).collect::<Result<Vec<_>, _>>()?;
        loop {
            let first = self.next.fetch_add(BATCH, Ordering::Relaxed);
            if first >= self.pictures.len() {
                return Ok(());
            }
            let outcome = self.batch(first, &mut encoders);
            if outcome.is_err() {
                // The others need not finish what will not be used.
                self.next.store(self.pictures.len(), Ordering::Relaxed);
            }
            outcome?;
        }
    }

    /// What each encoder sees of a picture file.
    fn load(&self, file: &[u8]) -> Result<Vec<Pixels>, LoadError> {
        let limits = DecodeLimits::default();
        self.subjects.iter().map(|subject| subject.preprocess.load(file, &limits)).collect()
    }

    fn batch(&self, first: usize, encoders: &mut [Encoder]) -> Result<(), GalleryError> {
        let taken = &self.pictures[first..self.pictures.len().min(first + BATCH)];
        let mut kept = Vec::with_capacity(BATCH);
        let mut unreadable = Vec::new();
        let mut seen: Vec<Vec<Pixels>> = vec![Vec::with_capacity(BATCH); self.subjects.len()];
        for (index, path) in (first..).zip(taken) {
            let loaded = read_file(path).map(|bytes| self.load(&bytes));
            match loaded {
                Ok(Ok(pixels)) => {
                    seen.iter_mut().zip(pixels).for_each(|(seen, pixels)| seen.push(pixels));
                    kept.push(index);
                }
                Ok(Err(LoadError::Decode(error))) => unreadable.push((index, error.to_string())),
                Err(reason) => unreadable.push((index, reason)),
                Ok(Err(LoadError::Preprocess(error))) => {
                    let (path, reason) = (path.clone(), error.to_string());
                    return Err(GalleryError::Preprocess { path, reason });
                }
            }
        }
        let mut found = Vec::with_capacity(encoders.len());
        for (encoder, seen) in encoders.iter_mut().zip(&seen) {
            found.push(encoder.embed(seen)?);
        }
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        for (vectors, found) in done.vectors.iter_mut().zip(found) {
            for (&index, embedding) in kept.iter().zip(found) {
                let dim = vectors.dim;
                vectors.data[index * dim..(index + 1) * dim].copy_from_slice(embedding.as_slice());
            }
        }
        done.kept.extend(kept);
        done.unreadable.extend(unreadable);
        let count = done.kept.len() + done.unreadable.len();
        drop(done);
        (self.progress)(count);
        Ok(())
    }
}

/// Reads and decodes a picture file within [`DecodeLimits::default`], whole.
///
/// # Errors
/// Why it gives no pixels, for a person.
pub fn read_picture(path: &Path) -> Result<Pixels, String> {
    decode(&read_file(path)?, &DecodeLimits::default()).map_err(|e| e.to_string())
}

/// Reads a picture file within [`DecodeLimits::default`] and makes of it what an encoder sees.
///
/// # Errors
/// Why it gives no pixels, for a person.
pub(crate) fn load_picture(path: &Path, preprocess: &Preprocess) -> Result<Pixels, String> {
    preprocess.load(&read_file(path)?, &DecodeLimits::default()).map_err(|e| e.to_string())
}

/// The bytes of a file, of one that is too large only as many as show it.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let most = DecodeLimits::default().max_bytes as u64 + 1;
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(|e| e.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_evenly() {
        let all: Vec<_> = (0..10).collect();
        assert_eq!(evenly_spaced(&all, 4), [0, 2, 5, 7]);
        assert_eq!(evenly_spaced(&all, 99), all);
        assert!(evenly_spaced(&all, 0).is_empty());
        assert!(evenly_spaced::<u8>(&[], 4).is_empty());
    }

    #[test]
    fn rows_are_kept_in_order() {
        let mut vectors = Vectors::new(2, vec![0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 9.0]);
        assert_eq!((vectors.rows(), vectors.dim()), (3, 2));
        vectors.keep(&[0, 2]);
        assert_eq!(vectors.as_slice(), [0.0, 0.5, 2.0, 2.5]);
    }
}
