//! The embedded store: its files, and what the tests of all stores share.

use std::path::Path;

use latentd::store::{
    CollectionName, ContentHash, EmbeddedOptions, EmbeddedStore, ItemId, Metadata, NewItem, Query, Store,
    StoreError,
};
use latentd_model::{Contract, Embedding};

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

async fn upsert(store: &EmbeddedStore, item: NewItem) -> Result<bool, StoreError> {
    Ok(store.upsert(default(), vec![item]).await?.remove(0)?.created)
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

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_could_not_begin_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    upsert(&store, item("a", 1)).await.unwrap();
    let other = rusqlite::Connection::open(dir.path().join("store.sqlite3")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = upsert(&store, item("b", 2)).await.unwrap_err();
    assert!(error.to_string().contains("database is locked"), "{error}");
    other.execute_batch("ROLLBACK").unwrap();
    upsert(&store, item("b", 2)).await.unwrap();
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
    // Whoever goes through all of them gets past it.
    let listed = store.list(default(), None, 10, true).await.unwrap();
    let with_vector: Vec<_> = listed.iter().map(|item| (item.id.as_str(), item.vector.is_some())).collect();
    assert_eq!(with_vector, [("i0", true), ("i1", true), ("i2", true), ("i3", false), ("i4", true)]);
    upsert(&store, item("i3", 3)).await.unwrap();
    let info = store.collections().await.unwrap().remove(0);
    assert_eq!((info.items, info.damaged), (5, 0));
}
