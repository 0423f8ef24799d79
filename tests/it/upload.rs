//! Bulk writes that are answered as they go.

use std::convert::Infallible;

use bytes::Bytes;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{Server, example, problem};

const CONTRACT: &str = "00000000000000aa";
const LINES: &str = "application/x-ndjson";

fn line(id: &str, n: usize) -> String {
    json!({ "id": id, "vector": [1, n], "contract": CONTRACT, "metadata": { "n": n } }).to_string() + "\n"
}

/// The lines of an answer, read as they come.
struct Answer {
    reply: reqwest::Response,
    rest: Vec<u8>,
}

impl Answer {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        let reply = request.header("accept", LINES).send().await.unwrap();
        assert_eq!(
            (reply.status(), reply.headers()["content-type"].to_str().unwrap()),
            (reqwest::StatusCode::OK, LINES)
        );
        Self { reply, rest: Vec::new() }
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            self.rest.extend(self.reply.chunk().await.unwrap()?);
        }
    }

    /// The lines of items, and the last one.
    async fn all(mut self) -> (Vec<Value>, Value) {
        let (mut items, mut last) = (Vec::new(), Value::Null);
        while let Some(line) = self.next().await {
            assert!(last["done"] != true && last.get("error").is_none(), "{line} after {last}");
            match line.get("index") {
                Some(index) => {
                    assert_eq!(index, items.len());
                    items.push(line);
                }
                None => last = line,
            }
        }
        (items, last)
    }
}

