//! The store's two generations: what a refresh fills, refuses, switches and lets go of.

use bytes::Bytes;
use latentd::store::refresh::{KeptPicture, Refreshed, Stale, Switched};
use latentd::store::{CollectionName, ContentHash, NewItem, Query, Store};
use latentd_model::Contract;

use crate::store::{CONTRACT, id, item, near, open, vector};
use crate::support::engine::Engine;

const NEXT: Contract = Contract::from_bytes([9; 8]);

fn pictured(name: &str, seed: u32, file: &'static [u8]) -> NewItem {
    let content_hash = ContentHash::of(file);
    NewItem { picture: Some(Bytes::from_static(file)), content_hash, ..item(name, seed) }
}

async fn put(store: &dyn Store, collection: &CollectionName, new: NewItem) {
    store.upsert(collection.clone(), vec![new]).await.unwrap()[0].as_ref().unwrap();
}

async fn stale(store: &dyn Store) -> Vec<Stale> {
    store.refresh_stale(CONTRACT, NEXT, None, 100).await.unwrap()
}

/// Fills what is stale with vectors of seed 1000 + its place.
async fn fill(store: &dyn Store, stale: &[Stale]) -> u64 {
    let made = stale.iter().enumerate().map(|(place, stale)| Refreshed {
        collection: stale.collection.clone(),
        id: stale.id.clone(),
        seq: stale.seq,
        vector: vector(1000 + place as u32),
    });
    store.refresh_fill(NEXT, made.collect()).await.unwrap()
}

fn asked(seed: u32) -> Query {
    Query { contract: NEXT, ..near(seed, 10) }
}

