//! Every picture of a scan, decoded once and shrunk, in memory or, above a budget, in a file mapped into memory.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fast_image_resize as fir;
use latentd_model::{DecodeLimits, Pixels};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::picture::PictureRef;
use super::read::{Decoded, load};
use super::scan::{Scan, Skipped, hex, portable_name};
use super::store::{Entry, Segment, Store};

/// Pictures that are decoded before their pixels are stored, in order.
const CHUNK: usize = 256;

/// How a cache is built.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Threads that decode; 0 takes what the machine offers.
    pub threads: usize,
    /// Bytes of pixels kept in memory; the rest goes to a file.
    pub memory_budget_bytes: u64,
    /// Folder of that file, which has no name and goes when the cache goes; the system's temporary one if `None`.
    pub spill_dir: Option<PathBuf>,
    /// What a file may hold; larger ones are skipped.
    pub limits: DecodeLimits,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { threads: 0, memory_budget_bytes: 4 << 30, spill_dir: None, limits: DecodeLimits::default() }
    }
}

/// How far a build has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildProgress {
    /// Files dealt with, skipped ones among them.
    pub done: usize,
    /// Files in all.
    pub total: usize,
    /// Files that could not be decoded.
    pub skipped: usize,
    /// Bytes of pixels so far.
    pub bytes: u64,
}

/// Decoded pictures by index.
#[derive(Debug)]
pub struct PictureCache {
    root: PathBuf,
    entries: Vec<Entry>,
    segments: Vec<Segment>,
    fingerprint: String,
    spilled_bytes: u64,
}

impl PictureCache {
    /// Decodes every picture of `scan`; those whose shorter side exceeds `shortest_edge` are shrunk to it, keeping
    /// their shape (bicubic, antialiased). Unreadable files come back as skipped, in the scan's order.
    ///
    /// `progress` is called after every few hundred files and stops the build with [`ControlFlow::Break`].
    ///
    /// # Errors
    /// When no picture can be read, the spill file cannot be written, or `progress` asked to stop.
    pub fn build(
        scan: &Scan,
        shortest_edge: u32,
        options: &BuildOptions,
        progress: &mut dyn FnMut(BuildProgress) -> ControlFlow<()>,
    ) -> Result<(Self, Vec<Skipped>), DataError> {
        let pool = pool(options.threads)?;
        let spill_dir = options.spill_dir.clone().unwrap_or_else(std::env::temp_dir);
        let mut store = Store::new(options.memory_budget_bytes, spill_dir);
        let mut skipped = Vec::new();
        let mut hash = Sha256::new();
        let mut done = 0;
        for chunk in scan.pictures.chunks(CHUNK) {
            let decoded: Vec<Result<Decoded, String>> = pool.install(|| {
                chunk
                    .par_iter()
                    .map_init(fir::Resizer::new, |resizer, path| {
                        load(&scan.root.join(path), shortest_edge, &options.limits, resizer)
                    })
                    .collect()
            });
            for (path, outcome) in chunk.iter().zip(decoded) {
                match outcome {
                    Ok(Decoded { pixels, digest }) => {
                        hash.update(portable_name(path).as_bytes());
                        hash.update([0]);
                        hash.update(digest);
                        store.push(path.clone(), pixels)?;
                    }
                    Err(reason) => skipped.push(Skipped { path: path.clone(), reason }),
                }
            }
            done += chunk.len();
            let so_far = BuildProgress {
                done,
                total: scan.pictures.len(),
                skipped: skipped.len(),
                bytes: store.total_bytes,
            };
            if progress(so_far).is_break() {
                return Err(DataError::Cancelled);
            }
        }
        if store.entries.is_empty() {
            return Err(DataError::NoPictures {
                root: scan.root.clone(),
                skipped: scan.skipped.len() + skipped.len(),
            });
        }
        let cache = Self::from_store(store, scan.root.clone(), hex(&hash.finalize()))?;
        Ok((cache, skipped))
    }

