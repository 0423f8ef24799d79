//! Tests of the index with a graph.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use super::tests::{exact, id, query, random, recall};
use super::*;
use crate::store::Filter;
use latentd_model::Embedding;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn empty(dim: usize) -> CollectionIndex {
    let options = IndexOptions { choice: IndexChoice::Hnsw, ..IndexOptions::default() };
    CollectionIndex::with_options(dim, options)
}

fn tend(index: &CollectionIndex) {
    let go_on = AtomicBool::new(false);
    while index.tend(&go_on) {}
    assert!(index.unlinked().is_none_or(|waiting| waiting == 0));
}

/// Vectors around centres, as encoders make them; cluster after cluster, the worst order for a graph.
pub fn clustered(rng: &mut ChaCha8Rng, count: usize, dim: usize, clusters: usize) -> Vec<Embedding> {
    let centres: Vec<Embedding> = (0..clusters).map(|_| random(rng, dim, None, 1.0)).collect();
    let spread = 0.6 / (dim as f32).sqrt();
    (0..count).map(|n| random(rng, dim, Some(centres[n * clusters / count].as_slice()), spread)).collect()
}

fn put(index: &CollectionIndex, n: usize, vector: &Embedding) {
    let metadata = Metadata::from_json(&format!(r#"{{"n":{n},"h":{}}}"#, n % 100)).unwrap();
    index.put(&id(n), n as u64 + 1, vector.as_slice(), &metadata);
}

#[test]
fn recall_is_as_wanted_with_and_without_filters() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let vectors = clustered(&mut rng, 12_000, 48, 60);
    let index = empty(48);
    vectors.iter().enumerate().for_each(|(n, v)| put(&index, n, v));
    // Without a graph everything is found, and everything while it is being built.
    assert_eq!(recall(&index, &vectors, &vectors[5], 10), 1.0);
    let go_on = AtomicBool::new(false);
    (0..8).for_each(|_| assert!(index.tend(&go_on)));
    assert!(index.unlinked().unwrap() > 0);
    assert!(recall(&index, &vectors, &vectors[5], 10) >= 0.9);
    tend(&index);
    let queries: Vec<&Embedding> = vectors.iter().step_by(120).collect();
    for k in [1, 10, 100, 1000] {
        let sum: f64 = queries.iter().map(|query| recall(&index, &vectors, query, k)).sum();
        assert!(sum / queries.len() as f64 >= 0.99, "k={k}: {}", sum / queries.len() as f64);
    }
    for (upto, least) in [(1, 0.95), (10, 0.95), (50, 0.95)] {
        let filter = Filter::from_json(&format!(r#"{{"h":{{"$lt":{upto}}}}}"#)).unwrap();
        let counted: Vec<usize> = (0..vectors.len()).filter(|n| n % 100 < upto).collect();
        let some: Vec<Embedding> = counted.iter().map(|&n| vectors[n].clone()).collect();
        let mut hits = 0;
        for &wanted in &queries {
            let mut asked = query(wanted, 10);
            asked.filter = Some(filter.clone());
            let found = index.search(&asked);
            assert_eq!(found.len(), 10);
            let worst = exact(&some, wanted, 10)[9].1 - 1e-5;
            hits += found.iter().filter(|neighbour| neighbour.score >= worst).count();
        }
        let recall = hits as f64 / (10 * queries.len()) as f64;
        assert!(recall >= least, "{upto} %: {recall}");
    }
}

#[test]
fn filters_that_leave_only_what_is_far_are_answered() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let vectors = clustered(&mut rng, 6000, 32, 10);
    let index = empty(32);
    vectors.iter().enumerate().for_each(|(n, v)| put(&index, n, v));
    tend(&index);
    // A query from the first cluster; only items of the last ones count, a fifth or one of all.
    for from in [4800, 5999] {
        let mut asked = query(&vectors[3], 10);
        asked.filter = Some(Filter::from_json(&format!(r#"{{"n":{{"$gte":{from}}}}}"#)).unwrap());
        let found: HashSet<ItemId> = index.search(&asked).into_iter().map(|neighbour| neighbour.id).collect();
        let expected: HashSet<ItemId> =
            exact(&vectors[from..], &vectors[3], 10).iter().map(|(n, _)| id(from + n)).collect();
        assert!(found.intersection(&expected).count() * 10 >= expected.len() * 9, "{from}");
        assert_eq!(found.len(), expected.len());
    }
    let mut asked = query(&vectors[3], 1000);
    asked.exclude = (0..50).map(id).collect();
    asked.min_score = Some(-0.9);
    let found = index.search(&asked);
    assert!(found.iter().all(|neighbour| !asked.exclude.contains(&neighbour.id)));
    assert_eq!(found.len(), 1000);
}

#[test]
fn equal_vectors_are_all_found() {
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    let mut vectors = clustered(&mut rng, 2000, 16, 5);
    let same = random(&mut rng, 16, None, 1.0);
    vectors.extend(std::iter::repeat_n(same.clone(), 2000));
    let index = empty(16);
    vectors.iter().enumerate().for_each(|(n, v)| put(&index, n, v));
    tend(&index);
    let found = index.search(&query(&same, 1000));
    let equal = found.iter().filter(|neighbour| neighbour.score > 0.9999).count();
    assert!(equal >= 990, "{equal}");
    assert!(recall(&index, &vectors, &vectors[100], 10) >= 0.9);
}

#[test]
fn what_changes_stays_found_and_what_is_deleted_stays_away() {
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    let mut vectors = clustered(&mut rng, 4000, 24, 20);
    let index = empty(24);
    vectors.iter().enumerate().for_each(|(n, v)| put(&index, n, v));
    tend(&index);
    let rows = index.places.lock().rows();
    for round in 0..6 {
        // A third moves to other clusters.
        for n in (round % 3..4000).step_by(3) {
            vectors[n] = vectors[(n + 1237) % 4000].clone();
            put(&index, n, &vectors[n]);
        }
        tend(&index);
        let sum: f64 = (0..40).map(|q| recall(&index, &vectors, &vectors[q * 97], 10)).sum();
        assert!(sum / 40.0 >= 0.98, "round {round}: {}", sum / 40.0);
    }
    assert!(index.places.lock().rows() < rows * 2, "rows are used again");
    (0..3900).for_each(|n| index.remove(&id(n)));
    let found = index.search(&query(&vectors[10], 1000));
    assert_eq!(found.len(), 100);
    tend(&index);
    let found = index.search(&query(&vectors[3950], 1000));
    assert_eq!((found.len(), index.len()), (100, 100));
    assert!(index.places.lock().rows() <= 1124, "{}", index.places.lock().rows());
    (0..100).for_each(|n| index.remove(&id(3900 + n)));
    tend(&index);
    assert!(index.search(&query(&vectors[0], 10)).is_empty() && index.linked().is_none());
}

fn tend_until(index: &CollectionIndex, done: &AtomicBool) {
    let go_on = AtomicBool::new(false);
    while !done.load(Ordering::Relaxed) {
        index.tend(&go_on);
    }
}

/// Tells others to end, also when an assertion ended this thread.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn searches_writes_and_linking_run_together() {
    let mut rng = ChaCha8Rng::seed_from_u64(15);
    let vectors = clustered(&mut rng, 3000, 16, 10);
    let index = empty(16);
    (0..10).for_each(|n| put(&index, n, &vectors[n * 290]));
    let finds = |n: usize, found: Vec<Neighbour>| found.iter().any(|neighbour| neighbour.id == id(n));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ending = Ending(&done);
        scope.spawn(|| tend_until(&index, &done));
        let writer = scope.spawn(|| {
            for round in 0..4 {
                (10..3000).for_each(|n| put(&index, n, &vectors[(n + round) % 3000]));
                (10..3000).skip(round).step_by(2).for_each(|n| index.remove(&id(n)));
            }
        });
        let (mut searches, mut missed) = (0, 0);
        while !writer.is_finished() || searches < 100 {
            let n = searches % 10;
            let asked = query(&vectors[n * 290], 30);
            // A walk may miss one while all around it changes, and nothing else may.
            missed += usize::from(!finds(n, index.search(&asked)));
            assert!(finds(n, index.search_exactly(&asked)), "{n} was lost");
            searches += 1;
        }
        assert!(missed * 20 <= searches, "{missed} of {searches} were missed");
    });
    tend(&index);
    let left = index.len();
    assert_eq!(index.search(&query(&vectors[0], 1000)).len(), left.min(1000));
    assert!((0..10).all(|n| finds(n, index.search(&query(&vectors[n * 290], 30)))));
}

#[test]
fn who_asks_for_all_gets_all_while_they_are_linked() {
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    // Equal vectors, among which a graph leads to some by nothing.
    let vectors = clustered(&mut rng, 5, 16, 5);
    for _ in 0..20 {
        let index = empty(16);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _ending = Ending(&done);
            scope.spawn(|| tend_until(&index, &done));
            for n in 0..300 {
                put(&index, n, &vectors[n % 5]);
                let found = index.search(&query(&vectors[0], 1000)).len();
                assert_eq!(found, n + 1);
            }
        });
    }
}

