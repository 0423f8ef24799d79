//! The embedding cache: equal pictures are run once, and a client that has a reply already is told so.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use latentd::config::Config;

use crate::support::fake::Control;
use crate::support::{Server, example, problem, vectors};

fn cached(config: &mut Config) {
    config.cache_mib = 1;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_comes_again_is_not_run_again() {
    let fake = Control::default();
    let server = Server::faking(cached, &fake).await;
    let picture = example("hat-1");
    let first = server.post("/embed", picture.clone()).await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    assert!(tag.starts_with("W/\""), "{tag}");
    let first = vectors(&first.json().await.unwrap());
    let again = server.post("/embed", picture.clone()).await;
    assert_eq!(again.headers()["etag"], tag.as_str());
    let timing = again.headers()["server-timing"].to_str().unwrap().to_owned();
    assert!(timing.starts_with("cache;desc=\"hit\""), "{timing}");
    assert_eq!(vectors(&again.json().await.unwrap()), first);
    let form = server.post_form("/embed", vec![picture.clone(), picture.clone()]).await;
    assert!(!form.headers().contains_key("etag"));
    assert_eq!(vectors(&form.json().await.unwrap()), [first.clone(), first].concat());
    assert_eq!(fake.embedded.load(Ordering::SeqCst), 1);

    let info = server.get_json("/info").await;
    assert_eq!(info["cache"]["entries"], 1);
    assert!(info["cache"]["bytes"].as_u64().unwrap() < info["cache"]["max_bytes"].as_u64().unwrap());
    let metrics = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    for line in
        ["latentd_cache_hits_total 3\n", "latentd_cache_misses_total 1\n", "latentd_cache_entries 1\n"]
    {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_the_reply_is_told_so() {
    let fake = Control::default();
    let server = Server::faking(cached, &fake).await;
    let ask = |picture: &str, query: &str, tag: &str| {
        let request = server.client.post(server.at(&format!("/embed{query}")));
        request
            .header("content-type", "image/jpeg")
            .header("if-none-match", tag)
            .body(example(picture))
            .send()
    };
    let tag = server.post("/embed", example("hat-1")).await.headers()["etag"].to_str().unwrap().to_owned();
    let known = ask("hat-1", "", &format!("\"other\", {tag}")).await.unwrap();
    assert_eq!((known.status().as_u16(), known.headers()["etag"].to_str().unwrap()), (304, tag.as_str()));
    assert!(known.bytes().await.unwrap().is_empty());
    assert_eq!(fake.embedded.load(Ordering::SeqCst), 1);
    // Another picture, or the same one written in another way, is another reply.
    for (picture, query) in [("hat-2", ""), ("hat-1", "?encoding=base64")] {
        let reply = ask(picture, query, &tag).await.unwrap();
        assert_eq!(reply.status(), 200, "{picture}{query}");
        assert_ne!(reply.headers()["etag"], tag.as_str());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pictures_at_the_same_time_are_run_once() {
    let fake = Control::slow(Duration::from_millis(200));
    let threads = |config: &mut Config| {
        cached(config);
        config.decode_threads = 4;
    };
    let server = Server::faking(threads, &fake).await;
    let replies = join_all((0..8).map(|_| server.post("/embed", example("hat-1")))).await;
    assert!(replies.iter().all(|reply| reply.status() == 200));
    assert_eq!(fake.embedded.load(Ordering::SeqCst), 1);
    // One that cannot be decoded fails for all of them, and is not remembered.
    let replies = join_all((0..4).map(|_| server.post("/embed", "no picture"))).await;
    for reply in replies {
        problem(reply, 415, "unsupported_format").await;
    }
    assert_eq!((server.app.admission.images(), server.app.admission.bytes()), (0, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_does_not_take_along_those_with_the_same_picture() {
    let fake = Control::slow(Duration::from_millis(500));
    let threads = |config: &mut Config| {
        cached(config);
        config.decode_threads = 3;
        config.max_batch = 1;
    };
    let server = Server::faking(threads, &fake).await;
    let ask = |picture: &str, ms: &'static str| {
        let request = server.client.post(server.at("/embed")).header("content-type", "image/jpeg");
        request.header("x-request-timeout-ms", ms).body(example(picture)).send()
    };
    let in_hand = async |count: usize| {
        while server.app.admission.images() < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Long enough to be decoded, and to wait.
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // The only session is busy; the second picture waits for it, the third for the second.
    let first = ask("hat-1", "10000");
    let leader = async {
        in_hand(1).await;
        ask("hat-2", "200").await.unwrap()
    };
    let follower = async {
        in_hand(2).await;
        ask("hat-2", "10000").await.unwrap()
    };
    let (first, leader, follower) = tokio::join!(first, leader, follower);
    assert_eq!(first.unwrap().status(), 200);
    problem(leader, 504, "deadline_exceeded").await;
    assert_eq!(follower.status(), 200);
    assert_eq!(fake.embedded.load(Ordering::SeqCst), 2);
    assert_eq!((server.app.admission.images(), server.app.admission.bytes()), (0, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_of_a_known_picture_has_a_thumbnail_too() {
    let fake = Control::default();
    let server = Server::faking(cached, &fake).await;
    for id in ["a", "b"] {
        let put = server.client.put(server.at(&format!("/items/{id}"))).header("content-type", "image/jpeg");
        assert_eq!(put.body(example("hat-1")).send().await.unwrap().status(), 201);
        let image = server.client.get(server.at(&format!("/items/{id}/image"))).send().await.unwrap();
        assert_eq!(image.status(), 200, "{id}");
    }
    assert_eq!(fake.embedded.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cache_each_picture_is_run() {
    let fake = Control::default();
    let server = Server::faking(|_| {}, &fake).await;
    for _ in 0..2 {
        let reply = server.post("/embed", example("hat-1")).await;
        assert!(!reply.headers().contains_key("etag"));
        assert_eq!(reply.status(), 200);
    }
    assert_eq!(fake.embedded.load(Ordering::SeqCst), 2);
    assert!(server.get_json("/info").await["cache"].is_null());
    server.stop().await;
}
