//! Many connections and slow clients: only documented answers, bounded memory, ready at once after.
//!
//! `LATENTD_LOAD_SECONDS=180 cargo test --release many_connections` runs it for minutes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::program::Program;
use crate::support::{Server, crops, model_dir, problem};

const CONNECTIONS: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_get_200_or_503_and_memory_stays_bounded() {
    let seconds = std::env::var("LATENTD_LOAD_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(3));
    let server = Process::start(&["--queue-images", "64", "--max-images", "16", "--cache-mib", "0"]);
    let dir = tempfile::tempdir().unwrap();
    let pictures: Vec<_> = crops(dir.path()).iter().map(|path| std::fs::read(path).unwrap()).collect();
    // What the allocator and the sessions keep is there before it is measured.
    load(&server, &pictures, Duration::from_millis(500)).await;
    let before = server.resident_mib();
    let (statuses, mut latencies) = load(&server, &pictures, time).await;
    let grown = server.resident_mib() - before;
    let counted: usize = statuses.values().sum();
    println!("{CONNECTIONS} connections, {time:?}: {statuses:?}, memory {before:.0} MiB and {grown:+.0} MiB");
    assert!(statuses.keys().all(|status| [200, 429, 503].contains(status)), "{statuses:?}");
    assert!(statuses[&200] > 0 && counted > CONNECTIONS, "{statuses:?}");
    assert!(grown < 48.0, "{grown:.0} MiB more than the {before:.0} MiB before");
    // A request that was taken in waits for no more than what the queue holds.
    latencies.sort();
    let p99 = latencies[latencies.len() * 99 / 100];
    println!("p99 of those taken in: {p99:?}");
    assert!(p99 < Duration::from_secs(10), "{p99:?}");
    let began = Instant::now();
    assert_eq!(server.post(pictures[0].clone()).await.status(), 200);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// The server in a process of its own, whose memory is its own.
struct Process {
    program: Program,
    client: reqwest::Client,
    _data: tempfile::TempDir,
}

impl Process {
    fn start(flags: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let program = Program::serve(data.path(), |command| {
            command.arg("--model").arg(model_dir()).args(flags);
        });
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { program, client, _data: data }
    }

    async fn post(&self, picture: Vec<u8>) -> reqwest::Response {
        let request =
            self.client.post(format!("{}/embed", self.program.url)).header("content-type", "image/png");
        request.body(picture).send().await.unwrap()
    }

    fn resident_mib(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.program.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    }
}

/// Each connection asks for another picture as soon as it is answered. Gives the answers by status, and what those of
/// 200 took.
async fn load(
    server: &Process,
    pictures: &[Vec<u8>],
    time: Duration,
) -> (BTreeMap<u16, usize>, Vec<Duration>) {
    let until = Instant::now() + time;
    let one = async |number: usize| {
        let (mut statuses, mut latencies) = (Vec::new(), Vec::new());
        for round in 0.. {
            if Instant::now() >= until {
                break;
            }
            let began = Instant::now();
            let picture = pictures[(number * 7 + round) % pictures.len()].clone();
            let reply = server.post(picture).await;
            statuses.push(reply.status().as_u16());
            if reply.status() == 200 {
                latencies.push(began.elapsed());
            } else {
                assert!(reply.headers().contains_key("retry-after"));
                // A client that comes back at once only measures how fast it is refused.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let _ = reply.bytes().await;
        }
        (statuses, latencies)
    };
    let mut counts = BTreeMap::new();
    let mut all = Vec::new();
    for (statuses, latencies) in join_all((0..CONNECTIONS).map(one)).await {
        statuses.into_iter().for_each(|status| *counts.entry(status).or_insert(0) += 1);
        all.extend(latencies);
    }
    (counts, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_cut_off_and_hold_up_nobody() {
    let hasty = |config: &mut latentd::config::Config| {
        config.header_timeout_ms = 700;
        config.body_timeout_ms = 700;
    };
    let server = Server::with(hasty).await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let head =
        "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: 1000000\r\n\r\n";
    let drip = async |first: &'static str| {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let began = Instant::now();
        stream.write_all(first.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        loop {
            let mut buffer = [0; 1024];
            tokio::select! {
                read = stream.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(count) => reply.extend_from_slice(&buffer[..count]),
                },
                () = tokio::time::sleep(Duration::from_millis(50)) => {
                    if stream.write_all(b"x").await.is_err() { break }
                }
            }
        }
        (String::from_utf8_lossy(&reply).into_owned(), began.elapsed())
    };
    let slow =
        join_all((0..100).map(|number| drip(if number % 2 == 0 { head } else { "GET /livez HTTP/1.1\r\n" })));
    let quick = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        // They announced 50 MB, but hold only what they have sent.
        assert!(server.app.admission.bytes() < 10_000, "{}", server.app.admission.bytes());
        let began = Instant::now();
        problem(server.post("/embed", "no picture").await, 415, "unsupported_format").await;
        assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    };
    let (slow, ()) = tokio::join!(slow, quick);
    for (number, (reply, took)) in slow.into_iter().enumerate() {
        assert!(took < Duration::from_secs(5), "{number}: {took:?}");
        let cut = reply.is_empty() || reply.starts_with("HTTP/1.1 408");
        assert!(cut, "{number}: {reply}");
        assert!(number % 2 == 1 || reply.contains("body_timeout"), "{number}: {reply}");
    }
    assert_eq!((server.app.admission.images(), server.app.admission.bytes()), (0, 0));
    server.stop().await;
}