    /// A cache of pictures that are in memory already: for benchmarks and tests.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_pictures(pictures: impl IntoIterator<Item = Pixels>) -> Result<Self, DataError> {
        let mut store = Store::new(u64::MAX, std::env::temp_dir());
        let mut hash = Sha256::new();
        for (i, pixels) in pictures.into_iter().enumerate() {
            hash.update(pixels.as_bytes());
            store.push(PathBuf::from(format!("{i}")), pixels)?;
        }
        if store.entries.is_empty() {
            return Err(DataError::NoPictures { root: PathBuf::new(), skipped: 0 });
        }
        Self::from_store(store, PathBuf::new(), hex(&hash.finalize()))
    }

    fn from_store(store: Store, root: PathBuf, fingerprint: String) -> Result<Self, DataError> {
        let (entries, segments, spilled_bytes) = store.finish()?;
        Ok(Self { root, entries, segments, fingerprint, spilled_bytes })
    }

    /// Number of pictures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never true: a cache without pictures is not built.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Picture `index`.
    ///
    /// # Panics
    /// When `index` is not below [`len`](Self::len), as a slice would.
    #[must_use]
    pub fn get(&self, index: usize) -> PictureRef<'_> {
        let entry = &self.entries[index];
        let end = entry.offset + entry.height * entry.width * 3;
        let rgb = &self.segments[entry.segment].bytes()[entry.offset..end];
        PictureRef { height: entry.height, width: entry.width, rgb }
    }

    /// Path of picture `index`, relative to [`root`](Self::root); `None` beyond the end.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<&Path> {
        self.entries.get(index).map(|e| e.path.as_path())
    }

    /// The folder the pictures came from.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// SHA-256 over the sorted relative names and the SHA-256 of each file that was decoded, hex.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Bytes of pixels that lie in the spill file.
    #[must_use]
    pub fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes
    }

    /// Mean and standard deviation of each channel over at most `limit` evenly spaced pictures, as fractions of 255.
    /// Every picture counts alike, whatever its size.
    #[must_use]
    pub fn channel_statistics(&self, limit: usize) -> ([f32; 3], [f32; 3]) {
        let step = self.len().div_ceil(limit.max(1)).max(1);
        let sums: Vec<[f64; 6]> =
            (0..self.len()).into_par_iter().step_by(step).map(|i| moments(self.get(i).rgb)).collect();
        let mut total = [0.0f64; 6];
        for picture in &sums {
            for (t, p) in total.iter_mut().zip(picture) {
                *t += p / sums.len() as f64;
            }
        }
        let mean = std::array::from_fn(|c| total[c] as f32);
        let std = std::array::from_fn(|c| (total[c + 3] - total[c] * total[c]).max(1e-6).sqrt() as f32);
        (mean, std)
    }
}

/// Means of the three channels and of their squares.
fn moments(rgb: &[u8]) -> [f64; 6] {
    let mut sums = [0u64; 6];
    let (pixels, _) = rgb.as_chunks::<3>();
    for pixel in pixels {
        for c in 0..3 {
            let v = u64::from(pixel[c]);
            sums[c] += v;
            sums[c + 3] += v * v;
        }
    }
    let n = pixels.len().max(1) as f64;
    std::array::from_fn(|i| sums[i] as f64 / n / if i < 3 { 255.0 } else { 65_025.0 })
}

