//! API keys: who is let in, to what, and how much.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use latentd::keys::Role;
use latentd::keys::file::{self, KeyRecord};
use reqwest::{Method, Response};
use serde_json::json;

use crate::support::{Server, example, problem, root};

/// A file of keys, and the key of each role in it.
struct Ring {
    path: PathBuf,
    read: String,
    write: String,
    admin: String,
}

fn ring(dir: &Path) -> Ring {
    let path = dir.join("keys.toml");
    let make = |role: Role| file::append(&path, |sha256| KeyRecord::new(&role.to_string(), role, sha256));
    let (read, write, admin) =
        (make(Role::Read).unwrap(), make(Role::Write).unwrap(), make(Role::Admin).unwrap());
    Ring { path, read, write, admin }
}

async fn call(server: &Server, method: Method, path: &str, key: &str) -> Response {
    let mut request = server.client.request(method.clone(), server.at(path));
    if !key.is_empty() {
        request = request.bearer_auth(key);
    }
    if matches!(method, Method::POST | Method::PUT) {
        request = request.header("content-type", "image/jpeg").body(example("hat-1"));
    }
    request.send().await.unwrap()
}

#[tokio::test]
async fn each_role_may_what_it_may_and_health_and_pages_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let ring = ring(dir.path());
    let path = ring.path.clone();
    let server = Server::with(|config| config.api_keys_file = path).await;
    for path in ["/livez", "/readyz", "/", "/ui/app.js", "/docs/", "/openapi.json"] {
        assert_eq!(call(&server, Method::GET, path, "").await.status(), 200, "{path}");
    }
    problem(call(&server, Method::GET, "/no/such/thing", "").await, 404, "route_not_found").await;
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    let routes = [
        (post.clone(), "/embed", Role::Read, 200),
        (post.clone(), "/preprocess", Role::Read, 200),
        (get.clone(), "/info", Role::Read, 200),
        (get.clone(), "/metrics", Role::Read, 200),
        (get.clone(), "/models", Role::Read, 200),
        (get.clone(), "/models/refresh", Role::Read, 200),
        (put, "/items/a", Role::Write, 201),
        (get.clone(), "/items/a", Role::Read, 200),
        (get.clone(), "/items/a/image", Role::Read, 200),
        (get, "/items", Role::Read, 200),
        (post.clone(), "/search", Role::Read, 200),
        (delete.clone(), "/items/a", Role::Write, 204),
        (delete.clone(), "/collections/default", Role::Write, 204),
        (post, "/models/no-such-v1/activate", Role::Admin, 404),
        (delete, "/models/refresh", Role::Admin, 409),
    ];
    for (method, path, role, status) in routes {
        let reply = call(&server, method.clone(), path, "").await;
        assert_eq!(reply.headers()["www-authenticate"], "Bearer realm=\"latentd\"");
        problem(reply, 401, "key_needed").await;
        problem(call(&server, method.clone(), path, "ltd_guess").await, 401, "invalid_key").await;
        let mut allowed = None;
        for (has, key) in [(Role::Read, &ring.read), (Role::Write, &ring.write), (Role::Admin, &ring.admin)] {
            if has < role {
                let told = problem(call(&server, method.clone(), path, key).await, 403, "role_needed").await;
                assert_eq!(told["role"], role.to_string());
            } else if has == role {
                allowed = Some(key);
            }
        }
        let reply = call(&server, method.clone(), path, allowed.unwrap()).await;
        assert_eq!(reply.status(), status, "{method} {path}: {:?}", reply.text().await);
    }
    let header = server.client.get(server.at("/info")).header("x-api-key", &ring.read).send().await.unwrap();
    assert_eq!(header.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn a_refused_request_is_refused_before_its_body() {
    let dir = tempfile::tempdir().unwrap();
    let path = ring(dir.path()).path;
    let server = Server::with(|config| config.api_keys_file = path).await;
    let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let began = Instant::now();
    problem(server.post("/embed", reqwest::Body::wrap_stream(never)).await, 401, "key_needed").await;
    assert!(began.elapsed() < Duration::from_secs(5));
    server.stop().await;
}

#[tokio::test]
async fn keys_are_limited_each_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let slow = file::append(&path, |sha256| KeyRecord {
        requests_per_second: Some(0.01),
        burst: Some(2),
        ..KeyRecord::new("slow", Role::Read, sha256)
    });
    let few = file::append(&path, |sha256| KeyRecord {
        max_images: Some(2),
        ..KeyRecord::new("few", Role::Write, sha256)
    });
    let (slow, few) = (slow.unwrap(), few.unwrap());
    let server = Server::with(|config| config.api_keys_file = path).await;
    for _ in 0..2 {
        assert_eq!(call(&server, Method::POST, "/embed", &slow).await.status(), 200);
    }
    let reply = call(&server, Method::POST, "/embed", &slow).await;
    let wait: u64 = reply.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((90..=100).contains(&wait), "{wait}");
    problem(reply, 429, "rate_limited").await;
    let picture = |n: usize| {
        let image = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, example("hat-1"));
        json!({"inputs": vec![json!({"image": image}); n]})
    };
    let embed = |n: usize| server.client.post(server.at("/embed")).bearer_auth(&few).json(&picture(n)).send();
    assert_eq!(embed(2).await.unwrap().status(), 200);
    let told = problem(embed(3).await.unwrap(), 413, "too_many_images").await;
    assert_eq!(told["max_images"], 2);
    let items: Vec<_> = picture(3)["inputs"].as_array().unwrap().clone();
    let with_ids: Vec<_> = items
        .into_iter()
        .enumerate()
        .map(|(i, x)| json!({"id": i.to_string(), "image": x["image"]}))
        .collect();
    let bulk = server.client.post(server.at("/items")).bearer_auth(&few).json(&json!({"items": with_ids}));
    problem(bulk.send().await.unwrap(), 413, "too_many_images").await;
    let held = server.app.keys.find(&few).unwrap().pictures(1);
    problem(embed(2).await.unwrap(), 429, "key_images_in_flight").await;
    drop(held);
    assert_eq!(embed(2).await.unwrap().status(), 200);
    let metrics = call(&server, Method::GET, "/metrics", &few).await.text().await.unwrap();
    assert!(metrics.contains("latentd_rejected_total{code=\"rate_limited\"} 1"), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn the_admin_key_file_works_beside_the_file_of_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, secret) = (ring(dir.path()), dir.path().join("admin.key"));
    std::fs::write(&secret, "0123456789abcdef0123\n").unwrap();
    let path = keys.path.clone();
    let server = Server::with(|config| {
        config.api_keys_file = path;
        config.admin_key_file = secret;
    })
    .await;
    for key in ["0123456789abcdef0123", &keys.admin] {
        problem(call(&server, Method::DELETE, "/models/refresh", key).await, 409, "no_refresh").await;
        assert_eq!(call(&server, Method::POST, "/embed", key).await.status(), 200);
    }
    problem(call(&server, Method::DELETE, "/models/refresh", &keys.write).await, 403, "role_needed").await;
    server.stop().await;
}

