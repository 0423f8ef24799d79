//! The embedding cache: the vectors of picture files seen lately, by the files' hash and the encoder's contract.

use std::mem::size_of;

use latentd_model::{Contract, Embedding};
use metrics::{Counter, Gauge};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::store::ContentHash;
use crate::telemetry::Metrics;

/// What a vector is found by. Another encoder has another contract, so its vectors are never mistaken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// SHA-256 of the picture file.
    pub content: ContentHash,
    /// Of the encoder.
    pub contract: Contract,
}

/// Vectors within a bound on their memory; those asked for least lately and least often go first.
pub struct EmbeddingCache {
    vectors: Cache<CacheKey, Embedding, Memory>,
    hits: Counter,
    misses: Counter,
    bytes: Gauge,
    entries: Gauge,
}

/// What an entry takes besides its numbers: key, pointers, table and list.
const OVERHEAD: usize = 2 * size_of::<CacheKey>() + 80;

#[derive(Clone)]
struct Memory;

impl Weighter<CacheKey, Embedding> for Memory {
    fn weight(&self, _: &CacheKey, vector: &Embedding) -> u64 {
        (OVERHEAD + size_of_val(vector.as_slice())) as u64
    }
}

impl EmbeddingCache {
    /// An empty cache of at most `mib` MiB; `None` for 0, which is no cache.
    #[must_use]
    pub fn new(mib: usize, metrics: &Metrics) -> Option<Self> {
        let capacity = (mib as u64) << 20;
        (mib > 0).then(|| Self {
            // The number of entries is a guess for the tables' first sizes.
            vectors: Cache::with_weighter(mib << 10, capacity, Memory),
            hits: metrics.counter("latentd_cache_hits_total", Vec::new()),
            misses: metrics.counter("latentd_cache_misses_total", Vec::new()),
            bytes: metrics.gauge("latentd_cache_bytes"),
            entries: metrics.gauge("latentd_cache_entries"),
        })
    }

    /// The vector of a file; counted as a hit where it is there.
    #[must_use]
    pub fn get(&self, key: &CacheKey) -> Option<Embedding> {
        let found = self.vectors.get(key);
        if found.is_some() {
            self.hit();
        }
        found
    }

    /// Counts a picture that was answered without a run of its own.
    pub fn hit(&self) {
        self.hits.increment(1);
    }

    /// Counts a picture that has to be run.
    pub fn miss(&self) {
        self.misses.increment(1);
    }

    /// Keeps a vector.
    pub fn insert(&self, key: CacheKey, vector: Embedding) {
        self.vectors.insert(key, vector);
        self.bytes.set(self.bytes() as f64);
        self.entries.set(self.vectors.len() as f64);
    }

    /// Memory in use, and at most in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.vectors.weight()
    }

    /// Vectors kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Most memory that is used.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.vectors.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_contracts_are_kept_apart() {
        let metrics = Metrics::new().unwrap();
        assert!(EmbeddingCache::new(0, &metrics).is_none());
        let cache = EmbeddingCache::new(1, &metrics).unwrap();
        let vector =
            |first: f32| Embedding::from_unnormalised([vec![first], vec![1.0; 255]].concat()).unwrap();
        let contracts = [Contract::from_bytes([1; 8]), Contract::from_bytes([2; 8])];
        let key = |n: u32, contract| CacheKey { content: ContentHash::of(&n.to_le_bytes()), contract };
        cache.insert(key(0, contracts[0]), vector(0.0));
        assert_eq!(cache.get(&key(0, contracts[0])), Some(vector(0.0)));
        assert_eq!(cache.get(&key(0, contracts[1])), None);
        assert_eq!(cache.get(&key(1, contracts[0])), None);
        for n in 0..5000 {
            cache.insert(key(n, contracts[1]), vector(n as f32));
            assert!(cache.bytes() <= 1 << 20, "{}", cache.bytes());
        }
        // About as many as fit, and not many fewer.
        assert!((600..1000).contains(&cache.len()), "{}", cache.len());
        let text = metrics.render();
        assert!(text.contains("latentd_cache_hits_total 1\n"), "{text}");
    }
}
