//! Tests of the index at each precision of the vectors in memory.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use super::graph_tests::clustered;
use super::tests::{exact, id, query};
use super::*;
use crate::store::Filter;
use latentd_model::Embedding;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Items as a database has them.
#[derive(Default)]
struct Items(Mutex<BTreeMap<ItemId, (Vec<f32>, Metadata)>>);

impl Source for Items {
    fn read(&self, ids: &[ItemId], each: &mut dyn FnMut(usize, Stored<'_>)) {
        let items = self.0.lock();
        for (place, id) in ids.iter().enumerate() {
            if let Some((vector, metadata)) = items.get(id) {
                each(place, Stored { metadata: metadata.as_str(), vector });
            }
        }
    }

    fn scan(&self, each: &mut dyn FnMut(&ItemId, &[f32])) {
        self.0.lock().iter().for_each(|(id, (vector, _))| each(id, vector));
    }
}

/// An index and the database beside it.
struct Both {
    index: CollectionIndex,
    items: Arc<Items>,
}

impl Both {
    fn new(dim: usize, vectors: Vectors, choice: IndexChoice) -> Self {
        let items = Arc::new(Items::default());
        let options = IndexOptions { choice, vectors, ..IndexOptions::default() };
        let index = CollectionIndex::with_options(dim, options).with_source(items.clone());
        Self { index, items }
    }

