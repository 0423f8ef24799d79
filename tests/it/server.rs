//! Readiness, info, metrics and the pages.

use latentd::app::Phase;

use crate::support::fake::Control;
use crate::support::{Server, example, problem};

#[tokio::test]
async fn it_is_ready_after_the_golden_check_and_not_while_draining() {
    let server = Server::start().await;
    let get = |path: &str| server.client.get(server.at(path)).send();
    assert_eq!(get("/livez").await.unwrap().status(), 200);
    assert_eq!(get("/readyz").await.unwrap().status(), 200);
    server.app.lifecycle.enter(Phase::Draining);
    assert_eq!(get("/livez").await.unwrap().status(), 200);
    problem(get("/readyz").await.unwrap(), 503, "shutting_down").await;
    problem(server.post("/embed", example("hat-1")).await, 503, "shutting_down").await;
    server.stop().await;
}

#[tokio::test]
async fn a_backend_that_gives_other_vectors_does_not_pass_the_golden_check() {
    let server = Server::faking(|_| {}, &Control::default()).await;
    let error = server.app.check().await.unwrap_err().to_string();
    assert!(error.contains("golden picture") && error.contains("cosine"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn info_says_what_serves() {
    let server = Server::start().await;
    let info = server.get_json("/info").await;
    assert_eq!(info["ready"], true);
    assert_eq!(info["device"]["used"], "cpu");
    assert_eq!(info["model"]["contract"].as_str().unwrap().len(), 16);
    assert!(info["runtime"]["version"].as_str().unwrap().starts_with("1."));
    assert!(info["tuning"]["sessions"].as_u64().unwrap() >= 1);
    assert_eq!(info["store"]["items"], 0);
    let models = server.get_json("/models").await;
    assert_eq!(models["active"], info["model"]["name"]);
    let active: Vec<_> =
        models["models"].as_array().unwrap().iter().filter(|m| m["active"] == true).collect();
    assert_eq!(active.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let server = Server::start().await;
    server.post_form("/embed", vec![example("hat-1"), b"text".to_vec()]).await;
    server.post("/embed", "").await;
    server.client.get(server.at("/x")).send().await.unwrap();
    let reply = server.client.get(server.at("/metrics")).send().await.unwrap();
    assert!(reply.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = reply.text().await.unwrap();
    let golden = server.app.embedder().artefact().golden().unwrap().pictures.len();
    for line in [
        "latentd_requests_total{route=\"/embed\",method=\"POST\",status=\"200\"} 1",
        "latentd_requests_total{route=\"/embed\",method=\"POST\",status=\"400\"} 1",
        "latentd_requests_total{route=\"unmatched\",method=\"GET\",status=\"404\"} 1",
        "latentd_image_errors_total{code=\"unsupported_format\"} 1",
        "latentd_image_errors_total{code=\"empty_image\"} 1",
        &format!("latentd_images_total {}", golden + 1),
        "latentd_ready 1",
        "latentd_device_fallback 0",
        "latentd_queue_depth 0",
        "latentd_in_flight_images 0",
        "latentd_in_flight_bytes 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    for name in [
        "latentd_phase_seconds_bucket{phase=\"decode\",",
        "latentd_phase_seconds_bucket{phase=\"queue\",",
        "latentd_phase_seconds_bucket{phase=\"inference\",",
        "latentd_batch_size_bucket{",
        "latentd_request_seconds_bucket{route=\"/embed\",",
        "latentd_connections ",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_pages_are_served_with_a_content_security_policy() {
    let server = Server::start().await;
    for (path, kind, content) in [
        ("/", "text/html; charset=utf-8", "Drop, paste or choose"),
        ("/ui/app.js", "text/javascript; charset=utf-8", "addEventListener"),
        ("/ui/style.css", "text/css; charset=utf-8", ".drop"),
        ("/ui/icon.svg", "image/svg+xml", "<svg"),
        ("/docs/", "text/html", "swagger-ui"),
    ] {
        let reply = server.client.get(server.at(path)).send().await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        assert_eq!(reply.headers()["content-type"], kind, "{path}");
        let policy = reply.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert_eq!(reply.headers()["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(reply.headers()["referrer-policy"], "no-referrer", "{path}");
        let text = reply.text().await.unwrap();
        assert!(text.contains(content), "{path}");
        assert!(!text.contains("//cdn") && !text.contains("https://unpkg"), "{path}");
    }
    server.stop().await;
}
