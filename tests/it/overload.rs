//! Overload, poisoned pictures, clients that hang up, and shutdown: with a fake backend that can be slow or fail.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::fake::Control;
use crate::support::{Server, example, problem, vectors};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_says_when_to_come_back_and_goes_on() {
    let fake = Control::slow(Duration::from_millis(300));
    let small = |config: &mut latentd::config::Config| {
        config.queue_images = 4;
        config.max_images = 4;
        config.max_batch = 1;
    };
    let server = Server::faking(small, &fake).await;
    let replies = join_all((0..12).map(|_| server.post("/embed", example("hat-1")))).await;
    let (mut served, mut refused) = (0, 0);
    for reply in replies {
        if reply.status() == 200 {
            served += 1;
            continue;
        }
        let seconds: u64 = reply.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
        assert_eq!(problem(reply, 503, "overloaded").await["retry_after"], seconds);
        refused += 1;
    }
    assert!(served >= 4 && refused >= 1, "{served} served, {refused} refused");
    assert_eq!(server.post("/embed", example("hat-1")).await.status(), 200);
    assert_eq!((server.app.admission.images(), server.app.admission.bytes()), (0, 0));
    let metrics = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains(&format!("latentd_rejected_total{{code=\"overloaded\"}} {refused}")),
        "{metrics}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_hand_are_bounded_too() {
    let fake = Control::slow(Duration::from_millis(300));
    let tight = |config: &mut latentd::config::Config| {
        config.max_body_bytes = 40_000;
        config.queue_bytes = 40_000;
        config.decode_threads = 1;
    };
    let server = Server::faking(tight, &fake).await;
    let held = server.app.admission.admit(0, 30_000).unwrap();
    problem(server.post("/embed", example("hat-1")).await, 503, "overloaded").await;
    drop(held);
    assert_eq!(server.post("/embed", example("hat-1")).await.status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_queued_runs_together() {
    let fake = Control::slow(Duration::from_millis(100));
    let server = Server::faking(|config| config.max_batch = 8, &fake).await;
    let replies = join_all((0..17).map(|_| server.post("/embed", example("hat-1")))).await;
    assert!(replies.iter().all(|reply| reply.status() == 200));
    let largest = fake.largest.load(Ordering::SeqCst);
    assert!((4..=8).contains(&largest), "{largest}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_is_alone_has_a_session_of_its_own() {
    let (fake, solo) = (Control::slow(Duration::from_millis(60)), Control::slow(Duration::from_millis(60)));
    let server = Server::faking_both(|_| {}, &fake, Some(&solo)).await;
    let counts = || [&fake, &solo].map(|control| control.embedded.load(Ordering::SeqCst));
    for done in 1..=3 {
        assert_eq!(server.post("/embed", example("hat-1")).await.status(), 200);
        assert_eq!(counts(), [0, done]);
    }
    let replies = join_all((0..8).map(|_| server.post("/embed", example("hat-1")))).await;
    assert!(replies.iter().all(|reply| reply.status() == 200));
    // The first may have been alone when it came, and the last when its turn came.
    let [together, alone] = counts();
    assert!(together >= 6 && together + alone == 11, "{together} and {alone}");
    // An answer is sent before its session is given back.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.post("/embed", example("hat-1")).await.status(), 200);
    assert_eq!(counts(), [together, alone + 1]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_poisoned_picture_of_a_run_fails() {
    for panics in [false, true] {
        let fake = Control { poison: Some(250), panics, ..Control::default() };
        let server = Server::faking(|_| {}, &fake).await;
        let white = solid([255; 3]);
        let files = vec![solid([10; 3]), white.clone(), solid([20; 3])];
        let reply: Value = server.post_form("/embed", files).await.json().await.unwrap();
        assert_eq!(reply["results"][1]["error"]["code"], "inference_failed", "{reply}");
        assert!(reply["results"][0]["embedding"].is_array() && reply["results"][2]["embedding"].is_array());
        problem(server.post("/embed", white).await, 500, "inference_failed").await;
        assert_eq!(server.post("/embed", solid([1; 3])).await.status(), 200);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_clients_that_hung_up_are_dropped() {
    let fake = Control::slow(Duration::from_millis(2500));
    let server = Server::faking(|config| config.max_batch = 1, &fake).await;
    let impatient = reqwest::Client::builder().timeout(Duration::from_millis(1500)).build().unwrap();
    let ask = || {
        impatient.post(server.at("/embed")).header("content-type", "image/jpeg").body(example("hat-1")).send()
    };
    let replies = join_all((0..6).map(|_| ask())).await;
    assert!(replies.iter().all(Result::is_err));
    assert_eq!(server.post("/embed", example("hat-1")).await.status(), 200);
    // The one that ran when its client left, and the last; not the five that waited.
    let embedded = fake.embedded.load(Ordering::SeqCst);
    assert!(embedded <= 3, "{embedded}");
    assert_eq!(server.app.admission.images(), 0);
    let metrics = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    let left = "latentd_requests_total{route=\"/embed\",method=\"POST\",status=\"499\"} 6";
    assert!(metrics.contains(left), "{metrics}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_ended() {
    let fake = Control::slow(Duration::from_millis(1500));
    let server = Server::faking(|config| config.request_timeout_ms = 200, &fake).await;
    problem(server.post("/embed", example("hat-1")).await, 503, "request_timeout").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_request_does_not_wait_for_a_large_one() {
    // One thread and one session, so that all order is the queues' own.
    let fake = Control::slow(Duration::from_millis(40));
    let narrow = |config: &mut latentd::config::Config| {
        config.decode_threads = 1;
        config.max_batch = 1;
    };
    let server = Server::faking(narrow, &fake).await;
    let large = server.post_form("/embed", (0..30).map(|shade| solid([shade; 3])).collect());
    let small = async {
        while server.app.admission.images() < 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let began = Instant::now();
        assert_eq!(server.post("/embed", solid([99; 3])).await.status(), 200);
        began.elapsed()
    };
    let began = Instant::now();
    let (large, small) = tokio::join!(async { (large.await.status(), began.elapsed()) }, small);
    assert_eq!(large.0, 200);
    assert!(small * 4 < large.1, "{small:?} beside {:?} of the large request", large.1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_takes_the_request_out_of_the_queue() {
    let fake = Control::slow(Duration::from_millis(600));
    let narrow = |config: &mut latentd::config::Config| {
        config.decode_threads = 1;
        config.max_batch = 1;
    };
    let server = Server::faking(narrow, &fake).await;
    let ask = |name: &'static str, value: &'static str, picture: Vec<u8>| {
        let request = server.client.post(server.at("/embed")).header("content-type", "image/png");
        request.header(name, value).body(picture).send()
    };
    let running = ask("x-request-timeout-ms", "5000", solid([1; 3]));
    let late = async {
        while server.app.admission.images() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let late = [("x-request-timeout-ms", "100", 2), ("grpc-timeout", "100m", 3)];
        for (name, value, shade) in late {
            let reply = ask(name, value, solid([shade; 3])).await.unwrap();
            problem(reply, 504, "deadline_exceeded").await;
        }
        // Both are gone while the first one still runs, with all that they held.
        (server.app.admission.images(), server.app.admission.bytes(), server.app.embedder().queue_depth())
    };
    let (running, (images, bytes, depth)) = tokio::join!(running, late);
    assert_eq!(running.unwrap().status(), 200);
    assert_eq!((images, bytes, depth), (1, 0, 0));
    assert_eq!(fake.embedded.load(Ordering::SeqCst), 1);
    let reply = ask("x-request-timeout-ms", "soon", solid([4; 3])).await.unwrap();
    problem(reply, 400, "invalid_timeout").await;
    let metrics = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("latentd_images_abandoned_total 2"), "{metrics}");
    assert!(metrics.contains("latentd_rejected_total{code=\"deadline_exceeded\"} 2"), "{metrics}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_what_was_taken() {
    let fake = Control::slow(Duration::from_millis(500));
    let server = Server::faking(|_| {}, &fake).await;
    let (client, url) = (server.client.clone(), server.at("/embed"));
    let ask = client.post(&url).header("content-type", "image/jpeg").body(example("hat-1"));
    let asked = tokio::spawn(ask.send());
    while server.app.admission.images() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    server.stop().await;
    let reply = asked.await.unwrap().unwrap();
    assert_eq!(reply.status(), 200);
    assert_eq!(vectors(&reply.json().await.unwrap()).len(), 1);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(client.get(&url).send().await.is_err(), "it still listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_ever() {
    let fake = Control::slow(Duration::from_secs(30));
    let server = Server::faking(|config| config.shutdown_timeout_ms = 100, &fake).await;
    let asked = tokio::spawn(
        server
            .client
            .post(server.at("/embed"))
            .header("content-type", "image/jpeg")
            .body(example("hat-1"))
            .send(),
    );
    while server.app.admission.images() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    server.stop().await;
    // The run itself is waited for a while, when the embedder closes.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    asked.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_head_is_cut_off_and_connections_are_bounded() {
    let server = Server::with(|config| {
        config.header_timeout_ms = 300;
        config.max_connections = 2;
    })
    .await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let mut slow: Vec<_> = (0..2).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n").unwrap();
    }
    // Both places are taken until the slow ones are cut off; then this one is served.
    let reply =
        tokio::time::timeout(Duration::from_secs(5), server.client.get(server.at("/livez")).send()).await;
    assert_eq!(reply.unwrap().unwrap().status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room() {
    let server = Server::with(|config| config.max_connections = 3).await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        idle.push(stream);
    }
    // One that never sends anything.
    idle.push(TcpStream::connect(server.address()).await.unwrap());
    // So long may one take to send its first request.
    tokio::time::sleep(Duration::from_millis(3200)).await;
    let (began, mut clients) = (Instant::now(), Vec::new());
    for _ in 0..3 {
        // Each is a client of its own that keeps its connection.
        let client = reqwest::Client::new();
        let asked =
            tokio::time::timeout(Duration::from_secs(5), client.get(server.at("/livez")).send()).await;
        assert_eq!(asked.unwrap().unwrap().status(), 200);
        clients.push(client);
    }
    // Sooner than heads are given up.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    for stream in &mut idle {
        let rest = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 64])).await;
        assert!(matches!(rest.unwrap(), Ok(0) | Err(_)), "an idle connection stayed");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_came_to_a_stop_make_room() {
    let server = Server::with(|config| {
        config.max_body_bytes = 1_000_000;
        config.max_image_bytes = 1_000_000;
        config.queue_bytes = 1_000_000;
    })
    .await;
    let head = |accept: &str, length: &str| {
        format!(
            "POST /items HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n{accept}{length}\r\n\r\n"
        )
    };
    let large = "x".repeat(450_000);
    // A body that is read whole, and an upload in the middle of a line.
    let whole = head("", "content-length: 900000") + &large;
    let upload = head("accept: application/x-ndjson\r\n", "transfer-encoding: chunked")
        + &format!("{:x}\r\n{large}\r\n", large.len());
    let mut stalled = Vec::new();
    for request in [whole, upload] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    let began = Instant::now();
    while server.app.admission.bytes() < 900_000 {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", server.app.admission.bytes());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What is behind a picture's end does no harm.
    let mut picture = example("hat-1");
    picture.resize(700_000, 0);
    problem(server.post("/embed", picture.clone()).await, 503, "overloaded").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(server.post("/embed", picture).await.status(), 200);
    for (stream, told) in stalled.iter_mut().zip(["HTTP/1.1 503", "its place went to others"]) {
        let mut reply = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut reply)).await;
        let text = String::from_utf8_lossy(&reply);
        assert!(text.contains(told), "{read:?} {text}");
    }
    assert_eq!(server.app.admission.bytes(), 0);
    server.stop().await;
}

/// A PNG of one colour.
fn solid(colour: [u8; 3]) -> Vec<u8> {
    let mut out = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_pixel(40, 40, image::Rgb(colour));
    picture.write_to(&mut out, image::ImageFormat::Png).unwrap();
    out.into_inner()
}
