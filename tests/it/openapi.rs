//! The committed description is what the code says, and its examples are what the server answers.
//!
//! `LATENTD_UPDATE=1 cargo test --release openapi` writes both anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use latentd::http::docs::{self, EXAMPLES};
use latentd::http::router;
use serde_json::{Value, json};

use crate::support::{Server, cosine, example, root};

/// What differs from machine to machine or from run to run; its kind must be the same, not its value.
const VOLATILE: [&str; 22] = [
    "uptime_s",
    "path",
    "version",
    "cores",
    "sessions",
    "decode_threads",
    "disk_bytes",
    "index_bytes",
    "scan",
    "created",
    "updated",
    "requested",
    "used",
    "fallback",
    "queued_writes",
    "max_batch",
    "batches",
    "solo",
    "solo_session",
    "took_ms",
    "bytes",
    "entries",
];

fn updating() -> bool {
    std::env::var_os("LATENTD_UPDATE").is_some()
}

fn stale(path: &Path, why: &str) -> ! {
    let name = path.strip_prefix(root()).unwrap().display();
    panic!("{name} is stale ({why}): run `LATENTD_UPDATE=1 cargo test --release openapi` and commit it");
}

#[tokio::test]
async fn the_committed_description_and_its_examples_are_current() {
    let folder = root().join("openapi/examples");
    let replies = replies().await;
    for example in EXAMPLES {
        let reply =
            replies.get(example.file).unwrap_or_else(|| panic!("no reply is made for {}", example.file));
        check_example(folder.join(example.file), reply);
    }
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, EXAMPLES.len(), "openapi/examples holds files that no route names");
    let text = |example: &docs::Example| std::fs::read_to_string(folder.join(example.file)).unwrap();
    let description = docs::to_json(&router::openapi_with(text)).unwrap();
    check_description(root().join("openapi/openapi.json"), &description);
}

fn check_example(path: PathBuf, reply: &Value) {
    let committed = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
    match difference(&committed.unwrap_or_default(), reply, "") {
        None => {}
        Some(_) if updating() => {
            std::fs::write(&path, serde_json::to_string_pretty(reply).unwrap() + "\n").unwrap()
        }
        Some(why) => stale(&path, &why),
    }
}

fn check_description(path: PathBuf, wanted: &str) {
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = committed.lines().zip(wanted.lines()).position(|(a, b)| a != b);
    match differing {
        None if committed == wanted => {}
        _ if updating() => std::fs::write(&path, wanted).unwrap(),
        Some(line) => stale(&path, &format!("line {}: {}", line + 1, wanted.lines().nth(line).unwrap())),
        None => stale(&path, "another length"),
    }
}

/// Where two replies differ by more than rounding.
fn difference(a: &Value, b: &Value, at: &str) -> Option<String> {
    let volatile = VOLATILE.contains(&at.rsplit('/').next().unwrap_or_default());
    let told = || Some(format!("{at}: {a} is now {b}"));
    match (a, b) {
        _ if volatile && (a.is_null() || b.is_null()) => None,
        (Value::Object(a), Value::Object(b)) => {
            if a.keys().ne(b.keys()) {
                return told();
            }
            a.iter().find_map(|(key, value)| difference(value, &b[key], &format!("{at}/{key}")))
        }
        (Value::Array(_), Value::Array(_)) if volatile => None,
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(a, b, &format!("{at}/{i}")))
        }
        (Value::Number(x), Value::Number(y)) => {
            let near = (x.as_f64().unwrap() - y.as_f64().unwrap()).abs() <= 0.01;
            if volatile || near { None } else { told() }
        }
        (Value::String(x), Value::String(y)) => {
            let same = volatile || x == y || near_vectors(x, y);
            if same { None } else { told() }
        }
        _ => {
            if a == b {
                None
            } else {
                told()
            }
        }
    }
}

