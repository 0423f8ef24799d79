//! The embedded store: what it keeps, what it refuses, and that it behaves as a map.

use std::collections::BTreeMap;
use std::path::Path;

use latentd::store::{
    CollectionName, ContentHash, EmbeddedOptions, EmbeddedStore, Filter, ItemId, Metadata, NewItem, Query,
    Store, StoreError, Thumbnail,
};
use latentd_model::{Contract, Embedding};
use proptest::prelude::*;

pub const CONTRACT: Contract = Contract::from_bytes([7; 8]);

pub fn open(dir: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open_blocking(EmbeddedOptions { search_threads: 1, ..EmbeddedOptions::new(dir) })
}

pub fn id(text: &str) -> ItemId {
    ItemId::new(text).unwrap()
}

pub fn vector(seed: u32) -> Embedding {
    let value = |i: u32| f64::from(seed.wrapping_mul(2_654_435_761).rotate_left(i)) as f32 / 4e9 - 0.5;
    Embedding::from_unnormalised((0..8).map(value).collect()).unwrap()
}

pub fn item(name: &str, seed: u32) -> NewItem {
    let vector = vector(seed);
    let content_hash = ContentHash::of_vector(&vector);
    let metadata = Metadata::from_json(&format!("{{\"v\":{seed}}}")).unwrap();
    NewItem {
        id: id(name),
        vector,
        contract: CONTRACT,
        metadata,
        content_hash,
        thumbnail: None,
        picture: None,
    }
}

pub fn near(seed: u32, k: usize) -> Query {
    let (filter, exclude, min_score) = (None, Vec::new(), None);
    Query { vector: vector(seed), contract: CONTRACT, k, filter, exclude, min_score, with_vectors: false }
}

fn default() -> CollectionName {
    CollectionName::default()
}

fn named(name: &str) -> CollectionName {
    CollectionName::new(name).unwrap()
}

async fn upsert(store: &EmbeddedStore, item: NewItem) -> Result<bool, StoreError> {
    Ok(store.upsert(default(), vec![item]).await?.remove(0)?.created)
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let odd = ["a/b c.jpg", "ключ", "👕", "'; DROP TABLE items; --", "%2F\\\"", " "];
    let store = open(dir.path()).unwrap();
    for (seed, name) in odd.iter().enumerate() {
        assert!(upsert(&store, item(name, seed as u32)).await.unwrap());
    }
    assert!(!upsert(&store, item("ключ", 77)).await.unwrap());
    let pictured = NewItem { thumbnail: Some(Thumbnail(vec![1, 2, 3].into())), ..item("pictured", 5) };
    upsert(&store, pictured).await.unwrap();
    let before = store.get(default(), id("ключ")).await.unwrap().unwrap();
    assert_eq!(store.delete(default(), vec![id("👕"), id("none")]).await.unwrap(), [true, false]);
    store.close().await.unwrap();
    assert_eq!(store.stats().await.unwrap_err().code(), "store_closed");

    let store = open(dir.path()).unwrap();
    let kept = store.get(default(), id("ключ")).await.unwrap().unwrap();
    assert_eq!(kept.vector, Some(vector(77)));
    assert_eq!((kept.seq, kept.created, kept.updated), (before.seq, before.created, before.updated));
    assert_eq!(kept.metadata.as_str(), r#"{"v":77}"#);
    assert!(store.get(default(), id("👕")).await.unwrap().is_none());
    assert_eq!(store.thumbnail(default(), id("pictured")).await.unwrap().unwrap().0.as_ref(), [1, 2, 3]);
    // Replaced by an item without one, the old thumbnail goes.
    upsert(&store, item("pictured", 5)).await.unwrap();
    assert!(store.thumbnail(default(), id("pictured")).await.unwrap().is_none());
    let found = store.search(default(), near(77, 10)).await.unwrap();
    assert_eq!((found.len(), &found[0].id), (6, &id("ключ")));
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.collections[0].items, stats.seq), (6, 10));
    assert!(stats.disk_bytes > 0 && stats.index_bytes > 0);
}