    fn put(&self, n: usize, vector: &Embedding) {
        let metadata = Metadata::from_json(&format!(r#"{{"h":{}}}"#, n % 100)).unwrap();
        self.items.0.lock().insert(id(n), (vector.as_slice().to_vec(), metadata.clone()));
        self.index.put(&id(n), n as u64 + 1, vector.as_slice(), &metadata);
    }

    fn remove(&self, n: usize) {
        self.items.0.lock().remove(&id(n));
        self.index.remove(&id(n));
    }

    fn tend(&self) {
        let go_on = AtomicBool::new(false);
        while self.index.tend(&go_on) {}
    }

    /// Share of the exact neighbours that searches find; scores are held against the vectors.
    fn recall(&self, vectors: &[Embedding], queries: impl Iterator<Item = usize>, tolerance: f32) -> f64 {
        let (mut hits, mut all) = (0, 0);
        for n in queries {
            let found = self.index.search(&query(&vectors[n], 10));
            let expected = exact(vectors, &vectors[n], 10);
            assert_eq!(found.len(), expected.len());
            let items = self.items.0.lock();
            for near in &found {
                let own: f32 = items[&near.id].0.iter().zip(vectors[n].as_slice()).map(|(a, b)| a * b).sum();
                assert!((near.score - own).abs() < tolerance, "{} {own}", near.score);
                hits += usize::from(own >= expected[9].1 - 1e-5);
            }
            all += 10;
        }
        hits as f64 / f64::from(all)
    }
}

const ALL: [(Vectors, f32); 3] = [(Vectors::F32, 1e-5), (Vectors::F16, 1e-3), (Vectors::Int8, 1e-5)];

#[test]
fn each_precision_finds_what_is_near_and_takes_less_memory() {
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    let vectors = clustered(&mut rng, 6000, 96, 40);
    let mut bytes = Vec::new();
    for (precision, tolerance) in ALL {
        for choice in [IndexChoice::Exact, IndexChoice::Hnsw] {
            let both = Both::new(96, precision, choice);
            vectors.iter().enumerate().for_each(|(n, vector)| both.put(n, vector));
            // Before, while and after it is linked.
            assert!(both.recall(&vectors, (0..6000).step_by(601), tolerance) >= 0.97, "{precision:?}");
            let go_on = AtomicBool::new(false);
            for _ in 0..4 {
                both.index.tend(&go_on);
            }
            assert!(both.recall(&vectors, (0..6000).step_by(601), tolerance) >= 0.97, "{precision:?}");
            both.tend();
            let recall = both.recall(&vectors, (0..6000).step_by(101), tolerance);
            assert!(recall >= 0.98, "{precision:?} {choice:?}: {recall}");
            let measured = both.index.measure_recall(10, 50).unwrap();
            assert!(
                measured.recall >= 0.98 && measured.recall <= 1.0,
                "{precision:?} {choice:?}: {measured:?}"
            );
            bytes.push(both.index.bytes());
            // Filters, thresholds and vectors are exact too.
            let mut asked = query(&vectors[7], 20);
            asked.filter = Some(Filter::from_json(r#"{"h":7}"#).unwrap());
            (asked.with_vectors, asked.min_score) = (true, Some(-0.5));
            let found = both.index.search(&asked);
            assert!(found.len() == 20 && found[0].id == id(7), "{precision:?} {choice:?}");
            for near in &found {
                let n: usize = near.id.as_str()[5..].parse().unwrap();
                assert_eq!((n % 100, near.vector.as_ref().unwrap()), (7, &vectors[n]), "{precision:?}");
            }
            let least = found[9].score;
            asked.min_score = Some(least);
            assert!(both.index.search(&asked).iter().all(|near| near.score >= least));
        }
    }
    // Exact and walked of each, the smaller precision last.
    assert!(bytes[0] > bytes[2] && bytes[2] > bytes[4] + 6000 * 96, "{bytes:?}");
    assert!(bytes[1] > bytes[3] && bytes[3] > bytes[5] + 6000 * 96, "{bytes:?}");
}

#[test]
fn what_comes_and_goes_stays_right_at_each_precision() {
    for (precision, tolerance) in ALL {
        let mut rng = ChaCha8Rng::seed_from_u64(22);
        let mut vectors = clustered(&mut rng, 5000, 48, 20);
        let both = Both::new(48, precision, IndexChoice::Hnsw);
        vectors.iter().enumerate().for_each(|(n, vector)| both.put(n, vector));
        both.tend();
        for round in 0..4 {
            for n in (round % 3..5000).step_by(3) {
                vectors[n] = vectors[(n + 1237) % 5000].clone();
                both.put(n, &vectors[n]);
            }
            if round % 2 == 0 {
                both.tend();
            }
            let recall = both.recall(&vectors, (0..5000).step_by(101), tolerance);
            assert!(recall >= 0.97, "{precision:?} round {round}: {recall}");
        }
        // So few are left that the graph is given up and begun anew.
        (0..4500).for_each(|n| both.remove(n));
        both.tend();
        let left = vectors[4500..].to_vec();
        assert!(both.recall(&left, (0..500).step_by(50), tolerance) >= 0.97, "{precision:?}");
        assert_eq!(both.index.search(&query(&left[0], 1000)).len(), 500);
        (0..3000).for_each(|n| both.put(n, &vectors[n]));
        both.tend();
        let now: Vec<Embedding> = vectors[..3000].iter().chain(&left).cloned().collect();
        assert!(both.recall(&now, (0..3500).step_by(50), tolerance) >= 0.97, "{precision:?}");
    }
}

#[test]
fn scans_of_codes_are_packed_from_the_database() {
    let mut rng = ChaCha8Rng::seed_from_u64(23);
    let vectors = clustered(&mut rng, 6000, 32, 30);
    for (precision, tolerance) in ALL {
        let both = Both::new(32, precision, IndexChoice::Exact);
        for round in 0..3 {
            vectors.iter().enumerate().for_each(|(n, vector)| both.put(n, vector));
            (0..5800).for_each(|n| both.remove(n));
            let recall = both.recall(&vectors[5800..], (0..200).step_by(9), tolerance);
            assert!(recall >= 0.99, "{precision:?} round {round}: {recall}");
        }
    }
}

#[test]
fn a_state_is_told_whole() {
    let both = Both::new(3, Vectors::Int8, IndexChoice::Exact);
    let vector = |v: f32| Embedding::from_unnormalised(vec![v, 1.0, 0.0]).unwrap();
    (0..2000).for_each(|n| both.put(n, &vector(n as f32)));
    // The database has a later state already, which searches are not shown yet.
    let later = Metadata::from_json(r#"{"later":1}"#).unwrap();
    both.items.0.lock().insert(id(0), (vec![0.0, 0.0, 1.0], later));
    both.items.0.lock().remove(&id(1));
    let found = both.index.search(&query(&vector(0.0), 2));
    assert_eq!((&found[0].id, found[0].metadata.as_str()), (&id(0), r#"{"h":0}"#));
    assert!(found[0].score > 0.98 && found[1].id == id(1) && found[1].score > 0.6, "{found:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn behaves_as_a_map(steps in prop::collection::vec((0usize..30, 0i32..8, 0u8..8), 0..150), walked: bool) {
        let vector = |v: i32| Embedding::from_unnormalised(vec![v as f32 - 3.5, 1.0, (v * v) as f32]).unwrap();
        let choice = if walked { IndexChoice::Hnsw } else { IndexChoice::Exact };
        for (precision, tolerance) in ALL {
            let both = Both::new(3, precision, choice);
            let mut model = std::collections::HashMap::new();
            for &(n, v, kind) in &steps {
                match kind {
                    0..4 => {
                        both.put(n, &vector(v));
                        model.insert(id(n), vector(v));
                    }
                    4 | 5 => {
                        both.remove(n);
                        model.remove(&id(n));
                    }
                    6 => both.tend(),
                    _ => {
                        let k = n % 12 + 1;
                        let mut scores: Vec<f32> = model.values().map(|kept| kept.cosine(&vector(v))).collect();
                        scores.sort_by(|a, b| b.total_cmp(a));
                        scores.truncate(k);
                        let found = both.index.search(&query(&vector(v), k));
                        prop_assert_eq!(found.len(), scores.len());
                        for (found, expected) in found.iter().zip(&scores) {
                            prop_assert!((found.score - expected).abs() < tolerance, "{:?}", precision);
                            let own = model[&found.id].cosine(&vector(v));
                            prop_assert!((own - found.score).abs() < tolerance, "{:?}", precision);
                        }
                    }
                }
                prop_assert_eq!(both.index.len(), model.len());
            }
        }
    }
}
