//! The embedded store at each precision of the vectors in memory: what is found, and what is told of it.

use std::collections::BTreeMap;
use std::path::Path;

use latentd::store::{
    CollectionName, EmbeddedOptions, EmbeddedStore, Filter, IndexChoice, IndexOptions, Query, Store, Vectors,
};
use latentd_model::Embedding;

use crate::store::{id, item, near, vector};
use crate::upkeep::linked;

fn open(dir: &Path, vectors: Vectors, choice: IndexChoice) -> EmbeddedStore {
    let index = IndexOptions { choice, vectors, ..IndexOptions::default() };
    let options = EmbeddedOptions { search_threads: 1, index, ..EmbeddedOptions::new(dir) };
    EmbeddedStore::open_blocking(options).unwrap()
}

/// What is in the store, by number; each item's vector is that of a seed.
type Kept = BTreeMap<u32, u32>;

async fn write(store: &EmbeddedStore, kept: &mut Kept, pairs: impl Iterator<Item = (u32, u32)>) {
    let pairs: Vec<(u32, u32)> = pairs.collect();
    let items = pairs.iter().map(|&(n, seed)| item(&format!("{n:05}"), seed)).collect();
    store
        .upsert(CollectionName::default(), items)
        .await
        .unwrap()
        .into_iter()
        .for_each(|one| drop(one.unwrap()));
    kept.extend(pairs);
}

async fn check(store: &EmbeddedStore, kept: &Kept, tolerance: f32) {
    let vectors: BTreeMap<u32, Embedding> = kept.iter().map(|(&n, &seed)| (n, vector(seed))).collect();
    let (mut hits, mut all) = (0, 0);
    for seed in (0..60).map(|n| n * 1931) {
        let asked = Query { with_vectors: true, ..near(seed, 20) };
        let mut best: Vec<f32> = vectors.values().map(|one| one.cosine(&asked.vector)).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        let found = store.search(CollectionName::default(), asked.clone()).await.unwrap();
        assert_eq!(found.len(), 20);
        assert!(found.is_sorted_by(|a, b| a.score >= b.score));
        for near in &found {
            let own = &vectors[&near.id.as_str().parse().unwrap()];
            assert_eq!(near.vector.as_ref(), Some(own), "vectors are told as they came");
            assert!((near.score - own.cosine(&asked.vector)).abs() < tolerance);
            hits += usize::from(own.cosine(&asked.vector) >= best[19] - 1e-6);
        }
        all += 20;
        let filter = Some(Filter::from_json(r#"{"v":{"$lt":100}}"#).unwrap());
        let some = store.search(CollectionName::default(), Query { filter, ..asked }).await.unwrap();
        assert!(some.iter().all(|near| kept[&near.id.as_str().parse().unwrap()] < 100));
        assert_eq!(some.len(), kept.values().filter(|&&seed| seed < 100).count().min(20));
    }
    let stats = store.stats().await.unwrap();
    assert!(hits as f64 >= 0.97 * f64::from(all), "{hits} of {all}: {stats:?}");
    println!("{hits} of {all}: {}, {:?}", stats.scan, stats.collections[0].index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_precision_finds_the_same_across_writes_and_starts() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Kept::new();
    let precisions = [(Vectors::F32, 1e-5), (Vectors::F16, 2e-3), (Vectors::Int8, 1e-5)];
    let store = open(dir.path(), Vectors::Int8, IndexChoice::Hnsw);
    write(&store, &mut kept, (0..3000).map(|n| (n, n))).await;
    check(&store, &kept, 1e-5).await;
    linked(&store).await;
    check(&store, &kept, 1e-5).await;
    store.close().await.unwrap();
    for (round, choice) in [IndexChoice::Hnsw, IndexChoice::Exact].into_iter().cycle().take(4).enumerate() {
        for (vectors, tolerance) in precisions {
            let store = open(dir.path(), vectors, choice);
            check(&store, &kept, tolerance).await;
            let from = 100 + 400 * round as u32;
            write(&store, &mut kept, (from..from + 300).map(|n| (n, n * 7 + 100_000))).await;
            let gone: Vec<u32> = (from + 200..from + 240).collect();
            let ids = gone.iter().map(|n| id(&format!("{n:05}"))).collect();
            store.delete(CollectionName::default(), ids).await.unwrap();
            kept.retain(|n, _| !gone.contains(n));
            check(&store, &kept, tolerance).await;
            if choice == IndexChoice::Hnsw {
                linked(&store).await;
            }
            check(&store, &kept, tolerance).await;
            let measured = store.recall(&CollectionName::default(), 10, 50).await.unwrap().unwrap();
            assert!(measured.recall >= 0.98, "{vectors:?} {choice:?}: {measured:?}");
            let stats = store.stats().await.unwrap();
            let scan = match vectors {
                Vectors::F32 => "int8+f32, ",
                Vectors::F16 => "int8+f16, ",
                Vectors::Int8 => "int8+database, ",
            };
            assert!(stats.scan.starts_with(scan), "{}", stats.scan);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_on_the_disk_is_still_found_by_its_codes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Vectors::Int8, IndexChoice::Hnsw);
    write(&store, &mut Kept::new(), (0..3000).map(|n| (n, n))).await;
    linked(&store).await;
    let found = store.search(CollectionName::default(), near(77, 1)).await.unwrap();
    assert!(found[0].score > 0.999_99);
    let other = rusqlite::Connection::open(dir.path().join("store.sqlite3")).unwrap();
    other.execute("UPDATE items SET vector = zeroblob(32) WHERE id = '00077'", ()).unwrap();
    drop(other);
    let found = store.search(CollectionName::default(), near(77, 10)).await.unwrap();
    let kept = found.iter().find(|near| near.id == id("00077")).unwrap();
    assert!((0.98..=1.0).contains(&kept.score), "{found:?}");
    store.close().await.unwrap();
}
