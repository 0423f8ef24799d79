//! Searches for several things at once, diverse neighbours, and near-duplicates: over HTTP, and on the engine that is
//! tested.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use latentd::store::diversify::Diversity;
use latentd::store::duplicates::{self, Listing, Pair};
use latentd::store::{CollectionName, IndexChoice, IndexKind, ItemId, NewItem, Query, Store, examples};
use latentd_model::Embedding;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::store::{CONTRACT as ENCODER, id, item, near, vector};
use crate::support::engine::{Engine, distributed};
use crate::support::{Server, example, problem};

const CONTRACT: &str = "00000000000000aa";

/// A server with points of the plane as items: their angles in degrees are their ids.
async fn with_angles(angles: &[u32]) -> Server {
    let server = Server::start().await;
    for angle in angles {
        let body = json!({ "vector": at(*angle), "contract": CONTRACT, "metadata": { "angle": angle } });
        let at = server.at(&format!("/items/{angle:03}?collection=plane"));
        assert!(server.client.put(at).json(&body).send().await.unwrap().status().is_success());
    }
    server
}

fn at(angle: u32) -> [f64; 2] {
    let angle = f64::from(angle).to_radians();
    [angle.cos(), angle.sin()]
}

async fn search(server: &Server, body: Value) -> Vec<String> {
    let reply = server.post_json("/search?collection=plane", &body).await;
    assert_eq!(reply.status(), 200);
    let reply: Value = reply.json().await.unwrap();
    let neighbours = reply["neighbours"].as_array().unwrap();
    neighbours.iter().map(|neighbour| neighbour["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn several_examples_are_joined_and_left_out() {
    let server = with_angles(&[0, 20, 40, 60, 80, 200]).await;
    let both = json!({ "positive": [{ "id": "020" }, { "id": "060" }], "k": 6 });
    let found = search(&server, both).await;
    assert_eq!((found.len(), found[0].as_str(), found[3].as_str()), (4, "040", "200"));
    let with_them = json!({ "positive": [{ "id": "020" }, { "id": "060" }], "k": 1, "exclude_self": false });
    assert_eq!(search(&server, with_them).await, ["040"]);
    // Away from one: the other side of what is wanted.
    let away = json!({ "positive": [{ "vector": at(40) }], "negative": [{ "id": "060" }], "contract": CONTRACT, "k": 1 });
    assert_eq!(search(&server, away).await, ["000"]);
    for (body, code) in [
        (json!({ "positive": [] }), "invalid_search"),
        (json!({ "positive": [{}] }), "invalid_search"),
        (json!({ "positive": [{ "id": "020" }], "id": "020" }), "invalid_search"),
        (json!({ "negative": [{ "id": "020" }], "id": "020" }), "invalid_search"),
        (json!({ "positive": vec![json!({ "id": "020" }); 65] }), "invalid_search"),
        (json!({ "positive": [{ "id": "020" }], "negative": [{ "id": "020" }] }), "invalid_search"),
        (json!({ "id": "020", "diversity": 1.5 }), "invalid_diversity"),
    ] {
        let reply = server.post_json("/search?collection=plane", &body).await;
        problem(reply, 400, code).await;
    }
    let reply =
        server.post_json("/search?collection=plane", &json!({ "positive": [{ "id": "none" }] })).await;
    problem(reply, 404, "unknown_item").await;
    let mixed = json!({ "positive": [{ "id": "020" }, { "vector": at(3) }], "contract": "00000000000000bb" });
    problem(server.post_json("/search?collection=plane", &mixed).await, 409, "contract_mismatch").await;
}

#[tokio::test]
async fn diverse_neighbours_are_not_all_alike() {
    let server = with_angles(&[1, 2, 3, 4, 40, 320]).await;
    let nearest = json!({ "vector": at(0), "contract": CONTRACT, "k": 3 });
    assert_eq!(search(&server, nearest.clone()).await, ["001", "002", "003"]);
    let mut diverse = nearest;
    diverse["diversity"] = json!(0.5);
    let found = search(&server, diverse).await;
    assert_eq!(found[0], "001");
    assert!(found.contains(&"320".to_owned()), "{found:?}");
}

#[tokio::test]
async fn near_duplicates_are_listed_once_page_by_page() {
    let server = with_angles(&[0, 1, 50, 51, 52, 120]).await;
    let mut pairs = Vec::new();
    let (mut after, mut pages) = (String::new(), 0);
    loop {
        let path = format!("/duplicates?collection=plane&threshold=0.999&limit=2{after}");
        let reply: Value = server.client.get(server.at(&path)).send().await.unwrap().json().await.unwrap();
        for pair in reply["pairs"].as_array().unwrap_or_else(|| panic!("{reply}")) {
            assert!(pair["score"].as_f64().unwrap() >= 0.999);
            pairs.push((pair["id"].as_str().unwrap().to_owned(), pair["other"].as_str().unwrap().to_owned()));
        }
        pages += 1;
        let Some(next) = reply["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    pairs.sort();
    let expected = [("000", "001"), ("050", "051"), ("050", "052"), ("051", "052")];
    assert_eq!(pairs, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert!(pages >= 3);
    for (query, code) in [
        ("threshold=2", "invalid_threshold"),
        ("threshold=nan", "invalid_threshold"),
        ("limit=0", "invalid_limit"),
        ("limit=1001", "invalid_limit"),
        ("other=1", "invalid_query"),
    ] {
        let reply = server.client.get(server.at(&format!("/duplicates?{query}"))).send().await.unwrap();
        problem(reply, 400, code).await;
    }
    let unknown = server.client.get(server.at("/duplicates?collection=none")).send().await.unwrap();
    problem(unknown, 404, "unknown_collection").await;
}

#[tokio::test]
async fn pictures_are_joined_in_every_form() {
    use base64::Engine;
    let server = Server::start().await;
    for name in ["hat-1", "hat-2", "shoes-1", "shoes-2", "pants-1"] {
        let at = server.at(&format!("/items/{name}"));
        let put = server.client.put(at).header("content-type", "image/jpeg").body(example(name));
        assert_eq!(put.send().await.unwrap().status(), 201);
    }
    let image =
        |name: &str| json!({ "image": base64::engine::general_purpose::STANDARD.encode(example(name)) });
    let ids =
        json!({ "positive": [{ "id": "hat-1" }, { "id": "shoes-1" }], "negative": [{ "id": "pants-1" }] });
    let pictures = json!({ "positive": [image("hat-1"), image("shoes-1")], "negative": [image("pants-1")] });
    let mut replies: Vec<Value> = Vec::new();
    for mut body in [ids, pictures] {
        body["exclude_self"] = json!(false);
        replies.push(server.post_json("/search", &body).await.json().await.unwrap());
    }
    let part = |name: &str| Part::bytes(example(name)).file_name("picture");
    let form = Form::new()
        .part("image", part("hat-1"))
        .part("negative", part("pants-1"))
        .part("image", part("shoes-1"));
    let reply = server.client.post(server.at("/search")).multipart(form).send().await.unwrap();
    replies.push(reply.json().await.unwrap());
    let scores = |reply: &Value| -> BTreeMap<String, f64> {
        let neighbours = reply["neighbours"].as_array().unwrap_or_else(|| panic!("{reply}"));
        let score = |one: &Value| (one["id"].as_str().unwrap().to_owned(), one["score"].as_f64().unwrap());
        neighbours.iter().map(score).collect()
    };
    let first = scores(&replies[0]);
    assert_eq!(first.len(), 5);
    let further = |a: &str, b: &str| assert!(first[a] < first[b], "{first:?}");
    further("hat-2", "hat-1");
    further("shoes-2", "shoes-1");
    ["hat-1", "hat-2", "shoes-1", "shoes-2"].iter().for_each(|other| further("pants-1", other));
    for reply in &replies {
        let scores = scores(reply);
        assert!(scores.iter().all(|(id, score)| (score - first[id]).abs() < 1e-3), "{scores:?} {first:?}");
    }
    let form = Form::new().part("negative", part("pants-1"));
    let reply = server.client.post(server.at("/search")).multipart(form).send().await.unwrap();
    problem(reply, 400, "invalid_search").await;
    let broken = json!({ "positive": [image("hat-1"), { "image": "aGk=" }] });
    problem(server.post_json("/search", &broken).await, 415, "unsupported_format").await;
    server.stop().await;
}

/// All pages of a collection's pairs.
async fn pairs(store: &dyn Store, threshold: f32, limit: usize) -> Vec<Pair> {
    let (mut pairs, mut after, mut examined) = (Vec::new(), None, 0);
    loop {
        let collection = CollectionName::default();
        let listing = Listing { collection, threshold, after, limit, time: Duration::from_secs(60) };
        let page = duplicates::page(store, listing).await.unwrap();
        assert!(page.examined <= limit);
        (examined, after) = (examined + page.examined, page.next);
        pairs.extend(page.pairs);
        if after.is_none() {
            assert_eq!(examined as u64, store.collections().await.unwrap()[0].items);
            return pairs;
        }
    }
}

/// Waits until a graph leads to all items, where one is asked for.
async fn linked(store: &dyn Store, choice: IndexChoice) {
    if choice != IndexChoice::Hnsw {
        return;
    }
    loop {
        let info = store.collections().await.unwrap()[0].index;
        if info.kind == IndexKind::Hnsw && info.waiting == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn near_duplicates_are_those_of_comparing_all() {
    let choices = match distributed() {
        Some(_) => vec![IndexChoice::Auto],
        None => vec![IndexChoice::Exact, IndexChoice::Hnsw],
    };
    for choice in choices {
        let mut engine = Engine::new();
        engine.config.index = choice;
        let store = engine.open().await;
        let vectors: Vec<Embedding> = (0..400u32).map(|n| vector(n % 350)).collect();
        let items: Vec<NewItem> = (0..400u32).map(|n| item(&format!("{n:03}"), n % 350)).collect();
        store
            .upsert(CollectionName::default(), items)
            .await
            .unwrap()
            .into_iter()
            .for_each(|one| drop(one.unwrap()));
        linked(&*store, choice).await;
        let threshold = 0.98;
        let mut expected = BTreeSet::new();
        for a in 0..400 {
            for b in a + 1..400 {
                let score = vectors[a].cosine(&vectors[b]);
                assert!((score - threshold).abs() > 1e-6, "the test stands on a knife's edge");
                if score > threshold {
                    expected.insert((id(&format!("{a:03}")), id(&format!("{b:03}"))));
                }
            }
        }
        assert!(expected.len() > 50);
        for limit in [1000, 37] {
            let found = pairs(&*store, threshold, limit).await;
            let told: BTreeSet<(ItemId, ItemId)> =
                found.iter().map(|pair| (pair.id.clone(), pair.other.clone())).collect();
            assert_eq!(told.len(), found.len(), "each pair once");
            assert_eq!(told, expected, "{choice:?}, pages of {limit}");
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn no_copy_is_left_out_where_there_are_more_than_are_looked_at() {
    let engine = Engine::new();
    let store = engine.open().await;
    let items: Vec<NewItem> =
        (0..260u32).map(|n| item(&format!("{n:03}"), 5 + u32::from(n == 259))).collect();
    store.upsert(CollectionName::default(), items).await.unwrap();
    let found = pairs(&*store, 0.999, 100).await;
    // The copies hang together; the one that is none is in no pair.
    let mut group: Vec<usize> = (0..260).collect();
    fn leader(group: &[usize], mut n: usize) -> usize {
        while group[n] != n {
            n = group[n];
        }
        n
    }
    for pair in &found {
        assert!(pair.id < pair.other && pair.score > 0.999);
        let [a, b] = [&pair.id, &pair.other].map(|id| leader(&group, id.as_str().parse().unwrap()));
        group[a.max(b)] = a.min(b);
    }
    assert!((0..259).all(|n| leader(&group, n) == 0));
    assert_eq!(leader(&group, 259), 259);
    // A page whose time is over ends, and tells where to go on.
    let (collection, time) = (CollectionName::default(), Duration::ZERO);
    let listing = Listing { collection, threshold: 0.999, after: None, limit: 100, time };
    let page = duplicates::page(&*store, listing).await.unwrap();
    assert_eq!((page.examined, page.next), (1, Some(id("000"))));
    store.close().await.unwrap();
}

#[tokio::test]
async fn several_and_diverse_on_any_engine() {
    let engine = Engine::new();
    let store = engine.open().await;
    let items: Vec<NewItem> = (0..300u32).map(|n| item(&format!("{n:03}"), n % 100)).collect();
    store.upsert(CollectionName::default(), items).await.unwrap();
    let of = |seed| (vector(seed), ENCODER);
    let (joined, contract) =
        examples::joined(&CollectionName::default(), &[of(3), of(8)], &[of(50)]).unwrap();
    let query = Query { vector: joined.clone(), contract, k: 300, with_vectors: true, ..near(0, 1) };
    let found = store.search(CollectionName::default(), query.clone()).await.unwrap();
    assert_eq!(found.len(), 300);
    for neighbour in &found {
        let own = vector(neighbour.id.as_str().parse::<u32>().unwrap() % 100);
        assert!((neighbour.score - joined.cosine(&own)).abs() < 1e-5);
    }
    // Each vector is there three times: the nearest ten are four of them, ten that differ are ten.
    let seeds = |found: &[latentd::store::Neighbour]| -> BTreeSet<u32> {
        found.iter().map(|near| near.id.as_str().parse::<u32>().unwrap() % 100).collect()
    };
    assert_eq!(seeds(&found[..10]).len(), 4);
    let [slight, full] = [0.3, 1.0].map(|value| Diversity::new(value).unwrap());
    let some = Query { k: full.candidates(10), ..query };
    let some = store.search(CollectionName::default(), some).await.unwrap();
    let little = slight.choose(some.clone(), 10, || false);
    assert!(little.len() == 10 && seeds(&little).len() > 4);
    let diverse = full.choose(some, 10, || false);
    assert_eq!((diverse.len(), seeds(&diverse).len()), (10, 10));
    assert!(little[0].id == found[0].id && diverse[0].id == found[0].id);
    store.close().await.unwrap();
}
