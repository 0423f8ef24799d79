//! Tests of the index against a scan that anyone can read.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::*;
use latentd_model::{Contract, Embedding};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::store::Filter;

pub fn id(n: usize) -> ItemId {
    ItemId::new(&format!("item {n}")).unwrap()
}

pub fn query(vector: &Embedding, k: usize) -> Query {
    Query {
        vector: vector.clone(),
        contract: Contract::from_bytes([0; 8]),
        k,
        filter: None,
        exclude: Vec::new(),
        min_score: None,
        with_vectors: false,
    }
}

pub fn random(rng: &mut ChaCha8Rng, dim: usize, around: Option<&[f32]>, spread: f32) -> Embedding {
    let value = |i: usize, rng: &mut ChaCha8Rng| {
        // A sum of uniforms is near enough to a Gaussian.
        let noise: f32 = (0..4).map(|_| rng.random_range(-1f32..1.0)).sum();
        around.map_or(0.0, |around| around[i]) + noise * spread
    };
    Embedding::from_unnormalised((0..dim).map(|i| value(i, rng)).collect()).unwrap()
}

pub fn exact(vectors: &[Embedding], query: &Embedding, k: usize) -> Vec<(usize, f32)> {
    let mut scores: Vec<(usize, f32)> = vectors.iter().map(|v| v.cosine(query)).enumerate().collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores.truncate(k);
    scores
}

/// Share of the exact neighbours' scores that were found; equal scores count as found.
pub fn recall(index: &CollectionIndex, vectors: &[Embedding], query_vector: &Embedding, k: usize) -> f64 {
    let found = index.search(&query(query_vector, k));
    let expected = exact(vectors, query_vector, k);
    assert_eq!(found.len(), expected.len());
    let worst = expected.last().unwrap().1 - 1e-5;
    found.iter().filter(|neighbour| neighbour.score >= worst).count() as f64 / k as f64
}

#[test]
fn recall_is_whole_on_random_and_clustered_vectors() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (dim, spread) in [(512, None), (512, Some(0.3)), (100, Some(0.02)), (33, Some(0.001))] {
        let centres: Vec<Embedding> = (0..20).map(|_| random(&mut rng, dim, None, 1.0)).collect();
        let one = |i: usize, rng: &mut ChaCha8Rng| match spread {
            None => random(rng, dim, None, 1.0),
            Some(spread) => random(rng, dim, Some(centres[i % 20].as_slice()), spread / (dim as f32).sqrt()),
        };
        let vectors: Vec<Embedding> = (0..5000).map(|i| one(i, &mut rng)).collect();
        for level in Level::available() {
            for precision in [Precision::Quantised, Precision::Float] {
                let index = CollectionIndex::new(dim, precision, level);
                vectors
                    .iter()
                    .enumerate()
                    .for_each(|(n, v)| index.put(&id(n), 0, v.as_slice(), &Metadata::default()));
                for i in 0..5 {
                    let wanted = one(i, &mut rng);
                    for k in [1, 10, 100, 1000] {
                        let recall = recall(&index, &vectors, &wanted, k);
                        assert!(recall == 1.0, "{dim} {spread:?} {level:?} {precision:?} k={k}: {recall}");
                    }
                }
            }
        }
    }
}

#[test]
fn deletions_leave_bounded_garbage() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let vectors: Vec<Embedding> = (0..5000).map(|_| random(&mut rng, 16, None, 1.0)).collect();
    let index = CollectionIndex::new(16, Precision::Quantised, Level::detect());
    vectors.iter().enumerate().for_each(|(n, v)| index.put(&id(n), 0, v.as_slice(), &Metadata::default()));
    let before = index.bytes();
    (0..4900).for_each(|n| index.remove(&id(n)));
    assert_eq!(index.len(), 100);
    assert!(index.bytes() < before / 2);
    let found = index.search(&query(&vectors[4950], 1000));
    assert_eq!((found.len(), &found[0].id), (100, &id(4950)));
    // Rows that were emptied are taken again.
    (0..500).for_each(|n| index.put(&id(n), 0, vectors[n].as_slice(), &Metadata::default()));
    assert_eq!(index.search(&query(&vectors[3], 1))[0].id, id(3));
    assert_eq!(index.len(), 600);
}