#[tokio::test]
async fn vectors_of_another_encoder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let other = Contract::from_bytes([9; 8]);
    upsert(&store, item("a", 1)).await.unwrap();
    let foreign = NewItem { contract: other, ..item("b", 2) };
    let results = store.upsert(default(), vec![foreign.clone(), item("c", 3)]).await.unwrap();
    let error = results[0].as_ref().unwrap_err();
    assert_eq!(error.code(), "contract_mismatch");
    assert!(error.to_string().contains("0707070707070707") && error.to_string().contains("0909090909090909"));
    assert!(results[1].is_ok());
    let short = NewItem { vector: Embedding::from_unnormalised(vec![1.0]).unwrap(), ..item("d", 4) };
    assert_eq!(upsert(&store, short).await.unwrap_err().code(), "dimension_mismatch");
    let query = Query { contract: other, ..near(1, 1) };
    assert_eq!(store.search(default(), query).await.unwrap_err().code(), "contract_mismatch");
    // Another collection, or the same one after it was deleted, may hold them.
    store.upsert(named("other"), vec![foreign.clone()]).await.unwrap()[0].as_ref().unwrap();
    assert!(store.drop_collection(default()).await.unwrap());
    assert!(!store.drop_collection(default()).await.unwrap());
    assert!(upsert(&store, foreign).await.unwrap());
    let names: Vec<_> =
        store.collections().await.unwrap().into_iter().map(|info| info.name.to_string()).collect();
    assert_eq!(names, ["default", "other"]);
}

#[tokio::test]
async fn unknown_collections_are_told_but_the_default_one_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    assert!(store.search(default(), near(1, 5)).await.unwrap().is_empty());
    assert!(store.list(default(), None, 10, false).await.unwrap().is_empty());
    assert_eq!(store.delete(default(), vec![id("a")]).await.unwrap(), [false]);
    let no = named("no");
    for code in [
        store.search(no.clone(), near(1, 5)).await.unwrap_err().code(),
        store.get(no.clone(), id("a")).await.unwrap_err().code(),
        store.list(no.clone(), None, 10, false).await.unwrap_err().code(),
        store.delete(no.clone(), vec![id("a")]).await.unwrap_err().code(),
    ] {
        assert_eq!(code, "unknown_collection");
    }
    assert_eq!(store.search(default(), near(1, 0)).await.unwrap_err().code(), "invalid_k");
    assert_eq!(store.search(default(), near(1, 1001)).await.unwrap_err().code(), "invalid_k");
    assert_eq!(store.list(default(), None, 0, false).await.unwrap_err().code(), "invalid_limit");
}

#[tokio::test]
async fn one_folder_has_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert_eq!(error.code(), "store_locked");
    assert!(error.to_string().contains("--url") && error.to_string().contains("(process "), "{error}");
    drop(store);
    open(dir.path()).unwrap();
}

#[tokio::test]
async fn files_of_others_are_left_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite3");
    let refuse = |code: &str| {
        let before = std::fs::read(&path).unwrap();
        let error = open(dir.path()).err().unwrap();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("store.sqlite3"), "{error}");
        assert!(std::fs::read(&path).unwrap() == before, "{code}: the file was changed");
        std::fs::remove_file(&path).unwrap();
    };
    std::fs::write(&path, "my diary").unwrap();
    refuse("foreign_file");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    drop(other);
    refuse("foreign_file");
    drop(open(dir.path()).unwrap());
    let ours = rusqlite::Connection::open(&path).unwrap();
    ours.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA user_version = 99").unwrap();
    drop(ours);
    refuse("newer_schema");
    std::fs::write(&path, [b"SQLite format 3\0".as_slice(), &[0xab; 20_000]].concat()).unwrap();
    refuse("store_damaged");
    // An empty file is what a crash at the very beginning leaves.
    std::fs::write(&path, "").unwrap();
    upsert(&open(dir.path()).unwrap(), item("a", 1)).await.unwrap();
}