#[tokio::test]
async fn lines_are_durable_before_the_body_has_ended() {
    let server = Server::start().await;
    let (sender, receiver) = mpsc::unbounded_channel::<String>();
    let pieces = futures::stream::unfold(receiver, |mut receiver| async {
        Some((Ok::<_, Infallible>(Bytes::from(receiver.recv().await?)), receiver))
    });
    sender.send(line("a", 1) + &line("b", 2) + "\n").unwrap();
    let (mut begin, third) = (line("c", 3), 9);
    let end = begin.split_off(third);
    let post = server.client.post(server.at("/items?collection=c")).header("content-type", LINES);
    let mut answer = Answer::of(post.body(reqwest::Body::wrap_stream(pieces))).await;
    let first = answer.next().await.unwrap();
    assert_eq!((&first["index"], &first["id"], &first["created"]), (&json!(0), &json!("a"), &json!(true)));
    assert!(first["seq"].as_u64().unwrap() > 0);
    assert_eq!(answer.next().await.unwrap()["id"], "b");
    assert_eq!(answer.next().await.unwrap(), json!({ "indexed": 2, "failed": 0, "done": false }));
    assert_eq!(server.get_json("/items/b?collection=c").await["metadata"]["n"], 2);
    // Half a line is not yet one, and a broken one fails alone.
    sender.send(begin).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    sender.send(end + "{broken\n" + &line("d", 4)).unwrap();
    drop(sender);
    let mut codes = Vec::new();
    let last = loop {
        let line = answer.next().await.unwrap();
        if line["done"] == true {
            break line;
        }
        if line.get("index").is_some() {
            codes.push(line["error"]["code"].as_str().map(str::to_owned));
        }
    };
    assert_eq!(codes, [None, Some("invalid_json".to_owned()), None]);
    assert_eq!(last, json!({ "indexed": 4, "failed": 1, "done": true }));
    assert!(answer.next().await.is_none());
    assert_eq!(server.app.admission.bytes(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_body_may_be_longer_than_memory_holds() {
    let bounded = |config: &mut latentd::config::Config| {
        (config.max_body_bytes, config.queue_bytes) = (32 << 10, 1 << 20);
    };
    let server = Server::with(bounded).await;
    // An id comes back in every batch: the last one counts.
    let body: String = (0..20_000).map(|n| line(&format!("{}", n % 70), n)).collect();
    assert!(body.len() > server.app.config.queue_bytes);
    let post = |accept: bool| {
        let post = server.client.post(server.at("/items?collection=c")).header("content-type", LINES);
        let post = post.body(body.clone());
        if accept { post.header("accept", "text/plain, application/x-ndjson; q=0.5") } else { post }
    };
    problem(post(false).send().await.unwrap(), 413, "body_too_large").await;
    let (items, last) = Answer::of(post(true)).await.all().await;
    assert_eq!(last, json!({ "indexed": 20_000, "failed": 0, "done": true }));
    let seqs: Vec<u64> = items.iter().map(|item| item["seq"].as_u64().unwrap()).collect();
    assert!(seqs.is_sorted() && items.iter().filter(|item| item["created"] == true).count() == 70);
    for id in 0..70 {
        let kept = server.get_json(&format!("/items/{id}?collection=c")).await;
        assert_eq!(kept["metadata"]["n"], (0..20_000).rfind(|n| n % 70 == id).unwrap());
    }
    // A line that is longer than an item can be is left out, and the next is not.
    let long = format!("{{\"id\":\"{}\"}}\n{}", "x".repeat(3 << 20), line("after", 1));
    let post = server.client.post(server.at("/items?collection=c")).header("content-type", LINES).body(long);
    let (items, last) = Answer::of(post).await.all().await;
    assert_eq!((&items[0]["error"]["code"], &items[1]["id"]), (&json!("item_too_large"), &json!("after")));
    assert_eq!(last, json!({ "indexed": 1, "failed": 1, "done": true }));
    assert_eq!(server.app.admission.bytes(), 0);
    server.stop().await;
}

#[tokio::test]
async fn pictures_of_a_form_and_json_are_answered_as_lines_too() {
    let server = Server::with(|config| config.max_images = 2).await;
    let part = |name: &str, bytes: Vec<u8>| Part::bytes(bytes).file_name(name.to_owned());
    let form = Form::new()
        .text("metadata", r#"{"shirt":{"n":1}}"#)
        .part("image", part("shirt", example("t-shirt-1")))
        .part("image", part("broken", b"no picture".to_vec()))
        .part("image", part("hat", example("hat-1")))
        .part("image", part("shoes", example("shoes-1")));
    let (items, last) = Answer::of(server.client.post(server.at("/items")).multipart(form)).await.all().await;
    // More than `max_images`, because so many are not in hand at once.
    assert_eq!(last, json!({ "indexed": 3, "failed": 1, "done": true }));
    assert_eq!(items[1]["error"]["code"], "unsupported_format");
    assert_eq!(server.get_json("/items/shirt").await["metadata"]["n"], 1);
    for (form, code) in [
        (
            Form::new().part("image", part("late", example("hat-1"))).text("metadata", "{}"),
            "invalid_metadata",
        ),
        (
            Form::new().text("metadata", r#"{"none":{}}"#).part("image", part("late", example("hat-1"))),
            "invalid_metadata",
        ),
        (Form::new().part("image", part("late", example("hat-1"))).text("other", ""), "unexpected_field"),
    ] {
        let post = server.client.post(server.at("/items")).multipart(form);
        let (items, last) = Answer::of(post).await.all().await;
        // What came before is kept.
        assert_eq!((items.len(), &last["indexed"], &last["done"]), (1, &json!(1), &json!(false)));
        assert_eq!(last["error"]["code"], code);
    }
    let body =
        json!({ "items": [{ "id": "x", "image": "?" }, { "id": "v", "vector": [1], "contract": CONTRACT }] });
    let post = server.client.post(server.at("/items?collection=v")).json(&body);
    let (items, last) = Answer::of(post).await.all().await;
    assert_eq!((&items[0]["error"]["code"], &items[1]["created"]), (&json!("invalid_base64"), &json!(true)));
    assert_eq!(last, json!({ "indexed": 1, "failed": 1, "done": true }));
    let raw =
        server.client.post(server.at("/items")).header("accept", LINES).header("content-type", "image/jpeg");
    problem(raw.body(example("hat-1")).send().await.unwrap(), 415, "unsupported_media_type").await;
    server.stop().await;
}
