//! CORS: pages of other origins may call only where they were named.

use latentd::config::List;
use latentd::keys::Role;
use latentd::keys::file::{self, KeyRecord};
use reqwest::{Method, Response};

use crate::support::{Server, problem};

async fn preflight(server: &Server, origin: &str) -> Response {
    let request = server.client.request(Method::OPTIONS, server.at("/embed")).header("origin", origin);
    let request = request.header("access-control-request-method", "POST");
    request.header("access-control-request-headers", "authorization,content-type").send().await.unwrap()
}

#[tokio::test]
async fn without_origins_no_reply_speaks_of_them() {
    let server = Server::start().await;
    let reply = preflight(&server, "https://shop.example").await;
    assert_eq!(reply.status(), 405);
    let reply = server.client.get(server.at("/info")).header("origin", "https://shop.example").send();
    assert!(reply.await.unwrap().headers().keys().all(|name| !name.as_str().starts_with("access-control")));
    server.stop().await;
}

#[tokio::test]
async fn a_named_origin_may_ask_before_it_has_a_key_and_others_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    file::append(&path, |sha256| KeyRecord::new("page", Role::Read, sha256)).unwrap();
    let server = Server::with(|config| {
        config.cors_origins = List(vec!["https://shop.example".to_owned()]);
        config.api_keys_file = path;
    })
    .await;
    let reply = preflight(&server, "https://shop.example").await;
    assert_eq!(reply.status(), 200);
    let headers = reply.headers();
    assert_eq!(headers["access-control-allow-origin"], "https://shop.example");
    assert_eq!(headers["access-control-allow-headers"], "authorization,content-type");
    assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    assert!(!headers.contains_key("access-control-allow-credentials"));
    let other = preflight(&server, "https://evil.example").await;
    assert!(!other.headers().contains_key("access-control-allow-origin"));
    // A refusal can be read by the page, too.
    let refused = server.client.get(server.at("/info")).header("origin", "https://shop.example").send();
    let refused = refused.await.unwrap();
    assert_eq!(refused.headers()["access-control-allow-origin"], "https://shop.example");
    assert!(refused.headers()["access-control-expose-headers"].to_str().unwrap().contains("x-request-id"));
    problem(refused, 401, "key_needed").await;
    server.stop().await;
}

#[tokio::test]
async fn a_star_is_every_origin() {
    let server = Server::with(|config| config.cors_origins = List(vec!["*".to_owned()])).await;
    let reply = preflight(&server, "https://any.example").await;
    assert_eq!(reply.headers()["access-control-allow-origin"], "*");
    server.stop().await;
}
