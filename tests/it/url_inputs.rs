//! Pictures by address: fetched within their bounds, and never from where they must not be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use latentd::config::{Config, List};
use serde_json::{Value, json};

use crate::support::{Server, cosine, example, problem, vectors};

/// A server of pictures and of mischief; counts how many are with it at once.
async fn source(most: Arc<AtomicUsize>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let now = Arc::new(AtomicUsize::new(0));
    let slow = move || {
        let (now, most) = (now.clone(), most.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            example("hat-1")
        }
    };
    let endless = || async {
        let chunks = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![7u8; 10_000]));
        Body::from_stream(chunks)
    };
    let never = || async {
        futures::future::pending::<()>().await;
    };
    let drip = || async {
        let drops = futures::stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, std::io::Error>(vec![7u8]), ()))
        });
        Body::from_stream(drops)
    };
    let told = async |headers: HeaderMap| {
        let secret = [header::AUTHORIZATION, header::COOKIE].iter().any(|name| headers.contains_key(name));
        if secret { StatusCode::IM_A_TEAPOT.into_response() } else { example("hat-1").into_response() }
    };
    let to = |place: String| get(move || async move { Redirect::temporary(&place) });
    let app = Router::new()
        .route("/hat.jpg", get(told))
        .route("/text", get(|| async { "no picture" }))
        .route("/large", get(|| async { vec![7u8; 300_000] }))
        .route("/endless", get(endless))
        .route("/never", get(never))
        .route("/drip", get(drip))
        .route("/slow", get(slow))
        .route("/once", to("/hat.jpg".to_owned()))
        .route("/loop", to("/loop".to_owned()))
        .route("/metadata", to("http://169.254.169.254/latest/meta-data/".to_owned()))
        .route("/mapped", to("http://[::ffff:10.0.0.1]/".to_owned()))
        .route("/other-port", to("http://127.0.0.1:22/".to_owned()))
        .route("/file", to("file:///etc/passwd".to_owned()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn fetching(config: &mut Config, source: SocketAddr) {
    config.url_inputs = true;
    config.url_allow_private = true;
    config.url_allow_ports = List(vec![source.port()]);
    config.url_timeout_ms = 1500;
    config.url_max_bytes = 200_000;
}

async fn embed(server: &Server, urls: &[String]) -> Value {
    let inputs: Vec<_> = urls.iter().map(|url| json!({"url": url})).collect();
    let reply = server.post_json("/embed", &json!({"inputs": inputs})).await;
    assert_eq!(reply.status(), 200);
    reply.json().await.unwrap()
}

fn code(result: &Value) -> &str {
    result["error"]["code"].as_str().unwrap_or("ok")
}

#[tokio::test]
async fn each_address_has_its_own_outcome() {
    let from = source(Arc::default()).await;
    let server = Server::with(|config| fetching(config, from)).await;
    let expected = [
        ("/hat.jpg", "ok"),
        ("/once", "ok"),
        ("/text", "unsupported_format"),
        ("/nothing", "url_status"),
        ("/large", "url_too_large"),
        ("/endless", "url_too_large"),
        ("/never", "url_timeout"),
        ("/drip", "url_timeout"),
        ("/loop", "url_redirects"),
        ("/metadata", "url_address_refused"),
        ("/mapped", "url_address_refused"),
        ("/other-port", "url_not_allowed"),
        ("/file", "url_not_allowed"),
    ];
    let mut urls: Vec<_> = expected.iter().map(|(path, _)| format!("http://{from}{path}")).collect();
    let mut codes: Vec<_> = expected.iter().map(|&(_, code)| code).collect();
    for (url, code) in [
        ("http://2130706433/".to_owned(), "invalid_url"),
        (format!("http://user:pw@{from}/hat.jpg"), "url_not_allowed"),
        (format!("http://localhost:{}/hat.jpg", from.port()), "ok"),
        ("http://no-such-host.invalid/".to_owned(), "url_unresolvable"),
        // Nobody listens there.
        ("http://127.0.0.1/".to_owned(), "url_unreachable"),
    ] {
        urls.push(url);
        codes.push(code);
    }
    let reply = embed(&server, &urls).await;
    let found: Vec<_> = reply["results"].as_array().unwrap().iter().map(code).collect();
    assert_eq!(found, codes, "{urls:#?}");
    let expected = server.embed(&example("hat-1")).await;
    let fetched = reply["results"][0]["embedding"].as_array().unwrap();
    let fetched: Vec<_> = fetched.iter().map(|number| number.as_f64().unwrap() as f32).collect();
    assert!(cosine(&fetched, &expected) > 0.999_999);
    assert_eq!((server.app.admission.bytes(), server.app.admission.images()), (0, 0));
    server.stop().await;
}

#[tokio::test]
async fn items_and_searches_take_addresses() {
    let from = source(Arc::default()).await;
    let server = Server::with(|config| fetching(config, from)).await;
    let url = format!("http://{from}/hat.jpg");
    let bulk = json!({"items": [
        {"id": "a", "url": url, "metadata": {"n": 1}},
        {"id": "b", "url": format!("http://{from}/nothing")},
        {"id": "c", "vector": [1.0], "contract": "0123456789abcdef"},
        {"id": "d", "url": url, "image": "aGk="},
    ]});
    let reply: Value = server.post_json("/items", &bulk).await.json().await.unwrap();
    let codes: Vec<_> = reply["results"].as_array().unwrap().iter().map(code).collect();
    assert_eq!(codes[0], "ok");
    assert_eq!((codes[1], codes[3]), ("url_status", "invalid_item"));
    let put = server.client.put(server.at("/items/e")).json(&json!({"url": url})).send().await.unwrap();
    assert_eq!(put.status(), 201);
    let put = server.client.put(server.at("/items/f")).json(&json!({"url": format!("http://{from}/large")}));
    problem(put.send().await.unwrap(), 413, "url_too_large").await;
    for body in [json!({"url": url}), json!({"inputs": [{"url": url}]})] {
        let found: Value = server.post_json("/search", &body).await.json().await.unwrap();
        assert_eq!(found["neighbours"][0]["id"], "a", "{found}");
        assert!(found["neighbours"][0]["score"].as_f64().unwrap() > 0.999);
    }
    let search = json!({"url": "http://169.254.169.254/"});
    problem(server.post_json("/search", &search).await, 400, "url_address_refused").await;
    server.stop().await;
}

#[tokio::test]
async fn it_is_off_by_default_and_private_addresses_are_refused_by_default() {
    let from = source(Arc::default()).await;
    let server = Server::start().await;
    let urls = [format!("http://{from}/hat.jpg")];
    assert_eq!(code(&embed(&server, &urls).await["results"][0]), "url_inputs_disabled");
    server.stop().await;
    let server = Server::with(|config| {
        fetching(config, from);
        config.url_allow_private = false;
    })
    .await;
    let urls = [urls[0].clone(), format!("http://localhost:{}/hat.jpg", from.port())];
    let reply = embed(&server, &urls).await;
    assert_eq!(code(&reply["results"][0]), "url_address_refused");
    assert_eq!(code(&reply["results"][1]), "url_address_refused", "told once the name is resolved");
    server.stop().await;
    let server = Server::with(|config| {
        fetching(config, from);
        config.url_allow_hosts = List(vec!["img.example.org".to_owned()]);
    })
    .await;
    assert_eq!(code(&embed(&server, &urls).await["results"][0]), "url_not_allowed");
    server.stop().await;
}

#[tokio::test]
async fn only_so_many_are_fetched_at_once() {
    let most = Arc::new(AtomicUsize::new(0));
    let from = source(most.clone()).await;
    let server = Server::with(|config| {
        fetching(config, from);
        config.url_concurrency = 5;
    })
    .await;
    let urls = vec![format!("http://{from}/slow"); 6];
    assert_eq!(vectors(&embed(&server, &urls).await).len(), 6);
    assert_eq!(most.load(Ordering::SeqCst), 2, "half of them for one request");
    let three = [embed(&server, &urls), embed(&server, &urls), embed(&server, &urls)];
    for reply in futures::future::join_all(three).await {
        assert_eq!(vectors(&reply).len(), 6);
    }
    assert_eq!(most.load(Ordering::SeqCst), 5);
    server.stop().await;
}

#[tokio::test]
async fn what_is_fetched_counts_as_taken_in() {
    let from = source(Arc::default()).await;
    let server = Server::with(|config| {
        fetching(config, from);
        (config.queue_bytes, config.max_body_bytes) = (100_000, 100_000);
    })
    .await;
    let reply = embed(&server, &[format!("http://{from}/endless"), format!("http://{from}/hat.jpg")]).await;
    assert_eq!(code(&reply["results"][0]), "overloaded");
    assert_eq!(server.app.admission.bytes(), 0);
    server.stop().await;
}
