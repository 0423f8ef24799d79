//! TLS: served, its files read again, clients that dawdle, and a shutdown.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use latentd::config::List;
use latentd::net::{self, Roots};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Server, root};

/// A certificate for localhost that vouches for itself, with its key.
fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (cert, key)
}

async fn status(server: &Server, roots: &Roots, path: &str) -> Result<u16, net::ConnectError> {
    let address = server.address();
    let mut connection: net::Connection = net::connect(address, Some("localhost"), roots).await?;
    let request = hyper::Request::get(path).header("host", "localhost").body(Default::default()).unwrap();
    Ok(connection.sender.send_request(request).await?.status().as_u16())
}

async fn serving(dir: &Path, header_timeout_ms: u64) -> Server {
    let (cert, key) = certificate(dir);
    Server::with(|config| {
        config.tls_cert = cert;
        config.tls_key = key;
        config.header_timeout_ms = header_timeout_ms;
        config.max_connections = 8;
    })
    .await
}

#[tokio::test]
async fn it_is_served_and_a_renewed_certificate_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = serving(dir.path(), 10_000).await;
    let before = Roots::system_and(&dir.path().join("cert.pem"));
    assert_eq!(status(&server, &before, "/readyz").await.unwrap(), 200);
    assert!(status(&server, &Roots::default(), "/readyz").await.is_err(), "nobody vouches for it");
    // A client without TLS gets no HTTP.
    let mut plain = TcpStream::connect(server.address()).await.unwrap();
    plain.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut reply = Vec::new();
    let _ = plain.read_to_end(&mut reply).await;
    assert!(!reply.starts_with(b"HTTP"));

    std::fs::write(dir.path().join("key.pem"), "no key").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(status(&server, &before, "/readyz").await.unwrap(), 200, "a bad file changes nothing");
    certificate(dir.path());
    let after = Roots::system_and(&dir.path().join("cert.pem"));
    let began = Instant::now();
    while status(&server, &after, "/readyz").await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "the new certificate was not taken up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn clients_that_do_not_finish_the_handshake_are_let_go_and_hold_up_no_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let server = serving(dir.path(), 500).await;
    let roots = Roots::system_and(&dir.path().join("cert.pem"));
    // They take every place.
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(TcpStream::connect(server.address()).await.unwrap());
    }
    let began = Instant::now();
    assert_eq!(status(&server, &roots, "/livez").await.unwrap(), 200);
    assert!(began.elapsed() < Duration::from_secs(10));
    let began = Instant::now();
    let waiting = TcpStream::connect(server.address()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10));
    drop((waiting, idle));
}

#[tokio::test]
async fn the_command_line_indexes_and_searches_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = serving(dir.path(), 10_000).await;
    let url = format!("https://localhost:{}", server.address().port());
    let cert = dir.path().join("cert.pem").display().to_string();
    let run = |words: &[&str]| {
        let mut latentd = Command::new(env!("CARGO_BIN_EXE_latentd"));
        latentd.current_dir(root()).args(words);
        tokio::task::spawn_blocking(move || latentd.output().unwrap())
    };
    let ran = run(&["index", "examples", "--url", &url, "--ca-file", &cert]).await.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let ran = run(&["search", "examples/hat-1.jpg", "--url", &url, "--ca-file", &cert]).await.unwrap();
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success() && told.contains("hat-1"), "{told}");
    let stranger = run(&["search", "examples/hat-1.jpg", "--url", &url]).await.unwrap();
    assert!(!stranger.status.success(), "nobody vouches for the certificate");
    let address = server.address().to_string();
    let ran = run(&["healthcheck", "--tls", "--listen", &address]).await.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let ran = run(&["healthcheck", "--listen", &address]).await.unwrap();
    assert!(!ran.status.success(), "it speaks TLS only");
    server.stop().await;
}

#[tokio::test]
async fn pictures_are_fetched_over_it_from_whom_somebody_vouches_for() {
    let dir = tempfile::tempdir().unwrap();
    let from = serving(dir.path(), 10_000).await;
    let port = from.address().port();
    // It is there, and no picture: that it was read at all is what counts.
    let url = format!("https://localhost:{port}/ui/icon.svg");
    for (ca_file, code) in
        [(dir.path().join("cert.pem"), "unsupported_format"), (PathBuf::new(), "url_unreachable")]
    {
        let server = Server::with(|config| {
            config.url_inputs = true;
            config.url_allow_private = true;
            config.url_allow_ports = List(vec![port]);
            config.ca_file = ca_file;
        })
        .await;
        let reply = server.post_json("/embed", &serde_json::json!({"inputs": [{"url": url}]})).await;
        let reply: serde_json::Value = reply.json().await.unwrap();
        assert_eq!(reply["results"][0]["error"]["code"], code, "{reply}");
        server.stop().await;
    }
    from.stop().await;
}
