//! Upkeep: graphs and their snapshots across starts, checks, backups and repairs.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use latentd::store::embedded::upkeep;
use latentd::store::{
    CollectionName, EmbeddedOptions, EmbeddedStore, IndexChoice, IndexKind, IndexOptions, Store, StoreError,
};

use crate::store::{id, item, near, open};

/// Opens a store whose collections have a graph, however small.
pub fn open_walked(dir: &Path) -> Result<EmbeddedStore, StoreError> {
    let index = IndexOptions { choice: IndexChoice::Hnsw, ..IndexOptions::default() };
    EmbeddedStore::open_blocking(EmbeddedOptions { search_threads: 1, index, ..EmbeddedOptions::new(dir) })
}

async fn fill(store: &EmbeddedStore, names: std::ops::Range<u32>) {
    let items = names.map(|n| item(&format!("item {n:05}"), n)).collect();
    let results = store.upsert(CollectionName::default(), items).await.unwrap();
    assert!(results.iter().all(Result::is_ok));
}

/// Waits until the graph leads to everything; gives how many items it did not lead to at first.
pub async fn linked(store: &EmbeddedStore) -> u64 {
    let index = || async { store.collections().await.unwrap()[0].index };
    let mut first = None;
    for _ in 0..600 {
        let now = index().await;
        first.get_or_insert(now.waiting);
        if now.kind == IndexKind::Hnsw && now.waiting == 0 {
            return first.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it was not linked: {:?}", index().await);
}

async fn ids(store: &EmbeddedStore, seed: u32, k: usize) -> Vec<String> {
    let found = store.search(CollectionName::default(), near(seed, k)).await.unwrap();
    found.into_iter().map(|neighbour| neighbour.id.to_string()).collect()
}

fn snapshot(dir: &Path) -> std::path::PathBuf {
    dir.join("graphs/1.graph")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_caught_up_and_a_damaged_one_built_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_walked(dir.path()).unwrap();
    fill(&store, 0..3000).await;
    linked(&store).await;
    store.close().await.unwrap();
    let whole = std::fs::read(snapshot(dir.path())).unwrap();

    // Only what the snapshot does not know is linked.
    let store = open_walked(dir.path()).unwrap();
    assert!(linked(&store).await <= 10);
    fill(&store, 3000..3200).await;
    let gone: Vec<_> = (100..150).map(|n| id(&format!("item {n:05}"))).collect();
    store.delete(CollectionName::default(), gone).await.unwrap();
    linked(&store).await;
    drop(store);
    // As after a crash: the snapshot is older than the database.
    std::fs::write(snapshot(dir.path()), &whole).unwrap();
    let store = open_walked(dir.path()).unwrap();
    assert!(linked(&store).await <= 200);
    assert_eq!(ids(&store, 3100, 1).await, ["item 03100"]);
    assert_eq!(ids(&store, 70, 1).await, ["item 00070"]);
    assert_eq!(ids(&store, 120, 1000).await.len(), 1000);
    assert!(
        ids(&store, 120, 1000).await.iter().all(|id| !("item 00100".."item 00150").contains(&id.as_str()))
    );
    let measured = store.recall(&CollectionName::default(), 10, 100).await.unwrap().unwrap();
    assert!(measured.recall >= 0.98 && measured.queries == 100, "{measured:?}");
    drop(store);

    for damage in [&whole[..whole.len() / 2], b"", &[7; 4000]] {
        std::fs::write(snapshot(dir.path()), damage).unwrap();
        let store = open_walked(dir.path()).unwrap();
        assert_eq!(ids(&store, 3100, 1).await, ["item 03100"]);
        linked(&store).await;
        assert_eq!(ids(&store, 3100, 1).await, ["item 03100"]);
        store.close().await.unwrap();
        assert!(std::fs::read(snapshot(dir.path())).unwrap().len() > 10_000);
    }
    // With another choice it is neither needed nor in the way.
    let store = open(dir.path()).unwrap();
    assert_eq!(ids(&store, 3100, 1).await, ["item 03100"]);
    store.drop_collection(CollectionName::default()).await.unwrap();
    drop(store);
    drop(open(dir.path()).unwrap());
    assert!(!snapshot(dir.path()).exists());
}

fn latentd(arguments: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latentd"));
    command.arg("store").args(arguments).arg("--data-dir").arg(dir).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_store_in_use_is_whole_and_overwrites_nothing() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let copy = other.path().join("copy.sqlite3");
    let copy = copy.to_str().unwrap();
    let store = std::sync::Arc::new(open(dir.path()).unwrap());
    fill(&store, 0..500).await;
    // Writes go on meanwhile.
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 5..50 {
                fill(&store, n * 100..(n + 1) * 100).await;
            }
        }
    });
    let made = latentd(&["backup", copy], dir.path());
    assert!(made.status.success(), "{}", text(&made));
    writer.await.unwrap();
    let again = latentd(&["backup", copy], dir.path());
    assert!(!again.status.success() && text(&again).contains("not overwritten"), "{}", text(&again));
    for needs_it_alone in [&["compact"][..], &["recall"]] {
        let refused = latentd(needs_it_alone, dir.path());
        assert!(!refused.status.success() && text(&refused).contains("in use"), "{}", text(&refused));
    }
    let sound = latentd(&["check"], dir.path());
    assert!(sound.status.success() && text(&sound).contains("default: 5000 items"), "{}", text(&sound));

    let restored = other.path().join("data");
    let made = latentd(&["restore", copy], &restored);
    assert!(made.status.success(), "{}", text(&made));
    let kept = open(&restored).unwrap();
    let items = kept.collections().await.unwrap()[0].items;
    // As of one moment: whole writes of a hundred.
    assert!((500..=5000).contains(&items) && items % 100 == 0, "{items}");
    assert_eq!(ids(&kept, 77, 1).await, ["item 00077"]);
    drop(kept);
    let refused = latentd(&["restore", copy], &restored);
    assert!(!refused.status.success() && text(&refused).contains("not overwritten"), "{}", text(&refused));

    let all: Vec<_> = (0..4000).map(|n| id(&format!("item {n:05}"))).collect();
    store.delete(CollectionName::default(), all).await.unwrap();
    store.close().await.unwrap();
    let size = || std::fs::metadata(upkeep::database(dir.path())).unwrap().len();
    let before = size();
    let packed = latentd(&["compact"], dir.path());
    assert!(packed.status.success() && size() < before / 2, "{} {before} {}", text(&packed), size());
    let measured = latentd(&["recall", "--queries", "50", "--index", "hnsw"], dir.path());
    assert!(measured.status.success() && text(&measured).contains("hnsw: recall@10 "), "{}", text(&measured));
}

