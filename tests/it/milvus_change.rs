//! Changing the encoder of a store that several processes share: who leads, what the others do, and who takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use latentd::store::refresh::Lead;
use latentd::store::{CollectionName, Store};
use latentd_model::Contract;
use serde_json::{Value, json};

use crate::refresh::{KEY, admin, key_file, models, pictures, until_done, vector as vector_of};
use crate::store::{CONTRACT, id, item, vector};
use crate::support::engine::{Engine, distributed};
use crate::support::{Server, copy_dir, model_dir, problem};
use latentd::refresh::ModelRecord;
use latentd_model::Artefact;

const NEXT: Contract = Contract::from_bytes([9; 8]);

fn default() -> CollectionName {
    CollectionName::default()
}

/// An engine whose leaders are given up after the shortest time; none where none was named.
fn engine() -> Option<Engine> {
    if distributed().is_none() {
        eprintln!("skipped: STORE_TEST_URL names no distributed engine");
        return None;
    }
    let mut engine = Engine::new();
    engine.config.store = format!("{}?lead_ms=5000", engine.config.store).parse().unwrap();
    Some(engine)
}

async fn until(what: &str, limit: u64, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(limit), "{what} within {limit} s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn lead(store: &dyn Store) -> Lead {
    store.agreed().unwrap().borrow().lead.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_leads_and_another_takes_over_when_it_is_gone() {
    let Some(engine) = engine() else { return };
    let (one, other) = (engine.open().await, engine.open().await);
    one.upsert(default(), vec![item("a", 1)]).await.unwrap()[0].as_ref().unwrap();
    // Of two that want the lead at once one has it.
    let order = |text: &str| vec![("activation", Some(text.to_owned()))];
    let (first, second) = tokio::join!(
        one.refresh_lead(CONTRACT, NEXT, order("1")),
        other.refresh_lead(CONTRACT, NEXT, order("2"))
    );
    let (leader, follower) = match (first, second) {
        (Ok(()), Err(error)) | (Err(error), Ok(())) if error.code() == "refresh_under_way" => {
            if lead(&*one) == Lead::Ours { (one, other) } else { (other, one) }
        }
        both => panic!("{both:?}"),
    };
    until("the follower knows", 5, async || matches!(lead(&*follower), Lead::Other(_))).await;
    let refused = follower.refresh_lead(CONTRACT, NEXT, Vec::new()).await.unwrap_err();
    assert_eq!(refused.code(), "refresh_under_way");
    leader.refresh_begin(CONTRACT, NEXT, vector(1).dim()).await.unwrap();
    leader.refresh_hold(true).await.unwrap();
    let held = follower.upsert(default(), vec![item("b", 2)]).await.unwrap_err();
    assert_eq!(held.code(), "encoder_changing", "{held}");
    assert_eq!(follower.delete(default(), vec![id("a")]).await.unwrap_err().code(), "encoder_changing");
    // The leader dies.
    drop(leader);
    until("the leader is missed", 15, async || lead(&*follower) == Lead::Abandoned).await;
    follower.refresh_lead(CONTRACT, NEXT, Vec::new()).await.unwrap();
    follower.upsert(default(), vec![item("b", 2)]).await.unwrap()[0].as_ref().unwrap();
    follower.refresh_end(vec![("activation", None)]).await.unwrap();
    assert_eq!(follower.setting("activation").await.unwrap(), None);
    let info = follower.collections().await.unwrap();
    let there = follower.list(default(), None, 10, false).await.unwrap();
    let there: Vec<_> = there.iter().map(|item| item.id.as_str()).collect();
    assert_eq!((info.len(), info[0].contract, info[0].items), (1, CONTRACT, 2), "{there:?}");
}

async fn server(engine: &Engine, models: std::path::PathBuf) -> Server {
    let (store, data, key) = (engine.config.store.clone(), engine.config.data_dir.clone(), key_file());
    Server::with(|config| {
        config.model = model_dir();
        config.models_dir = models;
        config.admin_key_file = key;
        config.store = store;
        config.data_dir = data;
    })
    .await
}

/// What a client knows of the items that it wrote: the last that was answered, and whether a later try was not.
type Written = Vec<(String, bool, bool)>;

/// Writes and deletes through one server until it is told to stop.
async fn writes(server: Arc<Server>, name: &'static str, stop: Arc<AtomicBool>) -> (Written, usize) {
    let pictures = pictures();
    let (mut written, mut failed, mut n) = (Written::new(), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let key = format!("{name}-{n}");
        let url = server.at(&format!("/items/{key}"));
        let put = server.client.put(&url).header("content-type", "image/png");
        let status = put.body(pictures[n % pictures.len()].1.clone()).send().await.unwrap().status().as_u16();
        assert!(matches!(status, 200 | 201 | 409 | 503), "{key}: {status}");
        failed += usize::from(status > 201);
        written.push((key, status < 300, status > 201));
        // An earlier one goes.
        if n % 3 == 2 {
            let (key, there, uncertain) = &mut written[n / 2];
            let url = server.at(&format!("/items/{key}"));
            let status = server.client.delete(url).send().await.unwrap().status().as_u16();
            assert!(matches!(status, 204 | 404 | 503), "{key}: {status}");
            if status == 503 {
                *uncertain = true;
                failed += 1;
            } else {
                (*there, *uncertain) = (false, false);
            }
        }
        n += 1;
    }
    (written, failed)
}

async fn check(server: &Server, contract: &str, written: &Written) {
    for (key, there, uncertain) in written.iter().filter(|(.., uncertain)| !uncertain) {
        let reply = server.client.get(server.at(&format!("/items/{key}"))).send().await.unwrap();
        assert_eq!(reply.status() == 200, *there, "{key} {uncertain}: {}", reply.status());
        if *there {
            let item: Value = reply.json().await.unwrap();
            assert_eq!(item["contract"], contract, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_processes_change_together_and_none_loses_a_write() {
    let Some(engine) = engine() else { return };
    let (folder, sibling) = models();
    let one = Arc::new(server(&engine, folder.to_owned()).await);
    let other = Arc::new(server(&engine, folder.to_owned()).await);
    let old = one.app.embedder().artefact().contract().to_string();
    let stop = Arc::new(AtomicBool::new(false));
    let tasks = [(&one, "one"), (&other, "other"), (&other, "third")]
        .map(|(server, name)| tokio::spawn(writes(Arc::clone(server), name, Arc::clone(&stop))));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = admin(&one.client, &one.url, &format!("/models/{sibling}/activate")).await;
    assert!(begun.status().is_success(), "{}", begun.text().await.unwrap());
    let refused = other.client.post(other.at(&format!("/models/{sibling}/activate"))).bearer_auth(KEY);
    problem(refused.send().await.unwrap(), 409, "refresh_under_way").await;
    let seen = other.get_json("/models/refresh").await;
    assert!(seen["model"] == *sibling && seen["led_by"].is_string(), "{seen}");
    let done = until_done(&one.client, &one.url).await;
    assert_eq!(done["state"], "done", "{done}");
    until("the other changes too", 20, async || {
        other.get_json("/models").await["active"].as_str() == Some(sibling)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let new = one.app.embedder().artefact().contract().to_string();
    assert_ne!(old, new);
    // All but the last few seconds is seen by everybody.
    let done = futures::future::join_all(tasks).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    for outcome in done {
        let (written, failed) = outcome.unwrap();
        println!("{} items written meanwhile, {failed} calls refused", written.len());
        assert!(written.len() > 5);
        for server in [&one, &other] {
            check(server, &new, &written).await;
        }
    }
    let (id, picture) = &pictures()[3];
    let found: Value = other.post("/search?k=1", picture.clone()).await.json().await.unwrap();
    assert_eq!(found["contract"], new, "{found} {id}");
    assert_eq!(other.get_json("/models/refresh").await["state"], "done");

    // And back, led by another one.
    let back = admin(&other.client, &other.url, "/models/rollback?drop_unembeddable=true").await;
    assert!(back.status().is_success(), "{}", back.text().await.unwrap());
    assert_eq!(until_done(&other.client, &other.url).await["state"], "done");
    until("the first is back too", 20, async || one.app.embedder().artefact().contract().to_string() == old)
        .await;
    let item = json!({"id": "nobody", "k": 1});
    problem(one.post_json("/search", &item).await, 404, "unknown_item").await;
    assert_eq!(vector_of(&one, "one-0").await.0, old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_without_the_encoder_says_so_until_it_has_it() {
    let Some(engine) = engine() else { return };
    let (folder, sibling) = models();
    let own = tempfile::tempdir().unwrap();
    let server = server(&engine, own.path().to_owned()).await;
    let (_, picture) = &pictures()[3];
    let put = server.client.put(server.at("/items/a")).header("content-type", "image/png");
    assert_eq!(put.body(picture.clone()).send().await.unwrap().status(), 201);
    // Another process, on another machine, has changed the encoder.
    let model = ModelRecord::of(&Artefact::open(&folder.join(sibling)).unwrap());
    let model = ModelRecord { dir: own.path().join("elsewhere").join(sibling), ..model };
    let text = serde_json::to_string(&model).unwrap();
    engine.open().await.set(vec![("active_model", Some(text))]).await.unwrap();
    let ready = async || server.client.get(server.at("/readyz")).send().await.unwrap();
    until("it is missing", 10, async || ready().await.status() == 503).await;
    let told = problem(ready().await, 503, "encoder_missing").await;
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.contains(sibling) && detail.contains(own.path().to_str().unwrap()), "{told}");
    problem(server.post("/search?k=1", picture.clone()).await, 503, "encoder_missing").await;
    copy_dir(&folder.join(sibling), &own.path().join(sibling));
    until("it has it", 30, async || ready().await.status() == 200).await;
    assert_eq!(server.app.embedder().artefact().contract(), model.contract);
    server.stop().await;
}