#[test]
fn a_frozen_graph_leads_to_what_was_there_and_only_the_rest_is_linked() {
    let mut rng = ChaCha8Rng::seed_from_u64(16);
    let mut vectors = clustered(&mut rng, 3000, 16, 10);
    let index = empty(16);
    vectors.iter().enumerate().for_each(|(n, v)| put(&index, n, v));
    tend(&index);
    let owner = Owner { collection: 7, contract: [1; 8], dim: 16 };
    let bytes = index.freeze(owner, 3000).unwrap();

    // Meanwhile some were deleted, some written again, some are new.
    let (gone, again) = (0..200, 200..300);
    vectors.extend(clustered(&mut rng, 100, 16, 3));
    let thawed = empty(16);
    thawed.thaw(Frozen::read(&bytes, owner).unwrap());
    for (n, vector) in vectors.iter().enumerate().skip(gone.end) {
        let seq = if again.contains(&n) { n + 5000 } else { n + 1 } as u64;
        thawed.put(&id(n), seq, vector.as_slice(), &Metadata::default());
    }
    thawed.thawed();
    assert_eq!((thawed.len(), thawed.unlinked()), (2900, Some(200)));
    let there = &vectors[gone.end..];
    for n in [250, 300, 1500, 3050] {
        assert_eq!(thawed.search(&query(&vectors[n], 1))[0].id, id(n));
        assert!(recall(&thawed, there, &vectors[n], 10) >= 0.9);
    }
    tend(&thawed);
    let sum: f64 = (0..50).map(|n| recall(&thawed, there, &there[n * 57], 10)).sum();
    assert!(sum / 50.0 >= 0.98, "{}", sum / 50.0);
    assert_eq!(thawed.search(&query(&vectors[0], 1000)).len(), 1000);

    let other = Owner { dim: 17, ..owner };
    assert!(Frozen::read(&bytes, other).is_err());
    for at in (0..bytes.len()).step_by(997) {
        let mut bad = bytes.clone();
        bad[at] ^= 4;
        assert!(Frozen::read(&bad, owner).is_err() && Frozen::read(&bytes[..at], owner).is_err());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, i32),
    Remove(usize),
    Tend,
    Search(i32, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..30, 0i32..8).prop_map(|(n, v)| Step::Put(n, v)),
        2 => (0usize..30).prop_map(Step::Remove),
        1 => Just(Step::Tend),
        2 => (0i32..8, 1usize..12).prop_map(|(v, k)| Step::Search(v, k)),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_as_a_map(steps in steps()) {
        let vector = |v: i32| Embedding::from_unnormalised(vec![v as f32 - 3.5, 1.0, (v * v) as f32]).unwrap();
        let index = empty(3);
        let go_on = AtomicBool::new(false);
        let mut model = std::collections::HashMap::new();
        for step in steps {
            match step {
                Step::Put(n, v) => {
                    put(&index, n, &vector(v));
                    model.insert(id(n), vector(v));
                }
                Step::Remove(n) => {
                    index.remove(&id(n));
                    model.remove(&id(n));
                }
                Step::Tend => while index.tend(&go_on) {},
                Step::Search(v, k) => {
                    let mut scores: Vec<f32> = model.values().map(|kept| kept.cosine(&vector(v))).collect();
                    scores.sort_by(|a, b| b.total_cmp(a));
                    scores.truncate(k);
                    let found = index.search(&query(&vector(v), k));
                    prop_assert_eq!(found.len(), scores.len());
                    for (found, expected) in found.iter().zip(&scores) {
                        // Many vectors are equal; which of them is found is not promised.
                        prop_assert!((found.score - expected).abs() < 1e-5);
                        prop_assert!((model[&found.id].cosine(&vector(v)) - found.score).abs() < 1e-5);
                    }
                }
            }
            prop_assert_eq!(index.len(), model.len());
        }
    }

    #[test]
    fn any_order_of_linking_leads_everywhere(seed in 0u64..1000) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let count = rng.random_range(1..400);
        let index = empty(4);
        let vectors: Vec<Embedding> = (0..count).map(|_| random(&mut rng, 4, None, 1.0)).collect();
        vectors.iter().enumerate().for_each(|(n, v)| put(&index, n, v));
        tend(&index);
        let found = index.search(&query(&vectors[0], count));
        prop_assert_eq!(found.len(), count);
    }
}
