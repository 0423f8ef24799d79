//! What every store must do, the same on each engine: on the embedded one, and where `STORE_TEST_URL` names it on a
//! distributed one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use latentd::store::filter::{CompiledFilter, FieldNames, Fields};
use latentd::store::refresh::KeptPicture;
use latentd::store::{CollectionName, Filter, Metadata, NewItem, Query, Store, StoreError, Thumbnail};
use latentd_model::{Contract, Embedding};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::store::{id, item, near, vector};
use crate::support::engine::Engine;

fn default() -> CollectionName {
    CollectionName::default()
}

fn named(name: &str) -> CollectionName {
    CollectionName::new(name).unwrap()
}

async fn upsert(store: &Arc<dyn Store>, item: NewItem) -> Result<bool, StoreError> {
    Ok(store.upsert(default(), vec![item]).await?.remove(0)?.created)
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let engine = Engine::new();
    let odd = ["a/b c.jpg", "ключ", "👕", "'; DROP TABLE items; --", "%2F\\\"", " ", "\u{2028}"];
    let longest = "é".repeat(256);
    let store = engine.open().await;
    for (seed, name) in odd.iter().chain([&longest.as_str()]).enumerate() {
        assert!(upsert(&store, item(name, seed as u32)).await.unwrap(), "{name}");
    }
    let first = store.get(default(), id("ключ")).await.unwrap().unwrap();
    assert!(!upsert(&store, item("ключ", 77)).await.unwrap());
    let thumbnail = Some(Thumbnail(vec![1, 2, 3].into()));
    let picture = Some(Bytes::from_static(b"original"));
    upsert(&store, NewItem { thumbnail, picture, ..item("pictured", 5) }).await.unwrap();
    let before = store.get(default(), id("ключ")).await.unwrap().unwrap();
    assert!(before.seq > first.seq && before.created == first.created && before.updated >= first.updated);
    assert_eq!(store.delete(default(), vec![id("👕"), id("none")]).await.unwrap(), [true, false]);
    assert!(store.get(default(), id("👕")).await.unwrap().is_none());
    store.close().await.unwrap();
    assert_eq!(store.stats().await.unwrap_err().code(), "store_closed");
    assert_eq!(store.get(default(), id("ключ")).await.unwrap_err().code(), "store_closed");
    drop(store);

    let store = engine.open().await;
    store.health().await.unwrap();
    let kept = store.get(default(), id("ключ")).await.unwrap().unwrap();
    assert_eq!(kept.vector, Some(vector(77)));
    assert_eq!((kept.seq, kept.created, kept.updated), (before.seq, before.created, before.updated));
    assert_eq!((kept.content_hash, kept.metadata.as_str()), (before.content_hash, r#"{"v":77}"#));
    assert!(store.get(default(), id("👕")).await.unwrap().is_none());
    assert_eq!(store.thumbnail(default(), id("pictured")).await.unwrap().unwrap().0.as_ref(), [1, 2, 3]);
    let original = store.kept_picture(default(), id("pictured")).await.unwrap();
    assert!(matches!(original, Some(KeptPicture::Original(file)) if file == b"original".as_slice()));
    assert!(store.get(default(), id("pictured")).await.unwrap().unwrap().has_thumbnail);
    // Replaced by an item without one, the old thumbnail goes.
    upsert(&store, item("pictured", 6)).await.unwrap();
    assert!(store.thumbnail(default(), id("pictured")).await.unwrap().is_none());
    assert!(store.kept_picture(default(), id("pictured")).await.unwrap().is_none());
    let found = store.search(default(), near(77, 10)).await.unwrap();
    assert_eq!((found.len(), &found[0].id), (8, &id("ключ")));
    assert_eq!(store.stats().await.unwrap().collections[0].items, 8);
    assert!(upsert(&store, item("👕", 3)).await.unwrap(), "deleted, it is new again");
}

#[tokio::test]
async fn vectors_of_another_encoder_are_refused() {
    let engine = Engine::new();
    let store = engine.open().await;
    let other = Contract::from_bytes([9; 8]);
    upsert(&store, item("a", 1)).await.unwrap();
    let foreign = NewItem { contract: other, ..item("b", 2) };
    let results = store.upsert(default(), vec![foreign.clone(), item("c", 3)]).await.unwrap();
    let error = results[0].as_ref().unwrap_err();
    assert_eq!(error.code(), "contract_mismatch");
    assert!(error.to_string().contains("0707070707070707") && error.to_string().contains("0909090909090909"));
    assert!(results[1].is_ok());
    let short = NewItem { vector: Embedding::from_unnormalised(vec![1.0, 1.0]).unwrap(), ..item("d", 4) };
    assert_eq!(upsert(&store, short).await.unwrap_err().code(), "dimension_mismatch");
    let query = Query { contract: other, ..near(1, 1) };
    assert_eq!(store.search(default(), query).await.unwrap_err().code(), "contract_mismatch");
    // Another collection, or the same one after it was deleted, may hold them.
    store.upsert(named("other"), vec![foreign.clone()]).await.unwrap()[0].as_ref().unwrap();
    assert!(store.drop_collection(default()).await.unwrap());
    assert!(!store.drop_collection(default()).await.unwrap());
    assert!(store.search(default(), near(1, 5)).await.unwrap().is_empty());
    assert!(upsert(&store, foreign).await.unwrap());
    let all = store.collections().await.unwrap();
    let told: Vec<_> =
        all.iter().map(|info| (info.name.as_str(), info.contract, info.dim, info.items)).collect();
    assert_eq!(told, [("default", other, 8, 1), ("other", other, 8, 1)]);
}

#[tokio::test]
async fn unknown_collections_are_told_but_the_default_one_is_empty() {
    let engine = Engine::new();
    let store = engine.open().await;
    assert!(store.search(default(), near(1, 5)).await.unwrap().is_empty());
    assert!(store.list(default(), None, 10, false).await.unwrap().is_empty());
    assert!(store.collections().await.unwrap().is_empty());
    assert_eq!(store.delete(default(), vec![id("a")]).await.unwrap(), [false]);
    let no = named("no-such_one.");
    for code in [
        store.search(no.clone(), near(1, 5)).await.unwrap_err().code(),
        store.get(no.clone(), id("a")).await.unwrap_err().code(),
        store.thumbnail(no.clone(), id("a")).await.unwrap_err().code(),
        store.list(no.clone(), None, 10, false).await.unwrap_err().code(),
        store.delete(no.clone(), vec![id("a")]).await.unwrap_err().code(),
    ] {
        assert_eq!(code, "unknown_collection");
    }
    assert_eq!(store.search(default(), near(1, 0)).await.unwrap_err().code(), "invalid_k");
    assert_eq!(store.search(default(), near(1, 1001)).await.unwrap_err().code(), "invalid_k");
    assert_eq!(store.list(default(), None, 0, false).await.unwrap_err().code(), "invalid_limit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writes_are_read_by_their_writers() {
    let engine = Engine::new();
    let store = engine.open().await;
    let tasks = (0..16u32).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut seq = 0;
            for round in 0..10 {
                let (name, seed) = (format!("{task}"), task * 1000 + round);
                let written =
                    store.upsert(default(), vec![item(&name, seed)]).await.unwrap().remove(0).unwrap();
                assert!(written.seq > seq && written.created == (round == 0));
                seq = written.seq;
                let kept = store.get(default(), id(&name)).await.unwrap().unwrap();
                assert_eq!((kept.vector, kept.seq), (Some(vector(seed)), seq));
                let mut query = near(seed, 1);
                query.filter = Some(Filter::from_json(&format!("{{\"v\":{seed}}}")).unwrap());
                let found = store.search(default(), query).await.unwrap();
                assert!(found[0].id == id(&name) && found[0].score > 0.999);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(store.collections().await.unwrap()[0].items, 16);
}

#[tokio::test]
async fn pages_are_in_the_order_of_bytes() {
    let engine = Engine::new();
    let store = engine.open().await;
    let names: Vec<String> =
        (0..2500).map(|n| format!("{}{n}", ["a", "Z", "é", "👕", "a/"][n % 5])).collect();
    for part in names.chunks(900) {
        let items = part.iter().map(|name| item(name, 1)).collect();
        assert!(store.upsert(default(), items).await.unwrap().iter().all(Result::is_ok));
    }
    let gone: Vec<_> = names.iter().step_by(3).map(|name| id(name)).collect();
    assert!(store.delete(default(), gone).await.unwrap().into_iter().all(|there| there));
    let left: BTreeSet<&String> =
        names.iter().enumerate().filter(|(n, _)| n % 3 != 0).map(|(_, s)| s).collect();
    for limit in [1000, 333] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.list(default(), after, limit, limit == 333).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            assert!(page.iter().all(|item| item.vector.is_some() == (limit == 333)));
            seen.extend(page.into_iter().map(|item| item.id.to_string()));
        }
        assert!(seen.iter().eq(left.iter().copied()), "{} of {}", seen.len(), left.len());
    }
    assert_eq!(store.collections().await.unwrap()[0].items, left.len() as u64);
}

#[tokio::test]
async fn a_write_of_many_counts_once_for_each_id() {
    let engine = Engine::new();
    let store = engine.open().await;
    let twice = vec![item("a", 1), item("b", 2), item("a", 3)];
    let results = store.upsert(default(), twice).await.unwrap();
    let told: Vec<_> = results.iter().map(|result| result.as_ref().unwrap().created).collect();
    assert_eq!(told, [true, true, false]);
    let kept = store.get(default(), id("a")).await.unwrap().unwrap();
    assert_eq!((kept.vector, kept.seq), (Some(vector(3)), results[2].as_ref().unwrap().seq));
    assert_eq!(store.list(default(), None, 10, false).await.unwrap().len(), 2);
    let there = store.delete(default(), vec![id("a"), id("a")]).await.unwrap();
    assert_eq!(there, [true, false]);
    let large = json!({"text": "x".repeat(Metadata::MAX_BYTES - 11)});
    let metadata = Metadata::from_value(&large).unwrap();
    assert_eq!(metadata.as_str().len(), Metadata::MAX_BYTES);
    upsert(&store, NewItem { metadata: metadata.clone(), ..item("large", 4) }).await.unwrap();
    assert_eq!(store.get(default(), id("large")).await.unwrap().unwrap().metadata, metadata);
}

#[tokio::test]
async fn searches_keep_what_they_promise() {
    let engine = Engine::new();
    let store = engine.open().await;
    let items: Vec<NewItem> = (0..400).map(|n| item(&format!("{n:03}"), n)).collect();
    store.upsert(default(), items).await.unwrap();
    for seed in [7u32, 1000, 1001] {
        let score = |n: u32| vector(n).cosine(&vector(seed));
        let found = store.search(default(), near(seed, 50)).await.unwrap();
        let mut best: Vec<f32> = (0..400).map(score).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(found.len(), 50);
        for (neighbour, best) in found.iter().zip(&best) {
            assert!((neighbour.score - best).abs() < 1e-5, "{neighbour:?} {best}");
            let own = score(neighbour.id.as_str().parse().unwrap());
            assert!((neighbour.score - own).abs() < 1e-5 && neighbour.vector.is_none());
        }
        let query = Query {
            exclude: vec![found[0].id.clone(), found[3].id.clone()],
            min_score: Some(best[20] + 1e-4),
            with_vectors: true,
            ..near(seed, 1000)
        };
        let fewer = store.search(default(), query).await.unwrap();
        assert!((17..=19).contains(&fewer.len()), "{}", fewer.len());
        for neighbour in &fewer {
            assert!(neighbour.id != found[0].id && neighbour.id != found[3].id);
            assert_eq!(neighbour.vector, Some(vector(neighbour.id.as_str().parse().unwrap())));
        }
        assert_eq!(store.search(default(), near(seed, 1000)).await.unwrap().len(), 400);
    }
    // Of equal scores the lesser id comes first.
    let same: Vec<NewItem> = (0..20).rev().map(|n| item(&format!("{n:02}"), 5)).collect();
    store.upsert(named("same"), same).await.unwrap();
    let found = store.search(named("same"), near(5, 12)).await.unwrap();
    assert!(found.iter().map(|near| near.id.to_string()).eq((0..12).map(|n| format!("{n:02}"))));
    let wrong = Query { min_score: Some(1.5), ..near(1, 1) };
    assert_eq!(store.search(default(), wrong).await.unwrap_err().code(), "invalid_min_score");
}

/// Some value of a few, so that filters and metadata meet.
fn scalar(random: &mut ChaCha8Rng) -> Value {
    match random.random_range(0..14) {
        0 => Value::Null,
        1 => json!(random.random::<bool>()),
        2 => json!(""),
        3 => json!("\"q\\ '\u{1}\n👕"),
        4 => json!(9_007_199_254_740_993_i64),
        5 => json!(9_007_199_254_740_992_i64),
        6 => json!(u64::MAX),
        7 => json!(-1.5),
        8 => json!(1.0),
        9 | 10 => json!(random.random_range(-2..3)),
        _ => json!(["red", "blue", "n5"][random.random_range(0..3)]),
    }
}

fn object(random: &mut ChaCha8Rng, depth: usize) -> Value {
    let mut object = serde_json::Map::new();
    for key in ["a", "b", "a.b", "é\"[", "c"] {
        let value = match random.random_range(0..10) {
            0..4 => continue,
            4..7 => scalar(random),
            7 => Value::Array((0..random.random_range(0..4)).map(|_| scalar(random)).collect()),
            8 if depth > 0 => Value::Array(vec![self::object(random, depth - 1), scalar(random)]),
            _ if depth > 0 => self::object(random, depth - 1),
            _ => scalar(random),
        };
        object.insert(key.to_owned(), value);
    }
    Value::Object(object)
}

fn condition(random: &mut ChaCha8Rng) -> Value {
    let scalars = |random: &mut ChaCha8Rng| -> Vec<Value> {
        (0..random.random_range(0..7)).map(|_| scalar(random)).collect()
    };
    let ordered = |random: &mut ChaCha8Rng| loop {
        let value = scalar(random);
        if value.is_number() || value.is_string() {
            break value;
        }
    };
    match random.random_range(0..9) {
        0 | 1 => scalar(random),
        2 => json!({"$ne": scalar(random)}),
        3 => json!({"$in": scalars(random)}),
        4 => json!({"$nin": scalars(random)}),
        5 => json!({"$exists": random.random::<bool>()}),
        6 => json!({"$gt": ordered(random), "$in": scalars(random)}),
        7 => json!({"$gte": ordered(random), "$lt": ordered(random)}),
        _ => json!({"$lte": ordered(random), "$exists": true}),
    }
}

fn filter(random: &mut ChaCha8Rng, depth: usize) -> Value {
    let several = |random: &mut ChaCha8Rng| -> Vec<Value> {
        (0..random.random_range(0..4)).map(|_| filter(random, depth - 1)).collect()
    };
    match random.random_range(0..6) {
        0 if depth > 0 => json!({"$and": several(random)}),
        1 if depth > 0 => json!({"$or": several(random)}),
        2 if depth > 0 => json!({"$not": filter(random, depth - 1)}),
        _ => {
            let fields = ["a", "b", "a.b", "é\"[", "c", "b.a", "a.b.c", "none"];
            let mut object = serde_json::Map::new();
            for _ in 0..random.random_range(1..3) {
                object.insert(fields[random.random_range(0..fields.len())].to_owned(), condition(random));
            }
            Value::Object(object)
        }
    }
}

/// The language of filters has one meaning, whatever the engine makes of it.
#[tokio::test]
async fn filters_mean_the_same() {
    let engine = Engine::new();
    let store = engine.open().await;
    let mut random = ChaCha8Rng::seed_from_u64(20_261_128);
    let mut metadata: Vec<Value> = (0..300).map(|_| object(&mut random, 2)).collect();
    // Too much for what an engine may keep beside the metadata.
    let names = (0..200).map(|n| (format!("{}{n}", "-".repeat(240)), json!(n)));
    let few = [("a", json!(1)), ("b", json!("red"))].map(|(name, value)| (name.to_owned(), value));
    metadata.push(Value::Object(few.into_iter().chain(names).collect()));
    let items = metadata.iter().enumerate().map(|(n, value)| NewItem {
        metadata: Metadata::from_value(value).unwrap(),
        ..item(&n.to_string(), n as u32)
    });
    let results = store.upsert(default(), items.collect()).await.unwrap();
    results.into_iter().for_each(|result| drop(result.unwrap()));
    let mut counts = BTreeMap::new();
    for round in 0..300 {
        let text = filter(&mut random, 3);
        let Ok(parsed) = Filter::from_value(&text) else { panic!("{text}") };
        let holds = |value: &Value| {
            let mut names = FieldNames::default();
            let fields = Fields::of(value.as_object().unwrap(), &mut names);
            CompiledFilter::new(&parsed, |path| names.named(path)).holds(&fields)
        };
        let expected: BTreeSet<String> =
            (0..metadata.len()).filter(|&n| holds(&metadata[n])).map(|n| n.to_string()).collect();
        let query = Query { filter: Some(parsed.clone()), ..near(round, 1000) };
        let found = store.search(default(), query).await.unwrap_or_else(|error| panic!("{text}: {error}"));
        let found: BTreeSet<String> = found.into_iter().map(|near| near.id.to_string()).collect();
        let differ: Vec<_> =
            found.symmetric_difference(&expected).map(|n| &metadata[n.parse::<usize>().unwrap()]).collect();
        assert!(differ.is_empty(), "{text} differs on {differ:?}");
        *counts.entry(expected.len() * 10 / metadata.len()).or_insert(0) += 1;
    }
    assert!(counts.len() > 5, "the filters are of many selectivities: {counts:?}");
}

/// Where no expression can tell which values of a field pass, the search goes on until enough are found.
#[tokio::test]
async fn ranges_over_several_values_are_exact() {
    let engine = Engine::new();
    let store = engine.open().await;
    let wanted = [3usize, 600, 1400];
    for part in [0..1000, 1000..1500] {
        let made = part.map(|n| NewItem {
            metadata: Metadata::from_value(&if wanted.contains(&n) {
                json!({"a": [1, 4, 9]})
            } else {
                json!({"a": [1, 9]})
            })
            .unwrap(),
            ..item(&n.to_string(), n as u32)
        });
        store.upsert(default(), made.collect()).await.unwrap();
    }
    for k in [1, 2, 10] {
        let filter = Some(Filter::from_json(r#"{"a":{"$gte":3,"$lt":5}}"#).unwrap());
        let found = store.search(default(), Query { filter, ..near(5000, k) }).await.unwrap();
        assert_eq!(found.len(), k.min(3));
        let mut best = wanted.map(|n| vector(n as u32).cosine(&vector(5000)));
        best.sort_by(|a, b| b.total_cmp(a));
        assert!(found.iter().zip(best).all(|(near, best)| (near.score - best).abs() < 1e-5));
    }
}

/// Behaves as a map, through a long line of random steps.
#[tokio::test]
async fn behaves_as_a_map() {
    let engine = Engine::new();
    let mut store = engine.open().await;
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut model: BTreeMap<String, u32> = BTreeMap::new();
    let name = |n: u32| format!("{n:02}");
    for step in 0..240 {
        match random.random_range(0..16) {
            0..6 => {
                let pairs: Vec<_> = (0..random.random_range(1..4))
                    .map(|_| (random.random_range(0..20), random.random_range(0..256)))
                    .collect();
                let items = pairs.iter().map(|&(n, seed)| item(&name(n), seed)).collect();
                for (result, (n, seed)) in
                    store.upsert(default(), items).await.unwrap().into_iter().zip(pairs)
                {
                    assert_eq!(result.unwrap().created, model.insert(name(n), seed).is_none(), "step {step}");
                }
            }
            6..9 => {
                let n = name(random.random_range(0..20));
                let there = store.delete(default(), vec![id(&n)]).await.unwrap();
                assert_eq!(there, [model.remove(&n).is_some()], "step {step}");
            }
            9 if step % 5 == 0 => {
                store.drop_collection(default()).await.unwrap();
                model.clear();
            }
            10 => {
                store.close().await.unwrap();
                drop(store);
                store = engine.open().await;
            }
            11..14 => searched(&store, &model, random.random_range(0..256), random.random_range(1..25)).await,
            _ => {
                let (after, limit) = (random.random_range(0..20), random.random_range(1..8));
                let page = store.list(default(), Some(id(&name(after))), limit, true).await.unwrap();
                let expected: Vec<_> = model.range(name(after + 1)..).take(limit).collect();
                assert_eq!(page.len(), expected.len(), "step {step}");
                for (item, (name, seed)) in page.into_iter().zip(expected) {
                    assert_eq!((item.id.as_str(), item.vector), (name.as_str(), Some(vector(*seed))));
                }
            }
        }
    }
}

async fn searched(store: &Arc<dyn Store>, model: &BTreeMap<String, u32>, seed: u32, k: usize) {
    let found = store.search(default(), near(seed, k)).await.unwrap();
    let score = |seed2: &u32| vector(*seed2).cosine(&vector(seed));
    let mut expected: Vec<f32> = model.values().map(score).collect();
    expected.sort_by(|a, b| b.total_cmp(a));
    expected.truncate(k);
    assert_eq!(found.len(), expected.len());
    for (neighbour, expected) in found.iter().zip(expected) {
        assert!((neighbour.score - expected).abs() < 1e-5);
        assert!((score(&model[neighbour.id.as_str()]) - neighbour.score).abs() < 1e-5);
    }
}
