//! The distributed engine's own: several processes on one engine, and an engine that is not there.
//!
//! Two stores that were opened apart share nothing but the engine, as two processes do.

use std::time::{Duration, Instant};

use latentd::cli::serve::open_store;
use latentd::config::Config;
use latentd::store::{CollectionName, ItemId, NewItem, Store, StoreChoice, StoreError, Thumbnail};
use latentd_model::Contract;

use crate::store::{id, item, near, vector};
use crate::support::engine::{Engine, distributed};

fn default() -> CollectionName {
    CollectionName::default()
}

/// An engine, unless none was named.
fn engine(options: &str) -> Option<Engine> {
    let Some(url) = distributed() else {
        eprintln!("skipped: STORE_TEST_URL names no distributed engine");
        return None;
    };
    let mut engine = Engine::new();
    let place = engine.config.store.to_string();
    assert!(place.starts_with(&url), "{place}");
    engine.config.store = format!("{place}{options}").parse().unwrap();
    Some(engine)
}

/// What is there, as soon as it is as expected or after some seconds.
async fn soon(store: &dyn Store, id: ItemId, expected: bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        if store.get(default(), id.clone()).await.is_ok_and(|item| item.is_some() == expected) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test]
async fn processes_see_each_others_writes_after_a_moment() {
    let Some(engine) = engine("") else { return };
    let (one, other) = (engine.open().await, engine.open().await);
    let pictured = NewItem { thumbnail: Some(Thumbnail(vec![1].into())), ..item("a", 1) };
    one.upsert(default(), vec![pictured]).await.unwrap()[0].as_ref().unwrap();
    assert!(soon(&*other, id("a"), true).await);
    assert_eq!(other.thumbnail(default(), id("a")).await.unwrap().unwrap().0.as_ref(), [1]);
    let foreign = NewItem { contract: Contract::from_bytes([9; 8]), ..item("b", 2) };
    let refused = other.upsert(default(), vec![foreign.clone()]).await.unwrap().remove(0);
    assert_eq!(refused.unwrap_err().code(), "contract_mismatch");
    assert_eq!(other.delete(default(), vec![id("a")]).await.unwrap(), [true]);
    assert!(soon(&*one, id("a"), false).await);
    // One deletes the collection, the other makes it anew for another encoder: neither mixes the two.
    assert!(other.drop_collection(default()).await.unwrap());
    other.upsert(default(), vec![foreign]).await.unwrap()[0].as_ref().unwrap();
    let late = one.upsert(default(), vec![item("c", 3)]).await.unwrap().remove(0);
    assert_eq!(late.unwrap_err().code(), "contract_mismatch");
    assert_eq!(one.search(default(), near(1, 1)).await.unwrap_err().code(), "contract_mismatch");
    assert_eq!(one.collections().await.unwrap()[0].contract, Contract::from_bytes([9; 8]));
}

#[tokio::test]
async fn strong_reads_see_every_acknowledged_write() {
    let Some(engine) = engine("?consistency=strong&index=flat&shards=2") else { return };
    let (one, other) = (engine.open().await, engine.open().await);
    for round in 0..10u32 {
        one.upsert(default(), vec![item("a", round)]).await.unwrap()[0].as_ref().unwrap();
        let kept = other.get(default(), id("a")).await.unwrap().unwrap();
        assert_eq!(kept.vector, Some(vector(round)));
        let found = other.search(default(), near(round, 1)).await.unwrap();
        assert!(found[0].score > 0.9999);
        assert_eq!(one.delete(default(), vec![id("a")]).await.unwrap(), [true]);
        assert!(other.get(default(), id("a")).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_make_one_collection_at_once_agree() {
    let Some(engine) = engine("?consistency=strong") else { return };
    let stores = futures::future::join_all((0..3).map(|_| engine.open())).await;
    let writes = stores.into_iter().enumerate().map(|(n, store)| {
        tokio::spawn(async move {
            let contract = Contract::from_bytes([n as u8 % 2 + 1; 8]);
            let new = NewItem { contract, ..item(&n.to_string(), n as u32) };
            (contract, store.upsert(default(), vec![new]).await.unwrap().remove(0), store)
        })
    });
    let mut kept = 0;
    for (contract, result, store) in futures::future::join_all(writes).await.into_iter().map(Result::unwrap) {
        let info = store.collections().await.unwrap();
        assert_eq!(info.len(), 1);
        match result {
            Ok(_) => {
                assert_eq!(info[0].contract, contract);
                kept += 1;
            }
            Err(error) => assert_eq!(error.code(), "contract_mismatch", "{error}"),
        }
        assert!((1..=2).contains(&info[0].items));
    }
    assert!((1..=2).contains(&kept), "{kept}");
}

#[tokio::test]
async fn an_engine_that_does_not_answer_is_told() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = format!("milvus://{closed}/x?wait_ms=1500").parse::<StoreChoice>().unwrap();
    let began = Instant::now();
    let error = open_store(&Config { store, ..Config::default() }).await.err().unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    let error = error.downcast::<StoreError>().unwrap();
    assert_eq!(error.code(), "store_unavailable");
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
}

fn migrate(engine: &Engine) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_latentd"))
        .args(["store", "migrate", "--to", &engine.config.store.to_string(), "--data-dir"])
        .arg(&engine.config.data_dir)
        .output()
        .unwrap()
}

#[tokio::test]
async fn an_embedded_store_is_migrated_and_compared() {
    let Some(engine) = engine("") else { return };
    let embedded = Config { store: StoreChoice::Embedded, ..engine.config.clone() };
    let from = open_store(&embedded).await.unwrap();
    let second = CollectionName::new("second").unwrap();
    for part in 0..3u32 {
        let items = (0..400).map(|n| item(&format!("{n}/é"), part * 1000 + n)).collect();
        from.upsert(default(), items).await.unwrap();
        let pictured = NewItem {
            thumbnail: Some(Thumbnail(vec![part as u8].into())),
            picture: Some(vec![part as u8; 100].into()),
            ..item(&part.to_string(), part)
        };
        from.upsert(second.clone(), vec![pictured]).await.unwrap();
    }
    let kept = from.get(default(), id("7/é")).await.unwrap().unwrap();
    from.close().await.unwrap();
    drop(from);
    let told = |output: &std::process::Output| {
        let text =
            [output.stdout.clone(), output.stderr.clone()].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{text:?}");
        text[0].clone()
    };
    let first = told(&migrate(&engine));
    assert!(first.contains("default: 400 items, 400 copied now, sha256 "), "{first}");
    assert!(first.contains("second: 3 items, 3 copied now"), "{first}");

    let to = engine.open().await;
    let there = to.get(default(), id("7/é")).await.unwrap().unwrap();
    assert_eq!(
        (there.vector, there.metadata, there.content_hash),
        (kept.vector, kept.metadata, kept.content_hash)
    );
    assert_eq!(to.thumbnail(second.clone(), id("2")).await.unwrap().unwrap().0.as_ref(), [2]);
    assert!(to.kept_picture(second.clone(), id("1")).await.unwrap().is_some());
    // Half done and half wrong, as a broken-off run would leave it: the same command makes it good.
    to.delete(default(), vec![id("3/é"), id("399/é")]).await.unwrap();
    to.upsert(default(), vec![item("5/é", 1)]).await.unwrap()[0].as_ref().unwrap();
    let again = told(&migrate(&engine));
    assert!(again.contains("default: 400 items, 3 copied now"), "{again}");
    let sums = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.split_once("sha256")?.1.to_owned())).collect()
    };
    assert!(sums(&first).len() == 2 && sums(&first) == sums(&again), "{again}");
    // What only the other store has is no part of the migration.
    to.upsert(default(), vec![item("other", 1)]).await.unwrap()[0].as_ref().unwrap();
    let refused = migrate(&engine);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && text.contains("\"other\""), "{text}");
}