#[tokio::test]
async fn all_collections_change_at_once_and_back() {
    let engine = Engine::new();
    let open = engine.open().await;
    let store = &*open;
    let (first, second) = (CollectionName::default(), CollectionName::new("second").unwrap());
    for (collection, name, seed) in [(&first, "a", 1), (&first, "b", 2), (&second, "c", 3)] {
        put(store, collection, pictured(name, seed, b"one and the same picture")).await;
    }
    // One that holds vectors of a third encoder is not concerned.
    let other = CollectionName::new("other").unwrap();
    let third = Contract::from_bytes([3; 8]);
    put(store, &other, NewItem { contract: third, ..item("d", 4) }).await;
    store.refresh_lead(CONTRACT, NEXT, vec![("w", Some("v".into()))]).await.unwrap();
    store.refresh_begin(CONTRACT, NEXT, vector(1).dim()).await.unwrap();
    let before = store.refresh_remaining(CONTRACT, NEXT).await.unwrap();
    assert_eq!((before.items, before.stale, before.without_picture), (3, 3, 0));
    let switch =
        async || store.refresh_switch(CONTRACT, NEXT, false, vec![("x", Some("y".into()))]).await.unwrap();
    assert_eq!(switch().await, Switched::Stale(3));
    assert_eq!(store.setting("x").await.unwrap(), None);

    let seen = stale(store).await;
    assert_eq!(seen.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    let rest = store.refresh_stale(CONTRACT, NEXT, Some((first.clone(), id("a"))), 1).await.unwrap();
    assert_eq!(rest[0].id, id("b"));
    // One is written and one deleted after they were seen.
    put(store, &first, pictured("a", 7, b"another")).await;
    store.delete(first.clone(), vec![id("b")]).await.unwrap();
    assert_eq!(fill(store, &seen).await, 1, "only c is still what it was");
    let seen = stale(store).await;
    assert_eq!(seen.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(fill(store, &seen).await, 1);
    assert!(stale(store).await.is_empty());
    let near_old = store.search(first.clone(), near(7, 10)).await.unwrap();
    assert_eq!(near_old[0].id, id("a"));

    store.close().await.unwrap();
    drop(open);
    let open = engine.open().await;
    let store = &*open;
    assert_eq!(store.setting("w").await.unwrap().as_deref(), Some("v"));
    store.refresh_lead(CONTRACT, NEXT, Vec::new()).await.unwrap();
    assert!(stale(store).await.is_empty(), "what was filled lasts");
    assert_eq!(store.collections().await.unwrap().len(), 3, "spares are nobody's business");
    store.refresh_hold(true).await.unwrap();
    let ages = async || -> Vec<_> {
        let all = store.collections().await.unwrap();
        all.into_iter().map(|collection| (collection.name, collection.created)).collect()
    };
    let before = ages().await;
    let switched = store.refresh_switch(CONTRACT, NEXT, false, vec![("x", Some("y".into()))]).await.unwrap();
    assert_eq!(switched, Switched::Done { left_out: 0 });
    assert_eq!(store.setting("x").await.unwrap().as_deref(), Some("y"));
    assert_eq!(ages().await, before);
    for collection in store.collections().await.unwrap() {
        let contract = if collection.name == other { third } else { NEXT };
        assert_eq!((collection.contract, collection.items), (contract, 1));
    }
    assert!(store.get(other.clone(), id("d")).await.unwrap().is_some());
    let found = store.search(first.clone(), asked(1000)).await.unwrap();
    assert_eq!((found.len(), &found[0].id), (1, &id("a")));
    assert!(found[0].score > 0.9999);
    let error = store.search(first.clone(), near(7, 1)).await.unwrap_err();
    assert_eq!(error.code(), "contract_mismatch");

    // Back: both are still there, so nothing has to be made.
    store.delete(second.clone(), vec![id("c")]).await.unwrap();
    store.refresh_lead(NEXT, CONTRACT, Vec::new()).await.unwrap();
    store.refresh_begin(NEXT, CONTRACT, vector(1).dim()).await.unwrap();
    store.refresh_hold(true).await.unwrap();
    let back = store.refresh_switch(NEXT, CONTRACT, false, Vec::new()).await.unwrap();
    assert_eq!(back, Switched::Done { left_out: 0 });
    let kept = store.get(first.clone(), id("a")).await.unwrap().unwrap();
    assert_eq!((kept.vector, kept.contract), (Some(vector(7)), CONTRACT));
    assert!(store.get(second, id("c")).await.unwrap().is_none());
    store.refresh_discard(NEXT).await.unwrap();
    assert_eq!(store.delete(other, vec![id("d")]).await.unwrap(), [true]);
    assert!(matches!(
        store.kept_picture(first, id("a")).await.unwrap(),
        Some(KeptPicture::Original(file)) if file == b"another".as_slice()
    ));
}

#[tokio::test]
async fn what_cannot_be_made_is_left_out_only_when_allowed() {
    let engine = Engine::new();
    let open = engine.open().await;
    let store = &*open;
    let name = CollectionName::default();
    put(store, &name, pictured("pictured", 1, b"picture")).await;
    put(store, &name, item("vector", 2)).await;
    let begun = store.refresh_remaining(CONTRACT, NEXT).await.unwrap();
    assert_eq!((begun.stale, begun.without_picture), (2, 1));
    store.refresh_lead(CONTRACT, NEXT, Vec::new()).await.unwrap();
    store.refresh_begin(CONTRACT, NEXT, vector(1).dim()).await.unwrap();
    let seen: Vec<_> = stale(store).await.into_iter().filter(|stale| stale.has_picture).collect();
    assert_eq!(fill(store, &seen).await, 1);
    // A newer state that cannot be made: the older one must not be found in its place.
    put(store, &name, item("pictured", 3)).await;
    store.refresh_hold(true).await.unwrap();
    let switch = async |leave_out| store.refresh_switch(CONTRACT, NEXT, leave_out, Vec::new()).await.unwrap();
    assert_eq!(switch(false).await, Switched::Stale(2));
    assert_eq!(switch(true).await, Switched::Done { left_out: 2 });
    assert!(store.search(name.clone(), asked(1)).await.unwrap().is_empty());
    assert!(store.list(name, None, 10, false).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_picture_is_kept_once_and_goes_with_its_last_item() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let name = CollectionName::default();
    for n in ["a", "b"] {
        put(&store, &name, pictured(n, 1, b"shared")).await;
    }
    let count = || -> i64 {
        let database = rusqlite::Connection::open(dir.path().join("store.sqlite3")).unwrap();
        database.query_row("SELECT count(*) FROM pictures", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(), 1);
    store.delete(name.clone(), vec![id("a")]).await.unwrap();
    assert_eq!(count(), 1);
    put(&store, &name, pictured("b", 1, b"other")).await;
    assert_eq!(count(), 1, "the shared one is gone, the other is there");
    store.drop_collection(name).await.unwrap();
    assert_eq!(count(), 0);
}
