//! Items and collections over HTTP: written, read, listed, deleted, in every form.

use latentd::store::{CollectionName, Metadata, NewItem};
use reqwest::StatusCode;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::store::item;
use crate::support::{Server, cosine, example, problem};

const CONTRACT: &str = "00000000000000aa";

fn file(name: &str, bytes: Vec<u8>) -> Part {
    Part::bytes(bytes).file_name(name.to_owned())
}

impl Server {
    async fn put(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.put(self.at(path)).json(body).send().await.unwrap()
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.at(path)).send().await.unwrap()
    }

    async fn delete(&self, path: &str) -> reqwest::Response {
        self.client.delete(self.at(path)).send().await.unwrap()
    }

    async fn put_picture(&self, path: &str, name: &str) -> reqwest::Response {
        self.client
            .put(self.at(path))
            .header("content-type", "image/jpeg")
            .body(example(name))
            .send()
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_picture_becomes_an_item_in_three_forms() {
    use base64::Engine;
    let server = Server::start().await;
    let reply = server.put_picture("/items/hats%2F1?metadata=%7B%22kind%22%3A%22hat%22%7D", "hat-1").await;
    assert_eq!(reply.status(), StatusCode::CREATED);
    let reply: Value = reply.json().await.unwrap();
    let seq = reply["seq"].as_u64().filter(|seq| *seq > 0);
    assert_eq!(reply, json!({"id": "hats/1", "collection": "default", "created": true, "seq": seq}));
    let form =
        Form::new().part("file", file("x.jpg", example("hat-1"))).text("metadata", r#"{"kind":"hat"}"#);
    let sent = server.client.put(server.at("/items/2")).multipart(form).send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::CREATED, "{}", sent.text().await.unwrap());
    let typed = Part::text(r#"{"kind":"hat"}"#).mime_str("application/json").unwrap();
    let form = Form::new().part("metadata", typed).part("file", file("x.jpg", example("hat-1")));
    let sent = server.client.put(server.at("/items/3")).multipart(form).send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::CREATED);
    let image = base64::engine::general_purpose::STANDARD.encode(example("hat-1"));
    let sent = server.put("/items/4", &json!({"image": image, "metadata": {"kind": "hat"}})).await;
    assert_eq!(sent.status(), StatusCode::CREATED);
    let sent = server.put("/items/4", &json!({"image": image, "metadata": {"kind": "hat"}})).await;
    assert_eq!(sent.status(), StatusCode::OK);

    let info = server.get_json("/info").await;
    let vector = server.embed(&example("hat-1")).await;
    for id in ["hats%2F1", "2", "3", "4"] {
        let item = server.get_json(&format!("/items/{id}?include=vector")).await;
        assert_eq!(item["metadata"], json!({"kind": "hat"}));
        assert_eq!(item["contract"], info["model"]["contract"]);
        assert_eq!(item["has_image"], true);
        assert_eq!(item["content_hash"].as_str().unwrap().len(), 64);
        let kept: Vec<f32> =
            item["vector"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect();
        assert!(cosine(&kept, &vector) > 0.999_99);
    }
    let plain = server.get_json("/items/2").await;
    assert!(plain.get("vector").is_none());
    assert!(plain["created"].as_str().unwrap().ends_with('Z'));
    server.stop().await;
}

#[tokio::test]
async fn the_thumbnail_is_a_small_jpeg_that_caches_ask_about() {
    let server = Server::start().await;
    server.put_picture("/items/a", "outwear-1").await;
    let reply = server.get("/items/a/image").await;
    assert_eq!(
        (reply.status(), &reply.headers()["content-type"]),
        (StatusCode::OK, &"image/jpeg".parse().unwrap())
    );
    let tag = reply.headers()["etag"].clone();
    assert_eq!(tag.len(), 66, "a strong tag is a whole hash");
    let thumbnail = image::load_from_memory(&reply.bytes().await.unwrap()).unwrap();
    assert!(thumbnail.width().max(thumbnail.height()) <= 256);
    let again =
        server.client.get(server.at("/items/a/image")).header("if-none-match", tag).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    server.put("/items/v?collection=v", &json!({"vector": [1, 0], "contract": CONTRACT})).await;
    problem(server.get("/items/v/image?collection=v").await, 404, "no_image").await;
    problem(server.get("/items/none/image").await, 404, "unknown_item").await;
    server.stop().await;
}

#[tokio::test]
async fn items_are_listed_in_pages_and_deleted() {
    let server = Server::start().await;
    let items: Vec<Value> =
        (0..25).map(|n| json!({"id": format!("{n:02}/é"), "vector": [1, n], "contract": CONTRACT})).collect();
    let reply = server.post_json("/items?collection=c", &json!({"items": items})).await;
    assert_eq!(reply.json::<Value>().await.unwrap()["indexed"], 25);
    let (mut seen, mut path) = (Vec::new(), "/items?collection=c&limit=10".to_owned());
    loop {
        let page = server.get_json(&path).await;
        let ids =
            page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned());
        seen.extend(ids);
        let Some(next) = page["next"].as_str() else { break };
        let next = next.replace('/', "%2F").replace('é', "%C3%A9");
        path = format!("/items?collection=c&limit=10&after={next}");
    }
    assert_eq!(seen, (0..25).map(|n| format!("{n:02}/é")).collect::<Vec<_>>());
    let at = "/items/07%2F%C3%A9?collection=c";
    assert_eq!(server.get(at).await.status(), 200);
    assert_eq!(server.delete(at).await.status(), 204);
    problem(server.delete(at).await, 404, "unknown_item").await;
    problem(server.get(at).await, 404, "unknown_item").await;
    let collections = server.get_json("/collections").await;
    assert_eq!(collections["collections"][0]["name"], "c");
    assert_eq!(
        (&collections["collections"][0]["items"], &collections["collections"][0]["dim"]),
        (&json!(24), &json!(2))
    );
    assert_eq!(server.delete("/collections/c").await.status(), 204);
    problem(server.delete("/collections/c").await, 404, "unknown_collection").await;
    problem(server.get("/items?collection=c").await, 404, "unknown_collection").await;
    server.stop().await;
}

#[tokio::test]
async fn a_page_of_large_metadata_ends_early() {
    let server = Server::start().await;
    // Small lists, as a tree of which it would take a hundred times the memory.
    let metadata = json!({ "a": vec![json!([]); 500], "b": "x".repeat(60_000) });
    let metadata = Metadata::from_value(&metadata).unwrap();
    let items: Vec<NewItem> =
        (0..320).map(|n| NewItem { metadata: metadata.clone(), ..item(&format!("{n:03}"), n) }).collect();
    for items in items.chunks(100) {
        server.app.store.upsert(CollectionName::default(), items.to_vec()).await.unwrap();
    }
    let (mut seen, mut pages, mut path) = (Vec::new(), 0, "/items?limit=1000".to_owned());
    loop {
        let text = server.get(&path).await.text().await.unwrap();
        assert!(text.len() < 16 << 20, "{}", text.len());
        assert!(text.contains(&format!("\"metadata\":{},", metadata.as_str())));
        let page: Value = serde_json::from_str(&text).unwrap();
        let ids = page["items"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned());
        seen.extend(ids);
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/items?limit=1000&after={next}");
    }
    assert_eq!(seen, (0..320).map(|n| format!("{n:03}")).collect::<Vec<_>>());
    assert!(pages > 1);
    let few = server.get_json("/items?limit=130").await;
    assert_eq!((few["items"].as_array().unwrap().len(), few["next"].as_str()), (130, Some("129")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_nobody_reads_are_bounded() {
    // The bound of replies has a least, of four of these.
    let server = Server::with(|config| {
        config.max_body_bytes = 24 << 20;
        config.queue_bytes = 24 << 20;
    })
    .await;
    let metadata = Metadata::from_value(&json!({ "a": "x".repeat(60_000) })).unwrap();
    let items: Vec<NewItem> =
        (0..250).map(|n| NewItem { metadata: metadata.clone(), ..item(&format!("{n:03}"), n) }).collect();
    server.app.store.upsert(CollectionName::default(), items).await.unwrap();
    let search = json!({ "id": "000", "k": 250 });
    let found = server.post_json("/search", &search).await;
    assert!(found.bytes().await.unwrap().len() > 14 << 20);
    let settled = |bytes: fn(usize) -> bool| {
        let replies = server.app.replies.admission().clone();
        async move {
            let began = std::time::Instant::now();
            while !bytes(replies.bytes()) {
                assert!(began.elapsed().as_secs() < 10, "{}", replies.bytes());
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    };
    settled(|bytes| bytes == 0).await;
    // Some of which the clients read nothing.
    let body = search.to_string();
    let head = format!(
        "POST /search HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut unread = Vec::new();
    for _ in 0..4 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(server.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        unread.push(stream);
    }
    settled(|bytes| bytes > 56 << 20).await;
    // The one that was read from the longest ago makes room.
    let began = std::time::Instant::now();
    loop {
        let reply = server.post_json("/search", &search).await;
        if reply.status() == 200 {
            assert!(reply.bytes().await.unwrap().len() > 14 << 20);
            break;
        }
        let refused = problem(reply, 503, "overloaded").await;
        assert!(refused["detail"].as_str().unwrap().contains("ask again, or for less"), "{refused}");
        assert!(began.elapsed().as_secs() < 60);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let mut ended = Vec::new();
    for stream in &mut unread {
        let mut read = Vec::new();
        let all = tokio::time::timeout(std::time::Duration::from_secs(60), stream.read_to_end(&mut read));
        // Broken off, by an end or a reset.
        let _ = all.await.unwrap();
        ended.push(read.len() < 14 << 20);
    }
    assert!(ended.contains(&true), "{ended:?}");
    assert_eq!(server.post_json("/search", &json!({ "id": "000", "k": 2 })).await.status(), 200);
    assert_eq!(server.post("/embed", example("hat-1")).await.status(), 200);
    drop(unread);
    settled(|bytes| bytes == 0).await;
    assert_eq!(server.post_json("/search", &search).await.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn in_bulk_each_item_fails_alone() {
    let server = Server::start().await;
    let form = Form::new()
        .part("image", file("shirts/1.jpg", example("t-shirt-1")))
        .part("image", file("ключ \"q\".jpg", example("hat-1")))
        .part("broken", file("broken.jpg", b"text".to_vec()))
        .text("metadata", r#"{"shirts/1.jpg":{"n":1}}"#);
    let reply = server.client.post(server.at("/items")).multipart(form).send().await.unwrap();
    let reply: Value = reply.json().await.unwrap();
    assert_eq!((&reply["indexed"], &reply["failed"]), (&json!(2), &json!(1)), "{reply}");
    assert_eq!(reply["results"][1]["id"], "ключ \"q\".jpg");
    assert_eq!(reply["results"][2]["error"]["code"], "unsupported_format");
    assert_eq!(server.get_json("/items/shirts%2F1.jpg").await["metadata"]["n"], 1);

    let lines = format!(
        "{}\n{}\n\nnot json\n{}\n",
        json!({"id": "a", "vector": [1, 2], "contract": CONTRACT, "metadata": {"n": 1}}),
        json!({"id": "b", "vector": [1, 2], "contract": "00000000000000bb"}),
        json!({"id": "c", "vector": [1, 2, 3], "contract": CONTRACT}),
    );
    let request =
        server.client.post(server.at("/items?collection=v")).header("content-type", "application/x-ndjson");
    let reply: Value = request.body(lines).send().await.unwrap().json().await.unwrap();
    let codes: Vec<_> =
        reply["results"].as_array().unwrap().iter().map(|one| one["error"]["code"].as_str()).collect();
    assert_eq!(codes, [None, Some("contract_mismatch"), Some("invalid_json"), Some("dimension_mismatch")]);
    assert_eq!((&reply["results"][0]["created"], &reply["results"][3]["id"]), (&json!(true), &json!("c")));
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_written_is_a_clear_problem() {
    let server = Server::start().await;
    let vector = json!({"vector": [1, 2], "contract": CONTRACT});
    assert_eq!(server.put("/items/a", &vector).await.status(), 201);
    // The collection now holds vectors of another encoder than the one that serves.
    let mismatch = problem(server.put_picture("/items/b", "hat-1").await, 409, "contract_mismatch").await;
    let ours = server.get_json("/info").await["model"]["contract"].clone();
    assert_eq!((&mismatch["collection_contract"], &mismatch["vector_contract"]), (&json!(CONTRACT), &ours));
    let text = mismatch["detail"].as_str().unwrap();
    assert!(text.contains(CONTRACT) && text.contains(ours.as_str().unwrap()), "{text}");
    for (path, body, status, code) in [
        ("/items/..%2F..?collection=-", vector.clone(), 400, "invalid_collection"),
        ("/items/a%00", vector.clone(), 400, "invalid_id"),
        ("/items/a", json!({"vector": [1, 2]}), 400, "missing_contract"),
        ("/items/a", json!({"vector": [0, 0], "contract": CONTRACT}), 400, "invalid_vector"),
        ("/items/a", json!({"vector": vec![1; 65_537], "contract": CONTRACT}), 400, "invalid_vector"),
        ("/items/a", json!({"vector": [1, 2, 3], "contract": CONTRACT}), 400, "dimension_mismatch"),
        ("/items/a", json!({"vector": [1, 2], "contract": "xyz"}), 400, "invalid_json"),
        ("/items/a", json!({"vector": [1, 2], "contract": CONTRACT, "metadata": 3}), 400, "invalid_metadata"),
        // Of the encoder that serves, in a collection that is not there yet.
        ("/items/a?collection=new", json!({"vector": [1, 2], "contract": ours}), 400, "dimension_mismatch"),
        ("/items/a", json!({"metadata": {}}), 400, "invalid_item"),
        ("/items/a", json!({"image": "aGk=", "vector": [1]}), 400, "invalid_item"),
        ("/items/a", json!({"image": "?"}), 400, "invalid_base64"),
        ("/items/a", json!({"image": "aGk="}), 415, "unsupported_format"),
        ("/items/a", json!({"id": "b", "image": "aGk="}), 400, "invalid_item"),
        ("/items/a?metadata=%7B%7D", vector.clone(), 400, "invalid_query"),
        ("/items/a?colection=x", vector.clone(), 400, "invalid_query"),
        ("/items/a?collection=%ff", vector.clone(), 400, "invalid_query"),
    ] {
        problem(server.put(path, &body).await, status, code).await;
    }
    let long = format!("/items/{}", "x".repeat(513));
    problem(server.put(&long, &vector).await, 400, "invalid_id").await;
    let large = json!({"vector": [1, 2], "contract": CONTRACT, "metadata": {"a": "x".repeat(70_000)}});
    problem(server.put("/items/a", &large).await, 400, "invalid_metadata").await;
    problem(server.get("/items/a/b").await, 404, "route_not_found").await;
    problem(server.get("/items?limit=1001").await, 400, "invalid_limit").await;
    problem(server.get("/items/a?include=colour").await, 400, "invalid_query").await;
    problem(server.post_json("/items", &json!({"items": []})).await, 400, "no_inputs").await;
    problem(server.post("/items", example("hat-1")).await, 415, "unsupported_media_type").await;
    let many: Vec<Value> = (0..10_001).map(|n| json!({ "id": n.to_string() })).collect();
    problem(server.post_json("/items", &json!({"items": many})).await, 413, "too_many_items").await;
    server.stop().await;
}