fn upkeep(engine: &Engine, arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_latentd"))
        .arg("store")
        .args(arguments)
        .args(["--store", &engine.config.store.to_string(), "--data-dir"])
        .arg(&engine.config.data_dir)
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[tokio::test]
async fn upkeep_works_on_the_distributed_store_or_says_what_to_do() {
    let Some(engine) = engine("") else { return };
    let store = engine.open().await;
    let items = (0..700).map(|n| item(&format!("{n}/é"), n)).collect();
    store.upsert(default(), items).await.unwrap();
    let file = b"an original".to_vec();
    let pictured = NewItem {
        content_hash: latentd::store::ContentHash::of(&file),
        picture: Some(file.into()),
        ..item("pictured", 1)
    };
    store.upsert(CollectionName::new("second").unwrap(), vec![pictured]).await.unwrap()[0].as_ref().unwrap();
    let (sound, told) = upkeep(&engine, &["check"]);
    assert!(
        sound && told.contains("default: 700 items, sha256 ") && told.contains("second: 1 items"),
        "{told}"
    );
    let (done, told) = upkeep(&engine, &["check", "--repair"]);
    assert!(!done && told.contains("embedded store only"), "{told}");
    let (done, told) = upkeep(&engine, &["recall", "--queries", "50"]);
    assert!(done && told.contains("hnsw: recall@10 "), "{told}");
    let recall: f64 = told.split("recall@10 ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(recall > 0.98, "{told}");
    let (done, told) = upkeep(&engine, &["recall", "--collection", "none"]);
    assert!(!done && told.contains("there is no collection"), "{told}");
    let (done, told) = upkeep(&engine, &["compact"]);
    assert!(done && told.contains("collection default: "), "{told}");

    // Out into a file, and into another database from it.
    let copy = engine.config.data_dir.join("copy.sqlite3");
    let copy = copy.to_str().unwrap();
    let (done, told) = upkeep(&engine, &["backup", copy]);
    assert!(done && told.contains("default: 700 items, 700 copied now"), "{told}");
    let (done, told) = upkeep(&engine, &["backup", copy]);
    assert!(!done && told.contains("not overwritten"), "{told}");
    let other = self::engine("").unwrap();
    let (done, told) = upkeep(&other, &["restore", copy]);
    assert!(done && told.contains("second: 1 items, 1 copied now"), "{told}");
    let sums = |text: &str| {
        text.lines().filter(|line| line.contains("sha256")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(sums(&upkeep(&engine, &["check"]).1), sums(&upkeep(&other, &["check"]).1));

    // A picture that is gone, and one that was changed, are found.
    let pictures = engine.config.data_dir.join("pictures");
    let original = walk(&pictures).into_iter().find(|path| path.ends_with("original")).unwrap();
    std::fs::write(&original, "another").unwrap();
    let (sound, told) = upkeep(&engine, &["check"]);
    assert!(!sound && told.contains("its original does not fit its content hash"), "{told}");
    std::fs::remove_file(original).unwrap();
    let (sound, told) = upkeep(&engine, &["check"]);
    assert!(!sound && told.contains("\"pictured\": its original is not in "), "{told}");
}

/// All files below a folder.
fn walk(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path.to_str().unwrap().to_owned()] })
        .collect()
}
