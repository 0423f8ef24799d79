//! Searches for several things at once, diverse neighbours, and near-duplicates.

use serde_json::{Value, json};

use crate::support::{Server, problem};

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
    for query in ["threshold=2", "limit=0", "limit=1001", "other=1"] {
        let reply = server.client.get(server.at(&format!("/duplicates?{query}"))).send().await.unwrap();
        assert_eq!(reply.status(), 400, "{query}");
    }
    let unknown = server.client.get(server.at("/duplicates?collection=none")).send().await.unwrap();
    problem(unknown, 404, "unknown_collection").await;
}