#[test]
fn filters_are_exact_at_any_selectivity() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let vectors: Vec<Embedding> = (0..3000).map(|_| random(&mut rng, 24, None, 1.0)).collect();
    let index = CollectionIndex::new(24, Precision::Quantised, Level::detect());
    for (n, v) in vectors.iter().enumerate() {
        index.put(&id(n), 0, v.as_slice(), &Metadata::from_json(&format!("{{\"n\":{n}}}")).unwrap());
    }
    for upto in [0, 1, 3, 30, 300, 3000] {
        let mut query = query(&vectors[77], 10);
        query.filter = Some(Filter::from_json(&format!("{{\"n\":{{\"$lt\":{upto}}}}}")).unwrap());
        let found: Vec<ItemId> = index.search(&query).into_iter().map(|neighbour| neighbour.id).collect();
        let expected: Vec<ItemId> =
            exact(&vectors[..upto], &vectors[77], 10).iter().map(|(n, _)| id(*n)).collect();
        assert_eq!(found, expected, "{upto}");
    }
    let mut query = query(&vectors[77], 3);
    query.exclude = vec![id(77)];
    query.min_score = Some(0.2);
    let found = index.search(&query);
    assert!(found.iter().all(|neighbour| neighbour.id != id(77) && neighbour.score >= 0.2));
}

#[test]
fn a_search_that_nobody_waits_for_breaks_off() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let vectors: Vec<Embedding> = (0..8 * SEGMENT_ROWS).map(|_| random(&mut rng, 8, None, 1.0)).collect();
    for precision in [Precision::Quantised, Precision::Float] {
        let index = CollectionIndex::new(8, precision, Level::detect());
        for (n, v) in vectors.iter().enumerate() {
            index.put(&id(n), 0, v.as_slice(), &Metadata::from_json(&format!("{{\"n\":{n}}}")).unwrap());
        }
        let mut query = query(&vectors[77], 10);
        query.filter = Some(Filter::from_json("{\"n\":{\"$gte\":50}}").unwrap());
        let asked = AtomicUsize::new(0);
        let after = |most: usize| {
            asked.store(0, Ordering::Relaxed);
            index.search_until(&query, &|| asked.fetch_add(1, Ordering::Relaxed) >= most)
        };
        assert_eq!(after(usize::MAX), index.search_exactly(&query));
        assert!(asked.load(Ordering::Relaxed) >= vectors.len() / segment::BLOCK, "each block asks");
        assert!(after(3).is_empty());
        assert!(asked.load(Ordering::Relaxed) < 8, "{asked:?}");
    }
}

#[test]
fn searches_and_changes_run_together() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let vectors: Vec<Embedding> = (0..4000).map(|_| random(&mut rng, 32, None, 1.0)).collect();
    let index = CollectionIndex::new(32, Precision::Quantised, Level::detect());
    // These stay all the time and must be in every answer.
    (0..10).for_each(|n| index.put(&id(n), 0, vectors[n].as_slice(), &Metadata::default()));
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (index, vectors) = (&index, &vectors);
            scope.spawn(move || {
                for round in 0..3 {
                    let own = || (10 + part..4000).step_by(2);
                    own().for_each(|n| index.put(&id(n), 0, vectors[n].as_slice(), &Metadata::default()));
                    own().skip(round).for_each(|n| index.remove(&id(n)));
                }
            });
        }
        for n in (0..10).cycle().take(400) {
            let found = index.search(&query(&vectors[n], 5));
            assert_eq!(found[0].id, id(n));
        }
    });
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, i32),
    Remove(usize),
    Search(i32, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..30, 0i32..8).prop_map(|(n, v)| Step::Put(n, v)),
        2 => (0usize..30).prop_map(Step::Remove),
        2 => (0i32..8, 1usize..12).prop_map(|(v, k)| Step::Search(v, k)),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #[test]
    fn behaves_as_a_map(steps in steps()) {
        let vector = |v: i32| Embedding::from_unnormalised(vec![v as f32 - 3.5, 1.0, (v * v) as f32]).unwrap();
        let index = CollectionIndex::new(3, Precision::Quantised, Level::detect());
        let mut model: HashMap<ItemId, Embedding> = HashMap::new();
        for step in steps {
            match step {
                Step::Put(n, v) => {
                    index.put(&id(n), 0, vector(v).as_slice(), &Metadata::default());
                    model.insert(id(n), vector(v));
                }
                Step::Remove(n) => {
                    index.remove(&id(n));
                    model.remove(&id(n));
                }
                Step::Search(v, k) => {
                    let mut expected: Vec<(f32, ItemId)> =
                        model.iter().map(|(id, kept)| (kept.cosine(&vector(v)), id.clone())).collect();
                    // Many vectors are equal, so that ties are decided by id.
                    expected.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
                    expected.truncate(k);
                    let found = index.search(&query(&vector(v), k));
                    prop_assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        prop_assert!((found.score - expected.0).abs() < 1e-5);
                        prop_assert_eq!(&found.id, &expected.1);
                    }
                }
            }
            prop_assert_eq!(index.len(), model.len());
        }
    }
}