/// Whether both are vectors in base64, and nearly the same.
fn near_vectors(a: &str, b: &str) -> bool {
    let read = |text: &str| -> Option<Vec<f32>> {
        let bytes = BASE64_STANDARD.decode(text).ok()?;
        let (fours, rest) = bytes.as_chunks::<4>();
        (rest.is_empty() && fours.len() > 8)
            .then(|| fours.iter().map(|&four| f32::from_le_bytes(four)).collect())
    };
    match (read(a), read(b)) {
        (Some(a), Some(b)) => a.len() == b.len() && cosine(&a, &b) > 0.999,
        _ => false,
    }
}

/// A real reply for each example, by its file.
async fn replies() -> BTreeMap<&'static str, Value> {
    let server = Server::start().await;
    let base64 = |name: &str| BASE64_STANDARD.encode(example(name));
    let mut replies = BTreeMap::new();
    let mut keep = |file: &'static str, reply: Value| replies.insert(file, reply);

    let inputs = json!({"inputs": [{"image": base64("shoes-1")}, {"url": "https://example.org/shoes.jpg"}]});
    keep("embed.json", ask(&server, "POST", "/embed?encoding=base64", Some(&inputs), 200).await);
    let picture = example("shoes-1");
    let cut = server.client.post(server.at("/embed")).header("content-type", "image/jpeg");
    let cut = cut
        .header("x-request-id", "example")
        .body(picture[..picture.len() / 2].to_vec())
        .send()
        .await
        .unwrap();
    assert_eq!(cut.status(), 422);
    keep("embed-corrupt.json", cut.json().await.unwrap());

    let item = json!({"image": base64("shoes-1"), "metadata": {"kind": "shoes", "colour": "black"}});
    keep("put-item.json", ask(&server, "PUT", "/items/shoes-1", Some(&item), 201).await);
    let items = json!({"items": [
        {"id": "shoes-2", "image": base64("shoes-2"), "metadata": {"kind": "shoes", "colour": "brown"}},
        {"id": "hat-1", "image": base64("hat-1"), "metadata": {"kind": "hat"}},
        {"id": "broken", "image": BASE64_STANDARD.encode("no picture")},
    ]});
    keep("post-items.json", ask(&server, "POST", "/items", Some(&items), 200).await);
    keep("get-item.json", ask(&server, "GET", "/items/shoes-1", None, 200).await);
    keep("get-item-unknown.json", ask(&server, "GET", "/items/nobody", None, 404).await);
    keep("list-items.json", ask(&server, "GET", "/items?limit=2", None, 200).await);
    let query = json!({"id": "shoes-1", "k": 2});
    keep("search.json", ask(&server, "POST", "/search", Some(&query), 200).await);
    let dim = server.app.embedder().artefact().manifest().output.dim;
    let other = json!({"vector": vec![1.0; dim], "contract": "0123456789abcdef"});
    keep("search-contract.json", ask(&server, "POST", "/search", Some(&other), 409).await);
    keep("collections.json", ask(&server, "GET", "/collections", None, 200).await);
    keep("models.json", ask(&server, "GET", "/models", None, 200).await);
    keep("info.json", ask(&server, "GET", "/info", None, 200).await);
    server.stop().await;
    replies
}

async fn ask(server: &Server, method: &str, path: &str, body: Option<&Value>, status: u16) -> Value {
    let request =
        server.client.request(method.parse().unwrap(), server.at(path)).header("x-request-id", "example");
    let request = if let Some(body) = body { request.json(body) } else { request };
    let reply = request.send().await.unwrap();
    let got = reply.status();
    let text = reply.text().await.unwrap();
    assert_eq!(got, status, "{method} {path}: {text}");
    neutral(serde_json::from_str(&text).unwrap())
}

/// Without what would tell of the machine that made it.
fn neutral(mut reply: Value) -> Value {
    if let Some(path) = reply.pointer_mut("/runtime/path") {
        *path = json!("/usr/lib/libonnxruntime.so");
    }
    reply
}