/// A thread pool of its own, so that decoding never waits for other users of rayon.
pub(super) fn pool(threads: usize) -> Result<rayon::ThreadPool, DataError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("pictures-{i}"))
        .build()
        .map_err(|e| DataError::Worker(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::scan;

    /// A PNG of one colour per column, so that any mix-up shows.
    fn write_png(dir: &Path, name: &str, height: u32, width: u32, tone: u8) {
        let image = image::RgbImage::from_fn(width, height, |x, _| image::Rgb([tone, (x * 3) as u8, 7]));
        image.save(dir.join(name)).unwrap();
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_png(dir.path(), "a.png", 8, 12, 10);
        write_png(dir.path(), "b.png", 40, 80, 20);
        std::fs::write(dir.path().join("c.jpg"), b"not a picture at all").unwrap();
        write_png(dir.path(), "d.png", 16, 16, 30);
        dir
    }

    fn build(dir: &Path, options: &BuildOptions) -> (PictureCache, Vec<Skipped>, Vec<BuildProgress>) {
        let mut seen = Vec::new();
        let (cache, skipped) = PictureCache::build(&scan(dir).unwrap(), 16, options, &mut |p| {
            seen.push(p);
            ControlFlow::Continue(())
        })
        .unwrap();
        (cache, skipped, seen)
    }

    #[test]
    fn decodes_shrinks_and_skips_with_a_reason() {
        let dir = folder();
        let (cache, skipped, progress) = build(dir.path(), &BuildOptions::default());
        assert_eq!(cache.len(), 3);
        let sizes: Vec<_> = (0..3).map(|i| (cache.get(i).height, cache.get(i).width)).collect();
        assert_eq!(sizes, [(8, 12), (16, 32), (16, 16)]);
        assert_eq!([0, 1, 2].map(|i| cache.get(i).rgb[0]), [10, 20, 30]);
        assert_eq!(cache.get(0).rgb[3 * 11 + 1], 33);
        assert_eq!(cache.path(1), Some(Path::new("b.png")));
        assert_eq!(cache.path(3), None);
        assert_eq!(skipped.len(), 1);
        assert_eq!(skipped[0].path, Path::new("c.jpg"));
        assert!(!skipped[0].reason.is_empty());
        assert_eq!(progress.last().map(|p| (p.done, p.total, p.skipped)), Some((4, 4, 1)));
    }

    #[test]
    fn above_the_budget_pictures_lie_in_a_file_and_read_the_same() {
        let dir = folder();
        let (memory, ..) = build(dir.path(), &BuildOptions::default());
        for budget in [0, 300, 2_000] {
            let options = BuildOptions { memory_budget_bytes: budget, threads: 1, ..BuildOptions::default() };
            let (spilled, ..) = build(dir.path(), &options);
            assert!(spilled.spilled_bytes() > 0);
            for i in 0..3 {
                assert_eq!(memory.get(i), spilled.get(i));
            }
            assert_eq!(memory.fingerprint(), spilled.fingerprint());
        }
    }

    #[test]
    fn fingerprint_follows_the_contents() {
        let dir = folder();
        let before = build(dir.path(), &BuildOptions::default()).0;
        write_png(dir.path(), "d.png", 16, 16, 31);
        assert_ne!(before.fingerprint(), build(dir.path(), &BuildOptions::default()).0.fingerprint());
    }

    #[test]
    fn stops_on_request_and_refuses_a_folder_of_broken_files() {
        let dir = folder();
        let scan_all = scan(dir.path()).unwrap();
        let stopped =
            PictureCache::build(&scan_all, 16, &BuildOptions::default(), &mut |_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(DataError::Cancelled)));
        let broken = tempfile::tempdir().unwrap();
        std::fs::write(broken.path().join("x.jpg"), b"no").unwrap();
        let result =
            PictureCache::build(&scan(broken.path()).unwrap(), 16, &BuildOptions::default(), &mut |_| {
                ControlFlow::Continue(())
            });
        assert!(matches!(result, Err(DataError::NoPictures { skipped: 1, .. })));
    }

    #[test]
    fn channel_statistics_of_known_pictures() {
        let half = |a: u8, b: u8| Pixels::new(1, 2, vec![a, a, a, b, b, b]).unwrap();
        let cache = PictureCache::from_pictures([half(0, 255), half(255, 0)]).unwrap();
        let (mean, std) = cache.channel_statistics(100);
        for c in 0..3 {
            assert!((mean[c] - 0.5).abs() < 1e-6 && (std[c] - 0.5).abs() < 1e-6);
        }
    }
}
