//! Bulk writes that are answered as they go.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use latentd::cli::serve::{Opened, open_model};
use latentd::embedder::Embedder;
use latentd::keys::Role;
use latentd::keys::file::{self, KeyRecord};
use reqwest::RequestBuilder;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use crate::support::engine::distributed;
use crate::support::{Server, example, problem, settings};

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
    async fn of(request: RequestBuilder) -> Self {
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

/// An upload to the collection `c` that is open: the way to send, and what is answered.
async fn open(
    server: &Server,
    change: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> (UnboundedSender<String>, Answer) {
    let (sender, receiver) = unbounded_channel::<String>();
    let pieces = futures::stream::unfold(receiver, |mut receiver| async {
        Some((Ok::<_, Infallible>(Bytes::from(receiver.recv().await?)), receiver))
    });
    let post = server.client.post(server.at("/items?collection=c")).header("content-type", LINES);
    let answer = Answer::of(change(post).body(reqwest::Body::wrap_stream(pieces))).await;
    (sender, answer)
}

/// An upload of lines whose client reads nothing, stopped by that.
async fn unread(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address()).await.unwrap();
    let head = format!(
        "POST /items?collection=c HTTP/1.1\r\nhost: x\r\ncontent-type: {LINES}\r\naccept: {LINES}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // Their answers repeat the ids, so that they soon fill what lies between.
    let lines = (json!({ "id": "x".repeat(1000) }).to_string() + "\n").repeat(64);
    let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
    let mut sent = 0;
    while timeout(Duration::from_secs(2), stream.write_all(chunk.as_bytes())).await.is_ok() {
        sent += 1;
        assert!(sent < 2000, "it is read on and on");
    }
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_keeps_nobody_waiting() {
    let server = Server::start().await;
    let stream = unread(&server).await;
    let changed = timeout(Duration::from_secs(3), server.app.writes.write()).await;
    drop(changed.expect("a change of the encoder waits for it"));
    let item = json!({ "vector": [1, 2], "contract": CONTRACT });
    let put = server.client.put(server.at("/items/a?collection=c")).json(&item).send().await.unwrap();
    assert_eq!(put.status(), 201);
    let held = server.app.admission.bytes();
    assert!(held < 4 << 20, "{held} bytes are in hand");
    drop(stream);
    let began = Instant::now();
    while server.app.admission.bytes() > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "what it held stays held");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_by_an_encoder_that_is_gone_is_made_again() {
    // Where processes share a store, the encoder is agreed on between them.
    if distributed().is_some() {
        return;
    }
    let (models, sibling) = crate::refresh::models();
    let server = Server::start().await;
    let (config, _data) = settings(|config| config.model = models.join(sibling));
    let Opened { artefact, backends, .. } = open_model(&config).unwrap();
    let next = Embedder::start(&config, artefact, backends, server.app.shared()).unwrap();
    let contract = next.artefact().contract().to_string();
    let writes = server.app.writes.clone().write_owned().await;
    let form = Form::new().part("image", Part::bytes(example("hat-1")).file_name("hat"));
    let answer = Answer::of(server.client.post(server.at("/items?collection=c")).multipart(form)).await;
    // Embedded by now, most likely, and waiting to be written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.app.replace_embedder(next);
    drop(writes);
    let (items, last) = answer.all().await;
    assert_eq!((&items[0]["created"], &last["done"]), (&json!(true), &json!(true)), "{items:?}");
    assert_eq!(server.get_json("/items/hat?collection=c").await["contract"], contract);
    server.stop().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_silent_client() {
    let server = Server::start().await;
    let (sender, mut answer) = open(&server, |post| post).await;
    sender.send(line("a", 1) + &line("b", 2)[..9]).unwrap();
    assert_eq!(answer.next().await.unwrap()["id"], "a");
    assert_eq!(answer.next().await.unwrap()["indexed"], 1);
    let began = Instant::now();
    server.shutdown.start();
    let last = answer.next().await.unwrap();
    assert_eq!((&last["indexed"], &last["done"], &last["failed"]), (&json!(1), &json!(false), &json!(0)));
    assert_eq!(last["error"]["code"], "shutting_down");
    assert!(answer.next().await.is_none());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drop(sender);
}

#[tokio::test]
async fn a_shutdown_finishes_what_was_read() {
    let server = Server::start().await;
    let (sender, mut answer) = open(&server, |post| post).await;
    // Together they are a batch, which the writes of others hold up.
    let writes = server.app.writes.clone().write_owned().await;
    sender.send(line("a", 1) + &line("b", 2)).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.shutdown.start();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(writes);
    for id in ["a", "b"] {
        let told = answer.next().await.unwrap();
        assert_eq!((&told["id"], &told["created"]), (&json!(id), &json!(true)), "{told}");
    }
    assert_eq!(answer.next().await.unwrap(), json!({ "indexed": 2, "failed": 0, "done": false }));
    assert_eq!(answer.next().await.unwrap()["error"]["code"], "shutting_down");
    assert!(answer.next().await.is_none());
    drop(sender);
    server.stop().await;
}

#[tokio::test]
async fn the_clients_time_bounds_an_upload_and_the_servers_does_not() {
    let server = Server::with(|config| config.request_timeout_ms = 1000).await;
    let (sender, answer) = open(&server, |post| post).await;
    let began = Instant::now();
    let (timed, mut short) = open(&server, |post| post.header("x-request-timeout-ms", "1500")).await;
    timed.send(line("b", 2)).unwrap();
    assert_eq!(short.next().await.unwrap()["id"], "b");
    assert_eq!(short.next().await.unwrap()["indexed"], 1);
    let last = short.next().await.unwrap();
    assert_eq!((&last["indexed"], &last["error"]["code"]), (&json!(1), &json!("deadline_exceeded")));
    assert!(short.next().await.is_none());
    let took = began.elapsed();
    assert!((1400..6000).contains(&took.as_millis()), "{took:?}");
    sender.send(line("a", 1)).unwrap();
    drop(sender);
    let (items, last) = answer.all().await;
    assert_eq!((items.len(), last), (1, json!({ "indexed": 1, "failed": 0, "done": true })));
    let post = server.client.post(server.at("/items")).header("content-type", LINES).header("accept", LINES);
    let reply = post.header("x-request-timeout-ms", "soon").body("").send().await.unwrap();
    problem(reply, 400, "invalid_timeout").await;
    server.stop().await;
}

#[tokio::test]
async fn an_upload_ends_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let key = file::append(&path, |sha256| KeyRecord::new("shop", Role::Write, sha256)).unwrap();
    let listed = path.clone();
    let server = Server::with(|config| config.api_keys_file = listed).await;
    let set = |keys: &str| {
        std::fs::write(&path, keys).unwrap();
        server.app.keys.reload().unwrap();
    };
    let before = std::fs::read_to_string(&path).unwrap();
    let lower = before.replace("\"write\"", "\"read\"");
    assert_ne!(before, lower);
    for (after, code) in [(String::new(), "invalid_key"), (lower, "role_needed")] {
        set(&before);
        let (sender, mut answer) = open(&server, |post| post.bearer_auth(&key)).await;
        sender.send(line("a", 1)).unwrap();
        assert_eq!(answer.next().await.unwrap()["id"], "a");
        assert_eq!(answer.next().await.unwrap()["indexed"], 1);
        set(&after);
        sender.send(line("b", 2)).unwrap();
        let last = answer.next().await.unwrap();
        assert_eq!((&last["indexed"], &last["error"]["code"]), (&json!(1), &json!(code)));
        assert!(answer.next().await.is_none());
    }
    set(&before);
    let unwritten = server.client.get(server.at("/items/b?collection=c")).bearer_auth(&key);
    assert_eq!(unwritten.send().await.unwrap().status(), 404);
    server.stop().await;
}

#[tokio::test]
async fn a_key_of_few_pictures_uploads_many() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let key = file::append(&path, |sha256| KeyRecord {
        max_images: Some(2),
        ..KeyRecord::new("shop", Role::Write, sha256)
    });
    let server = Server::with(|config| config.api_keys_file = path).await;
    let part = |n: usize| Part::bytes(example("hat-1")).file_name(n.to_string());
    let form = (0..5).fold(Form::new(), |form, n| form.part("image", part(n)));
    let post = server.client.post(server.at("/items")).bearer_auth(key.unwrap()).multipart(form);
    let (_, last) = Answer::of(post).await.all().await;
    assert_eq!(last, json!({ "indexed": 5, "failed": 0, "done": true }));
    server.stop().await;
}

#[tokio::test]
async fn lines_are_durable_before_the_body_has_ended() {
    let server = Server::start().await;
    let (sender, mut answer) = open(&server, |post| post).await;
    sender.send(line("a", 1) + &line("b", 2) + "\n").unwrap();
    let (mut begin, third) = (line("c", 3), 9);
    let end = begin.split_off(third);
    let first = answer.next().await.unwrap();
    assert_eq!((&first["index"], &first["id"], &first["created"]), (&json!(0), &json!("a"), &json!(true)));
    assert!(first["seq"].as_u64().unwrap() > 0);
    assert_eq!(answer.next().await.unwrap()["id"], "b");
    assert_eq!(answer.next().await.unwrap(), json!({ "indexed": 2, "failed": 0, "done": false }));
    assert_eq!(server.get_json("/items/b?collection=c").await["metadata"]["n"], 2);
    // Half a line is not yet one, and a broken one fails alone.
    sender.send(begin).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
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
