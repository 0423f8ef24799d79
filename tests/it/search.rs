//! Search over HTTP: near to a picture, an item or a vector, within a filter.

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::support::{Server, cosine, example, examples, problem};

const CONTRACT: &str = "00000000000000aa";

/// A server that has all example pictures as items of their names, the kind as metadata.
async fn with_examples() -> Server {
    let server = Server::start().await;
    let mut form = Form::new();
    let mut metadata = serde_json::Map::new();
    for (name, bytes) in examples() {
        form = form.part("image", Part::bytes(bytes).file_name(name.clone()));
        let kind = name.rsplit_once('-').unwrap().0.to_owned();
        metadata.insert(name.clone(), json!({ "kind": kind, "letters": name.len() }));
    }
    let form = form.text("metadata", Value::Object(metadata).to_string());
    let reply: Value =
        server.client.post(server.at("/items")).multipart(form).send().await.unwrap().json().await.unwrap();
    assert_eq!(reply["failed"], 0, "{reply}");
    server
}

fn ids(reply: &Value) -> Vec<&str> {
    let neighbours = reply["neighbours"].as_array().unwrap_or_else(|| panic!("{reply}"));
    neighbours.iter().map(|neighbour| neighbour["id"].as_str().unwrap()).collect()
}

async fn found(server: &Server, path: &str, body: &Value) -> Value {
    let reply = server.post_json(path, body).await;
    assert_eq!(reply.status(), 200);
    reply.json().await.unwrap()
}

#[tokio::test]
async fn every_form_finds_the_same() {
    use base64::Engine;
    let server = with_examples().await;
    let picture = example("shoes-1");
    let raw: Value = server.post("/search?k=4", picture.clone()).await.json().await.unwrap();
    assert_eq!((ids(&raw).len(), ids(&raw)[0]), (4, "shoes-1"));
    assert!(raw["neighbours"][0]["score"].as_f64().unwrap() > 0.999_99);
    assert_eq!(raw["neighbours"][0]["metadata"], json!({"kind": "shoes", "letters": 7}));
    let form: Value = server.post_form("/search?k=4", vec![picture.clone()]).await.json().await.unwrap();
    let image = base64::engine::general_purpose::STANDARD.encode(&picture);
    let json = found(&server, "/search", &json!({"image": image, "k": 4})).await;
    let inputs = found(&server, "/search?k=4", &json!({"inputs": [{"image": image}]})).await;
    let vector = server.embed(&picture).await;
    let contract = &raw["contract"];
    let by_vector = found(&server, "/search", &json!({"vector": vector, "contract": contract, "k": 4})).await;
    let by_id = found(&server, "/search", &json!({"id": "shoes-1", "k": 4, "exclude_self": false})).await;
    for reply in [&form, &json, &inputs, &by_vector, &by_id] {
        assert_eq!(ids(reply), ids(&raw));
    }
    // Scores are those of the vectors.
    let all = found(&server, "/search", &json!({"id": "shoes-1", "k": 100})).await;
    assert_eq!(ids(&all).len(), examples().len() - 1);
    for neighbour in all["neighbours"].as_array().unwrap() {
        let other = server.embed(&example(neighbour["id"].as_str().unwrap())).await;
        assert!((neighbour["score"].as_f64().unwrap() - cosine(&vector, &other)).abs() < 1e-4);
    }
    server.stop().await;
}

#[tokio::test]
async fn filters_include_and_bounds_are_kept() {
    let server = with_examples().await;
    let filtered =
        found(&server, "/search", &json!({"id": "hat-1", "filter": {"kind": {"$in": ["shoes", "skirt"]}}}))
            .await;
    let mut names = ids(&filtered);
    names.sort_unstable();
    assert_eq!(names, ["shoes-1", "shoes-2", "skirt-1"]);
    let unfiltered = json!({"id": "hat-1", "filter": null, "k": 100});
    assert_eq!(ids(&found(&server, "/search", &unfiltered).await).len(), examples().len() - 1);
    let query = "/search?filter=%7B%22letters%22%3A%7B%22%24lt%22%3A6%7D%7D&include=vector";
    let raw: Value = server.post(query, example("hat-1")).await.json().await.unwrap();
    assert_eq!((ids(&raw).len(), ids(&raw)[0]), (2, "hat-1"));
    assert!(raw["neighbours"][0].get("metadata").is_none());
    assert!(raw["neighbours"][0]["vector"].as_array().unwrap().len() > 1);
    let none = found(&server, "/search", &json!({"id": "hat-1", "include": [], "min_score": 1.0})).await;
    assert!(ids(&none).is_empty());
    let bare = found(&server, "/search", &json!({"id": "hat-1", "include": [], "k": 1})).await;
    assert_eq!(bare["neighbours"][0].as_object().unwrap().len(), 2);
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_searched_is_a_clear_problem() {
    let server = with_examples().await;
    for (body, status, code) in [
        (json!({}), 400, "invalid_search"),
        (json!({"id": "a", "image": "aGk="}), 400, "invalid_search"),
        (json!({"inputs": []}), 400, "invalid_search"),
        (json!({"id": "none"}), 404, "unknown_item"),
        (json!({"id": ""}), 400, "invalid_id"),
        (json!({"vector": [1, 2]}), 400, "missing_contract"),
        (json!({"vector": [], "contract": CONTRACT}), 400, "invalid_vector"),
        (json!({"vector": [1, 2], "contract": CONTRACT}), 409, "contract_mismatch"),
        (json!({"id": "hat-1", "k": 0}), 400, "invalid_k"),
        (json!({"id": "hat-1", "k": 1001}), 400, "invalid_k"),
        (json!({"id": "hat-1", "k": -1}), 400, "invalid_json"),
        (json!({"id": "hat-1", "min_score": 2}), 400, "invalid_min_score"),
        (json!({"id": "hat-1", "filter": []}), 400, "invalid_filter"),
        (json!({"id": "hat-1", "filter": {"$xor": []}}), 400, "invalid_filter"),
        (json!({"id": "hat-1", "filter": {"a": {"$gt": [1]}}}), 400, "invalid_filter"),
        (json!({"id": "hat-1", "top_k": 3}), 400, "invalid_json"),
    ] {
        problem(server.post_json("/search", &body).await, status, code).await;
    }
    // What a search tries on every item is bounded, whatever it is made of.
    for (filter, told) in [
        (json!({"$or": vec![json!({"$not": {}}); 2000]}), "1024 parts"),
        (json!({"a": "x".repeat(300_000)}), "262144 are taken"),
    ] {
        let reply = server.post_json("/search", &json!({"id": "hat-1", "filter": filter})).await;
        let problem = problem(reply, 400, "invalid_filter").await;
        assert!(problem["detail"].as_str().unwrap().contains(told), "{problem}");
    }
    let text =
        problem(server.post("/search?filter=%7B", example("hat-1")).await, 400, "invalid_filter").await;
    assert!(text["detail"].as_str().unwrap().contains("no JSON"), "{text}");
    problem(server.post("/search?collection=none", example("hat-1")).await, 404, "unknown_collection").await;
    problem(server.post("/search", "text").await, 415, "unsupported_format").await;
    problem(server.post("/search", "").await, 400, "empty_image").await;
    server.stop().await;
}

#[tokio::test]
async fn an_empty_server_has_no_neighbours() {
    let server = Server::start().await;
    let reply: Value = server.post("/search", example("hat-1")).await.json().await.unwrap();
    assert_eq!((ids(&reply).len(), reply["collection"].as_str()), (0, Some("default")));
    server.stop().await;
}