#[tokio::test]
async fn folders_that_cannot_be_used_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.join("data"), "/proc/latentd".into()] {
        let error = open(&path).err().unwrap();
        assert_eq!(error.code(), "store_io", "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_damaged_item_is_left_out_told_and_healed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for seed in 0..5 {
        upsert(&store, item(&format!("i{seed}"), seed)).await.unwrap();
    }
    drop(store);
    let database = rusqlite::Connection::open(dir.path().join("store.sqlite3")).unwrap();
    let changed =
        database.execute("UPDATE items SET vector = zeroblob(length(vector)) WHERE id = 'i3'", []).unwrap();
    assert_eq!(changed, 1);
    drop(database);
    let store = open(dir.path()).unwrap();
    let info = store.collections().await.unwrap().remove(0);
    assert_eq!((info.items, info.damaged), (4, 1));
    let found = store.search(default(), near(3, 10)).await.unwrap();
    assert!(found.len() == 4 && found.iter().all(|neighbour| neighbour.id != id("i3")));
    let error = store.get(default(), id("i3")).await.unwrap_err();
    assert!(error.code() == "store_damaged" && error.to_string().contains("i3"), "{error}");
    upsert(&store, item("i3", 3)).await.unwrap();
    let info = store.collections().await.unwrap().remove(0);
    assert_eq!((info.items, info.damaged), (5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writes_are_read_by_their_writers() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(open(dir.path()).unwrap());
    let tasks: Vec<_> = (0..16u32)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..10 {
                    let (name, seed) = (format!("{task}"), task * 1000 + round);
                    upsert(&store, item(&name, seed)).await.unwrap();
                    let kept = store.get(default(), id(&name)).await.unwrap().unwrap();
                    assert_eq!(kept.vector, Some(vector(seed)));
                    let mut query = near(seed, 1);
                    query.filter = Some(Filter::from_json(&format!("{{\"v\":{seed}}}")).unwrap());
                    let found = store.search(default(), query).await.unwrap();
                    assert!(found[0].id == id(&name) && found[0].score > 0.999);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.stats().await.unwrap().seq, 160);
}

#[derive(Debug, Clone)]
enum Step {
    Upsert(Vec<(u8, u8)>),
    Delete(u8),
    Drop,
    Reopen,
    Search(u8, usize),
    List(u8, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec((0u8..20, any::<u8>()), 1..4).prop_map(Step::Upsert),
        3 => (0u8..20).prop_map(Step::Delete),
        1 => Just(Step::Drop),
        1 => Just(Step::Reopen),
        4 => (any::<u8>(), 1usize..25).prop_map(|(seed, k)| Step::Search(seed, k)),
        2 => (0u8..20, 1usize..8).prop_map(|(after, limit)| Step::List(after, limit)),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn behaves_as_a_map(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(against_map(steps))?;
    }
}

async fn against_map(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let name = |n: u8| format!("{n:02}");
    let mut store = open(dir.path()).unwrap();
    let mut model: BTreeMap<String, u8> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Upsert(pairs) => {
                let items = pairs.iter().map(|&(n, seed)| item(&name(n), seed.into())).collect();
                for (result, (n, seed)) in
                    store.upsert(default(), items).await.unwrap().into_iter().zip(pairs)
                {
                    prop_assert_eq!(result.unwrap().created, model.insert(name(n), seed).is_none());
                }
            }
            Step::Delete(n) => {
                let there = store.delete(default(), vec![id(&name(n))]).await.unwrap();
                prop_assert_eq!(there, [model.remove(&name(n)).is_some()]);
            }
            Step::Drop => {
                store.drop_collection(default()).await.unwrap();
                model.clear();
            }
            Step::Reopen => {
                drop(store);
                store = open(dir.path()).unwrap();
            }
            Step::Search(seed, k) => {
                let found = store.search(default(), near(seed.into(), k)).await.unwrap();
                let score = |seed2: &u8| vector(u32::from(*seed2)).cosine(&vector(seed.into()));
                let mut expected: Vec<f32> = model.values().map(score).collect();
                expected.sort_by(|a, b| b.total_cmp(a));
                expected.truncate(k);
                prop_assert_eq!(found.len(), expected.len());
                for (neighbour, expected) in found.iter().zip(expected) {
                    prop_assert!((neighbour.score - expected).abs() < 1e-5);
                    prop_assert!((score(&model[neighbour.id.as_str()]) - neighbour.score).abs() < 1e-5);
                }
            }
            Step::List(after, limit) => {
                let page = store.list(default(), Some(id(&name(after))), limit, true).await.unwrap();
                let listed: Vec<String> = page.iter().map(|item| item.id.to_string()).collect();
                let expected: Vec<String> =
                    model.range(name(after + 1)..).take(limit).map(|(n, _)| n.clone()).collect();
                prop_assert_eq!(listed, expected);
                let kept =
                    page.iter().all(|item| item.vector == Some(vector(model[item.id.as_str()].into())));
                prop_assert!(kept);
            }
        }
    }
    Ok(())
}