#[tokio::test]
async fn damage_is_found_and_repaired_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    fill(&store, 0..50).await;
    store.close().await.unwrap();
    drop(store);
    let path = upkeep::database(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    // A byte of one item's metadata.
    let at = bytes.windows(8).position(|window| window == br#"{"v":17}"#).unwrap();
    bytes[at + 5] = b'9';
    std::fs::write(&path, &bytes).unwrap();
    let found = latentd(&["check"], dir.path());
    assert!(!found.status.success() && text(&found).contains("item 00017"), "{}", text(&found));
    let backup = dir.path().join("backup");
    let made = latentd(&["backup", backup.to_str().unwrap()], dir.path());
    assert!(!made.status.success(), "a damaged backup is told: {}", text(&made));
    let refused = latentd(&["restore", backup.to_str().unwrap()], &dir.path().join("new"));
    assert!(!refused.status.success() && text(&refused).contains("damaged"), "{}", text(&refused));

    let repaired = latentd(&["check", "--repair"], dir.path());
    assert!(repaired.status.success() && text(&repaired).contains("1 damaged"), "{}", text(&repaired));
    let store = open(dir.path()).unwrap();
    let info = store.collections().await.unwrap().remove(0);
    assert_eq!((info.items, info.damaged), (49, 0));
    drop(store);

    let nothing = latentd(&["check"], &dir.path().join("none"));
    assert!(!nothing.status.success() && text(&nothing).contains("store.sqlite3"), "{}", text(&nothing));
    // A page of the tables themselves is not repaired, but refused.
    let mut bytes = std::fs::read(&path).unwrap();
    let page = bytes.len() / 8192 / 2 * 8192;
    bytes[page..page + 4000].fill(0xab);
    std::fs::write(&path, &bytes).unwrap();
    let refused = latentd(&["check", "--repair"], dir.path());
    assert!(!refused.status.success() && text(&refused).contains("damaged"), "{}", text(&refused));
}