#[tokio::test]
async fn a_key_made_on_the_command_line_is_let_in_without_a_restart_and_a_bad_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let new = |name: &str| {
        let run = Command::new(env!("CARGO_BIN_EXE_latentd"))
            .current_dir(root())
            .args(["key", "new", "--name", name, "--role", "read", "--file"])
            .arg(&path)
            .output()
            .unwrap();
        (run.status.success(), String::from_utf8(run.stdout).unwrap().trim().to_owned())
    };
    let (made, first) = new("first");
    assert!(made && first.starts_with("ltd_") && first.lines().count() == 1);
    assert!(!new("first").0, "a name is taken once");
    assert!(!new("no spaces").0);
    let file = path.clone();
    let server = Server::with(|config| config.api_keys_file = file).await;
    assert_eq!(call(&server, Method::GET, "/info", &first).await.status(), 200);
    let (_, second) = new("second");
    let until = async |key: &str, status: u16| {
        let began = Instant::now();
        while call(&server, Method::GET, "/info", key).await.status() != status {
            assert!(began.elapsed() < Duration::from_secs(20), "never {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until(&second, 200).await;
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, "[[key]]\nname = ").unwrap();
    // Two looks at the file later the keys from before still hold.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(call(&server, Method::GET, "/info", &second).await.status(), 200);
    let without_first = good.split_once("\n\n").unwrap().1;
    std::fs::write(&path, without_first).unwrap();
    until(&first, 401).await;
    assert_eq!(call(&server, Method::GET, "/info", &second).await.status(), 200);
    server.stop().await;
}
