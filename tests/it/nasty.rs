//! The nasty files: each gets from /embed the reply that tests/it/nasty.tsv says, soon, and the server goes on.
//!
//! `LATENTD_UPDATE=1 cargo test --release --test it nasty` writes the table anew.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Server, example, nasty, root};

/// Longest a reply may take, generously: the machine that runs this may be busy. Alone, the slowest (a progressive
/// JPEG of 150 scans and 16 million pixels) takes less than a second.
const SOON: Duration = Duration::from_secs(10);

async fn reply(server: &Server, bytes: &[u8]) -> (String, Duration) {
    let began = Instant::now();
    let reply = server.post("/embed", bytes.to_vec()).await;
    let status = reply.status();
    let body: Value = reply.json().await.unwrap();
    (format!("{}\t{}", status.as_u16(), body["code"].as_str().unwrap_or("ok")), began.elapsed())
}

#[tokio::test]
async fn every_nasty_file_gets_its_documented_reply_soon() {
    let Some(files) = nasty() else { return };
    let server = Server::start().await;
    let (mut table, mut late) = ("file\tstatus\tcode\n".to_owned(), Vec::new());
    for (name, bytes) in &files {
        let (told, took) = reply(&server, bytes).await;
        if took > SOON {
            late.push(format!("{name} took {took:?}"));
        }
        writeln!(table, "{}\t{told}", name.escape_debug()).unwrap();
    }
    assert!(late.is_empty(), "{late:#?}");
    assert_eq!(server.post("/embed", example("hat-1")).await.status(), 200);
    assert_eq!((server.app.admission.images(), server.app.admission.bytes()), (0, 0));
    server.stop().await;

    let path = root().join("tests/it/nasty.tsv");
    if std::env::var_os("LATENTD_UPDATE").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differing: Vec<_> =
        table.lines().filter(|line| !committed.lines().any(|other| other == *line)).collect();
    assert!(differing.is_empty(), "not as tests/it/nasty.tsv says:\n{}", differing.join("\n"));
    assert_eq!(committed.lines().count(), table.lines().count());
}
