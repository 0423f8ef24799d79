//! Bad input: each gets a clear problem with its code, and the server goes on.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Server, example, problem};

/// A PNG whose header declares 60000×60000 pixels and whose data is next to nothing.
fn huge_png() -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        png.extend((data.len() as u32).to_be_bytes());
        let start = png.len();
        png.extend(kind);
        png.extend(data);
        let crc = crc32(&png[start..]);
        png.extend(crc.to_be_bytes());
    };
    let mut header = Vec::new();
    header.extend(60_000u32.to_be_bytes());
    header.extend(60_000u32.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    chunk(b"IHDR", &header);
    chunk(b"IDAT", &[0x78, 0x9c, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01]);
    chunk(b"IEND", &[]);
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

#[tokio::test]
async fn bad_pictures_are_told_apart() {
    let server = Server::start().await;
    problem(server.post("/embed", "").await, 400, "empty_image").await;
    problem(server.post("/embed", "hello, I am a text named .jpg\n").await, 415, "unsupported_format").await;
    let picture = example("shoes-1");
    let cut = picture[..picture.len() / 2].to_vec();
    problem(server.post("/embed", cut).await, 422, "corrupt_image").await;
    problem(server.post("/embed", picture[..3].to_vec()).await, 422, "corrupt_image").await;
    let declared = problem(server.post("/embed", huge_png()).await, 413, "too_many_pixels").await;
    assert!(declared["detail"].as_str().unwrap().contains("60000"), "{declared}");
    assert_eq!(server.post("/embed", picture).await.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn bad_bodies_are_told_apart() {
    let server = Server::start().await;
    let post = |kind: &'static str, body: &'static str| {
        let request = server.client.post(server.at("/embed"));
        let request = if kind.is_empty() { request } else { request.header("content-type", kind) };
        async move { request.body(body).send().await.unwrap() }
    };
    problem(post("", "x").await, 415, "unsupported_media_type").await;
    problem(post("text/plain", "x").await, 415, "unsupported_media_type").await;
    let curl =
        problem(post("application/x-www-form-urlencoded", "x").await, 415, "unsupported_media_type").await;
    assert!(curl["detail"].as_str().unwrap().contains("-H 'content-type: image/jpeg'"));
    problem(post("application/json", "{").await, 400, "invalid_json").await;
    problem(post("application/json", "[1]").await, 400, "invalid_json").await;
    problem(post("application/json", r#"{"inputs":[],"x":1}"#).await, 400, "invalid_json").await;
    problem(post("application/json", r#"{"inputs":[]}"#).await, 400, "no_inputs").await;
    problem(post("multipart/form-data", "x").await, 400, "invalid_multipart").await;
    problem(post("multipart/form-data; boundary=b", "x").await, 400, "invalid_multipart").await;
    problem(post("multipart/form-data; boundary=b", "--b--\r\n").await, 400, "no_inputs").await;
    let field = "--b\r\ncontent-disposition: form-data; name=\"image\"\r\n\r\nhello\r\n--b--\r\n";
    problem(post("multipart/form-data; boundary=b", field).await, 400, "unexpected_field").await;
    server.stop().await;
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let server = Server::start().await;
    let get = |path: &str| server.client.get(server.at(path)).header("x-request-id", "mine-1").send();
    let missing = problem(get("/no/such/thing").await.unwrap(), 404, "route_not_found").await;
    assert_eq!(missing["request_id"], "mine-1");
    let reply = get("/embed").await.unwrap();
    assert_eq!(reply.headers()["allow"], "POST");
    let wrong = problem(reply, 405, "method_not_allowed").await;
    assert!(wrong["detail"].as_str().unwrap().contains("GET"), "{wrong}");
    server.stop().await;
}

#[tokio::test]
async fn sizes_are_bounded() {
    let server = Server::with(|config| {
        config.max_body_bytes = 100_000;
        config.max_image_bytes = 20_000;
        config.max_images = 3;
        config.max_pixels = 200_000;
    })
    .await;
    let large = problem(server.post("/embed", vec![7; 100_001]).await, 413, "body_too_large").await;
    assert_eq!(large["max_bytes"], 100_000);
    let chunks = futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![7u8; 10_000])));
    let streamed = server.post("/embed", reqwest::Body::wrap_stream(chunks)).await;
    problem(streamed, 413, "body_too_large").await;
    problem(server.post("/embed", example("shoes-1")).await, 413, "image_too_large").await;
    let small = example("hat-1");
    assert!(small.len() < 20_000);
    let many = server.post_form("/embed", vec![small.clone(); 4]).await;
    assert_eq!(problem(many, 413, "too_many_images").await["max_images"], 3);
    let many = server.post_json("/embed", &json!({"inputs": [{}, {}, {}, {}]})).await;
    problem(many, 413, "too_many_images").await;
    assert_eq!(server.post_form("/embed", vec![small; 3]).await.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up() {
    let server = Server::with(|config| config.body_timeout_ms = 200).await;
    let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let reply = server.post("/embed", reqwest::Body::wrap_stream(never)).await;
    problem(reply, 408, "body_timeout").await;
    assert_eq!(server.app.admission.bytes(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_still_sends_gets_the_reply() {
    let small = |config: &mut latentd::config::Config| {
        config.max_body_bytes = 100_000;
        config.max_image_bytes = 50_000;
    };
    let server = Server::with(small).await;
    // Far more than sockets hold, sent to its end before the reply is read.
    let body = vec![7; 30_000_000];
    for (expect, path) in [("", "/embed"), ("", "/nowhere"), ("expect: 100-continue\r\n", "/embed")] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {}\r\n{expect}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        if expect.is_empty() {
            stream.write_all(&body).await.unwrap();
        }
        let mut reply = String::new();
        // To the end of the connection, which is no reset.
        stream.read_to_string(&mut reply).await.unwrap();
        let status = if path == "/embed" { "HTTP/1.1 413 " } else { "HTTP/1.1 404 " };
        assert!(reply.starts_with(status) && reply.contains("\r\nconnection: close\r\n"), "{expect} {reply}");
    }
    // What was read leaves the connection as it was.
    assert_eq!(server.post("/embed", example("hat-1")).await.headers().get("connection"), None);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_connection() {
    let hasty = |config: &mut latentd::config::Config| {
        config.max_connections = 2;
        config.write_timeout_ms = 300;
    };
    let server = Server::with(hasty).await;
    let ask = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
    let mut silent = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        // Far more is asked for than sockets hold, and none of it read.
        let _ = tokio::time::timeout(Duration::from_millis(200), stream.write_all(ask.as_bytes())).await;
        silent.push(stream);
    }
    // There is no place for another one until theirs are taken.
    let reply = tokio::time::timeout(Duration::from_secs(20), server.client.get(server.at("/livez")).send());
    assert_eq!(reply.await.unwrap().unwrap().status(), 200);
    drop(silent);
    server.stop().await;
}

#[tokio::test]
async fn json_of_many_small_values_is_refused_without_being_built() {
    let server = Server::start().await;
    let many =
        |open: &str, value: &str, close: &str| format!("{open}{}{close}", vec![value; 2_000_000].join(","));
    let vast = vec!["[]"; 600_000].join(",");
    let before = resident_mib();
    for (path, body, status, code) in [
        ("/items", many("{\"items\":[", "0", "]}"), 413, "too_many_items"),
        ("/items", many("{\"items\":[", "{}", "]}"), 413, "too_many_items"),
        ("/embed", many("{\"inputs\":[", "{}", "]}"), 413, "too_many_images"),
        ("/search", many("{\"id\":\"a\",\"filter\":[", "0", "]}"), 400, "invalid_filter"),
        ("/search", many("{\"positive\":[", "{}", "]}"), 400, "invalid_search"),
        ("/v1/embeddings", many("{\"model\":\"x\",\"input\":[", "\"\"", "]}"), 404, "model_not_found"),
    ] {
        let reply = server.client.post(server.at(path)).header("content-type", "application/json").body(body);
        problem(reply.send().await.unwrap(), status, code).await;
    }
    let metadata = format!("{{\"image\":\"\",\"metadata\":{{\"a\":[{vast}]}}}}");
    let put =
        server.client.put(server.at("/items/a")).header("content-type", "application/json").body(metadata);
    problem(put.send().await.unwrap(), 400, "invalid_json").await;
    let infer = format!(
        "{{\"inputs\":[{{\"name\":\"image\",\"datatype\":\"BYTES\",\"shape\":[1],\"data\":[{vast}]}}]}}"
    );
    let name = server.app.embedder().artefact().manifest().full_name();
    let infer = server.client.post(server.at(&format!("/v2/models/{name}/infer"))).body(infer);
    problem(infer.send().await.unwrap(), 400, "invalid_inference_request").await;
    // As trees these would take hundreds of MiB each. Other tests run beside this one.
    assert!(resident_mib() < before + 600, "{before} MiB, then {}", resident_mib());
    server.stop().await;
}

#[tokio::test]
async fn errors_tell_what_was_sent_in_short() {
    let server = Server::start().await;
    let long = "x".repeat(3_000_000);
    for (path, body) in [
        ("/search", format!("{{\"{long}\":1}}")),
        ("/v1/embeddings", format!("{{\"model\":\"m\",\"input\":\"\",\"encoding_format\":\"{long}\"}}")),
        ("/items", format!("{{\"items\":[{{\"id\":\"{long}\"}},{{\"{long}\":1}}]}}")),
    ] {
        let reply = server.client.post(server.at(path)).header("content-type", "application/json").body(body);
        let reply = reply.send().await.unwrap().bytes().await.unwrap();
        assert!(reply.len() < 10_000, "{path}: {} bytes", reply.len());
    }
    server.stop().await;
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
