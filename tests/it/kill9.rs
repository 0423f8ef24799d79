//! kill -9 and a full disk: what was acknowledged is there, what was deleted stays away.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use latentd::store::{CollectionName, Store, StoreError};
use parking_lot::Mutex;
use rand::RngExt;
use serde_json::json;

use crate::store::{id, item, near, open};
use crate::support::example;
use crate::support::program::Program;
use crate::upkeep::{linked, open_walked};

/// Where the child works.
const DIR: &str = "STORE_TEST_DIR";
const WRITERS: usize = 8;
const IDS: u32 = 6;

/// Versions of an id come one after another; every fourth is a deletion.
fn is_delete(version: u32) -> bool {
    version % 4 == 3
}

/// What is there after this version.
fn after(version: u32) -> Option<u32> {
    (version > 0 && !is_delete(version)).then_some(version)
}

/// This test binary again, as a process that runs one of its ignored tests.
fn child(test: &str, dir: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(DIR, dir).stdout(Stdio::piped());
    command
}

#[test]
#[ignore = "the child of a_killed_store_has_lost_nothing"]
fn writer_child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let round = std::env::var("STORE_TEST_ROUND").unwrap();
    let store = Arc::new(open_walked(dir.as_ref()).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let writers: Vec<_> =
            (0..WRITERS).map(|n| tokio::spawn(write_on(store.clone(), format!("{round}-{n}")))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

/// Writes version after version of some ids, saying after each acknowledgement which.
async fn write_on(store: Arc<impl Store>, name: String) {
    for version in 1..1_000_000 {
        for n in 0..IDS {
            let key = format!("{name}-{n}");
            if is_delete(version) {
                assert_eq!(store.delete(CollectionName::default(), vec![id(&key)]).await.unwrap(), [true]);
            } else {
                store.upsert(CollectionName::default(), vec![item(&key, version)]).await.unwrap()[0]
                    .as_ref()
                    .unwrap();
            }
            let mut out = std::io::stdout().lock();
            writeln!(out, "acknowledged {key} {version}").unwrap();
        }
    }
}

/// Kills after a while, and gives the last acknowledged version of each id.
fn kill(mut child: Child, wait: Duration) -> HashMap<String, u32> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut acknowledged = HashMap::new();
    let mut take = |line: String| {
        if let Some((key, version)) = line.strip_prefix("acknowledged ").and_then(|rest| rest.split_once(' '))
        {
            acknowledged.insert(key.to_owned(), version.parse().unwrap());
        }
    };
    // The clock starts with the first acknowledgement.
    for line in lines.by_ref() {
        let first = line.starts_with("acknowledged");
        take(line);
        if first {
            break;
        }
    }
    let killer = std::thread::spawn(move || {
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    lines.for_each(take);
    killer.join().unwrap();
    acknowledged
}

#[tokio::test]
async fn a_killed_store_has_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // What earlier rounds left; it must not change any more.
    let mut settled: BTreeMap<String, Option<u32>> = BTreeMap::new();
    let (mut total, mut snapshots) = (0u64, false);
    for round in 0..20 {
        let mut command = child("kill9::writer_child", dir.path());
        let wait = Duration::from_millis(rand::rng().random_range(0..250));
        let acknowledged = kill(command.env("STORE_TEST_ROUND", round.to_string()).spawn().unwrap(), wait);
        total += acknowledged.values().map(|&version| u64::from(version)).sum::<u64>();
        let began = Instant::now();
        // It has a graph, from the snapshot that the round before left, and caught up from the database.
        let store = open_walked(dir.path()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        // One that was there stays; a child that lived long enough has written the first itself.
        assert!(!snapshots || dir.path().join("graphs/1.graph").exists());
        let mut versions = HashMap::new();
        let page = store.list(CollectionName::default(), None, 1000, true).await.unwrap();
        for kept in &page {
            let version = kept.metadata.to_map()["v"].as_u64().unwrap() as u32;
            assert_eq!(kept.vector, item("x", version).vector.into());
            versions.insert(kept.id.to_string(), version);
        }
        for (key, expected) in &settled {
            assert_eq!(versions.get(key), expected.as_ref(), "round {round}: {key} changed later");
        }
        for writer in 0..WRITERS {
            for n in 0..IDS {
                let key = format!("{round}-{writer}-{n}");
                let last = acknowledged.get(&key).copied().unwrap_or(0);
                let found = versions.get(&key).copied();
                // The version on its way when the process died may have come through.
                assert!(
                    found == after(last) || found == after(last + 1),
                    "round {round}: {key}: {found:?}, acknowledged {last}"
                );
                settled.insert(key, found);
            }
        }
        let near = store.search(CollectionName::default(), near(1, 1000)).await.unwrap();
        let mut found: Vec<_> = near.iter().map(|neighbour| neighbour.id.clone()).collect();
        found.sort();
        let listed: Vec<_> = page.iter().map(|kept| kept.id.clone()).collect();
        assert_eq!(found, listed, "round {round}: what was deleted must not be found");
        if !page.is_empty() {
            linked(&store).await;
            snapshots = true;
        }
        store.close().await.unwrap();
    }
    println!("20 kills, {total} acknowledged writes, none lost");
}

#[test]
#[ignore = "the child of a_full_disk_is_told_and_loses_nothing"]
fn full_disk_child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let others = std::path::Path::new(&dir).join("others");
    std::fs::write(&others, vec![1; 4 << 20]).unwrap();
    runtime.block_on(async {
        let store = open(dir.as_ref()).unwrap();
        let mut count = 0;
        let error = fill(&store, &mut count).await;
        assert_eq!(error.code(), "storage_full", "{error}");
        // Reads and searches go on, and show none of the write that failed.
        let info = store.collections().await.unwrap().remove(0);
        assert_eq!(info.items, count * 50);
        assert!(store.get(CollectionName::default(), id(&format!("{count}-0"))).await.unwrap().is_none());
        drop(store);
        let store = open(dir.as_ref()).unwrap();
        assert_eq!(store.collections().await.unwrap()[0].items, count * 50);
        println!("full after {count} writes: {error}");
        // It tells that it takes no writes, and by itself when it does again.
        store.health().await.unwrap();
        fill(&store, &mut count).await;
        assert!(store.health().await.is_err());
        tokio::time::sleep(Duration::from_millis(2100)).await;
        assert!(store.health().await.is_err(), "tried in vain");
        std::fs::remove_file(&others).unwrap();
        let began = Instant::now();
        while store.health().await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "there is room again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        store.upsert(CollectionName::default(), vec![item("last", 1)]).await.unwrap();
        assert_eq!(store.collections().await.unwrap()[0].items, count * 50 + 1);
        println!("and takes writes again");
    });
}

/// Writes until a write fails.
async fn fill(store: &dyn Store, count: &mut u64) -> StoreError {
    loop {
        let items = (0..50).map(|n| item(&format!("{count}-{n}"), n)).collect();
        match store.upsert(CollectionName::default(), items).await {
            Ok(_) => *count += 1,
            Err(error) => return error,
        }
    }
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let exe = std::env::current_exe().unwrap();
    let script = r#"mount -t tmpfs -o size=8m none "$STORE_TEST_DIR" && exec "$0" --exact kill9::full_disk_child --ignored --nocapture"#;
    let run =
        Command::new("unshare").args(["-rm", "sh", "-c", script]).arg(exe).env(DIR, dir.path()).output();
    let Ok(run) = run else { return println!("skipped: there is no unshare here") };
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if !out.contains("running 1 test") {
        return println!("skipped: a small file system cannot be mounted here: {err}");
    }
    assert!(run.status.success() && out.contains("and takes writes again"), "{out}\n{err}");
}

type Versions = Arc<Mutex<HashMap<String, u32>>>;

/// Writes pictures, vectors and deletions through HTTP until the server is gone.
async fn write_http(url: String, name: String, acknowledged: Versions) {
    let client = reqwest::Client::new();
    for version in 1.. {
        let key = name.clone();
        let at = format!("{url}/items/{key}");
        let request = if is_delete(version) {
            client.delete(at)
        } else if name.starts_with("picture") {
            let metadata = json!({ "v": version }).to_string();
            client
                .put(at)
                .query(&[("metadata", metadata)])
                .header("content-type", "image/jpeg")
                .body(example("hat-1"))
        } else {
            let body = json!({ "vector": [1.0, version], "contract": "00000000000000aa", "metadata": { "v": version } });
            client.put(at).query(&[("collection", "vectors")]).json(&body)
        };
        let request = if is_delete(version) && !name.starts_with("picture") {
            request.query(&[("collection", "vectors")])
        } else {
            request
        };
        match request.send().await {
            Ok(reply) if reply.status().is_success() => acknowledged.lock().insert(key, version),
            Ok(reply) => panic!("{}: {}", reply.status(), reply.text().await.unwrap()),
            Err(_) => return,
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_has_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let client = reqwest::Client::new();
    let mut server = Program::serve(dir.path(), |_| {});
    for round in 0..4 {
        let acknowledged = Versions::default();
        let names: Vec<String> =
            (0..6).map(|n| format!("{}-{round}-{n}", if n < 2 { "picture" } else { "vector" })).collect();
        let write =
            |name: &String| tokio::spawn(write_http(server.url.clone(), name.clone(), acknowledged.clone()));
        let writers: Vec<_> = names.iter().map(write).collect();
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(300..900))).await;
        server.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        server = Program::serve(dir.path(), |_| {});
        for name in names {
            let last = acknowledged.lock().get(&name).copied().unwrap_or(0);
            let collection = if name.starts_with("picture") { "default" } else { "vectors" };
            let at = format!("{}/items/{name}", server.url);
            let reply = client.get(at).query(&[("collection", collection)]).send().await.unwrap();
            let found = match reply.status().as_u16() {
                404 => None,
                200 => {
                    Some(reply.json::<serde_json::Value>().await.unwrap()["metadata"]["v"].as_u64().unwrap()
                        as u32)
                }
                status => panic!("{name}: {status}"),
            };
            assert!(
                found == after(last) || found == after(last + 1),
                "{name}: {found:?}, acknowledged {last}"
            );
        }
        assert!(!acknowledged.lock().is_empty(), "nothing was written before the kill");
    }
    server.kill();
}
