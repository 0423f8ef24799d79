//! The encodings of a reply decode back to the vector.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::support::{Server, cosine, example, problem};

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

async fn reply(server: &Server, query: &str, accept: &str) -> reqwest::Response {
    let request = server.client.post(server.at(&format!("/embed{query}")));
    request
        .header("content-type", "image/jpeg")
        .header("accept", accept)
        .body(example("shoes-1"))
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn json_encodings_decode_back() {
    let server = Server::start().await;
    let vector = server.embed(&example("shoes-1")).await;
    let result = async |encoding: &str| {
        let body: Value = reply(&server, &format!("?encoding={encoding}"), "*/*").await.json().await.unwrap();
        assert_eq!(body["encoding"], encoding);
        body["results"][0].clone()
    };
    let base64 = result("base64").await;
    assert_eq!(floats(&BASE64_STANDARD.decode(base64["embedding"].as_str().unwrap()).unwrap()), vector);
    let int8 = result("int8").await;
    let scale = int8["scale"].as_f64().unwrap() as f32;
    let integers = int8["embedding"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap() as f32 * scale);
    assert!(cosine(&integers.collect::<Vec<_>>(), &vector) > 0.999);
    let binary = result("binary").await;
    let bytes: Vec<_> =
        binary["embedding"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u8).collect();
    assert_eq!(bytes.len(), vector.len().div_ceil(8));
    for (index, value) in vector.iter().enumerate() {
        assert_eq!(bytes[index / 8] >> (7 - index % 8) & 1 == 1, *value > 0.0, "number {index}");
    }
    server.stop().await;
}

#[tokio::test]
async fn binary_replies_decode_back() {
    let server = Server::start().await;
    let vector = server.embed(&example("shoes-1")).await;
    let rows = reply(&server, "", "application/octet-stream").await;
    assert_eq!(rows.headers()["content-type"], "application/octet-stream");
    assert_eq!(rows.headers()["x-latentd-dim"], vector.len().to_string());
    assert_eq!(floats(&rows.bytes().await.unwrap()), vector);
    let npy = reply(&server, "", "application/x-npy").await;
    assert_eq!(npy.headers()["content-type"], "application/x-npy");
    let bytes = npy.bytes().await.unwrap();
    let header = String::from_utf8_lossy(&bytes[10..128]).into_owned();
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"));
    assert!(header.contains(&format!("'shape': (1, {})", vector.len())), "{header}");
    assert_eq!(floats(&bytes[128..]), vector);
    server.stop().await;
}

#[tokio::test]
async fn a_failed_row_of_a_binary_reply_is_nan_and_named() {
    let server = Server::start().await;
    let part = |bytes: Vec<u8>| reqwest::multipart::Part::bytes(bytes).file_name("x");
    let form =
        reqwest::multipart::Form::new().part("a", part(b"text".to_vec())).part("b", part(example("hat-1")));
    let request = server.client.post(server.at("/embed")).header("accept", "application/octet-stream");
    let reply = request.multipart(form).send().await.unwrap();
    assert_eq!(reply.headers()["x-latentd-failed"], "0");
    let numbers = floats(&reply.bytes().await.unwrap());
    let (first, second) = numbers.split_at(numbers.len() / 2);
    assert!(first.iter().all(|number| number.is_nan()));
    assert_eq!(second, server.embed(&example("hat-1")).await);
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused() {
    let server = Server::start().await;
    problem(reply(&server, "", "text/html").await, 406, "not_acceptable").await;
    problem(reply(&server, "?encoding=int8", "application/x-npy").await, 406, "encoding_not_acceptable")
        .await;
    let detail = problem(reply(&server, "?encoding=int4", "*/*").await, 400, "invalid_query").await;
    assert!(detail["detail"].as_str().unwrap().contains("int4"));
    problem(reply(&server, "?enconding=int8", "*/*").await, 400, "invalid_query").await;
    server.stop().await;
}
