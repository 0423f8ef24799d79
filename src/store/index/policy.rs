//! Policy: whether a collection is scanned or walked.

use std::sync::OnceLock;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::kernels::{Level, QueryCodes};

/// How neighbours are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IndexChoice {
    /// By an exact scan while that takes one core less than about 10 ms, through a graph (HNSW) above.
    #[default]
    Auto,
    /// By an exact scan.
    Exact,
    /// Through a graph.
    Hnsw,
}

/// Milliseconds of one core beyond which a graph is worth its memory.
pub const SCAN_MS: f64 = 10.0;

impl IndexChoice {
    /// Whether so many items of `dim` numbers should have a graph; one that has a graph keeps it for longer.
    pub fn links(self, items: usize, dim: usize, level: Level, has_graph: bool) -> bool {
        match self {
            Self::Exact => false,
            Self::Hnsw => items > 0,
            Self::Auto => {
                let limit = if has_graph { SCAN_MS / 2.0 } else { SCAN_MS };
                // What no machine takes that long for needs no measuring.
                let bytes = items * dim.next_multiple_of(64);
                bytes > 8 << 20 && bytes as f64 * ms_per_byte(level) > limit
            }
        }
    }
}

/// Milliseconds in which one core scans a byte of codes, measured once.
pub fn ms_per_byte(level: Level) -> f64 {
    static SPEED: OnceLock<f64> = OnceLock::new();
    *SPEED.get_or_init(|| {
        const STRIDE: usize = 512;
        // More than caches that one core has to itself hold, as an index near the limit is.
        const ROWS: usize = 64 * 1024;
        let (codes, sums) = (vec![1i8; STRIDE * ROWS], vec![0; ROWS]);
        let (query, mut dots) = (QueryCodes::new(&[1; STRIDE]), vec![0; ROWS]);
        let mut scan = || {
            let began = Instant::now();
            level.dots_i8(&query, &codes, &sums, std::hint::black_box(&mut dots));
            began.elapsed().as_secs_f64() * 1e3 / codes.len() as f64
        };
        // Others may disturb one; the least is what the machine can do.
        (0..3).map(|_| scan()).fold(f64::INFINITY, f64::min)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_collections_are_scanned_and_large_ones_walked() {
        let level = Level::detect();
        assert!(!IndexChoice::Auto.links(10_000, 512, level, true));
        assert!(IndexChoice::Auto.links(50_000_000, 512, level, false));
        assert!(IndexChoice::Hnsw.links(1, 512, level, false));
        assert!(!IndexChoice::Exact.links(usize::MAX, 512, level, true));
    }
}
