//! Changing the encoder of a running server: the bundled one and its int8 sibling.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use latentd_model::Artefact;
use serde_json::{Value, json};

use crate::support::engine::{choice, distributed};
use crate::support::program::Program;
use crate::support::{Server, cosine, crops, model_dir, problem};

pub const KEY: &str = "a-key-that-is-long-enough";

/// A models folder with the int8 sibling in it, made once, and the name of the sibling.
pub fn models() -> (&'static Path, &'static str) {
    static MADE: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    let (dir, name) = MADE.get_or_init(|| {
        latentd_model::runtime::init(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pictures = dir.path().join("pictures");
        std::fs::create_dir(&pictures).unwrap();
        let paths: Vec<PathBuf> = crops(&pictures);
        let float = Artefact::open(&model_dir()).unwrap();
        let made = latentd_model::quantise::quantise(&float, &paths, 0.5, &|_| ()).unwrap();
        let (written, _) = latentd_model::quantise::write(&float, &made, dir.path(), "a test").unwrap();
        let name = written.file_name().unwrap().to_str().unwrap().to_owned();
        (dir, name)
    });
    (dir.path(), name)
}

pub fn pictures() -> Vec<(String, Vec<u8>)> {
    let (models, _) = models();
    let mut paths: Vec<_> =
        std::fs::read_dir(models.join("pictures")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

pub fn key_file() -> PathBuf {
    let path = models().0.join("key");
    std::fs::write(&path, KEY).unwrap();
    path
}

async fn server() -> Server {
    let (models, key) = (models().0.to_owned(), key_file());
    Server::with(|config| {
        // The float encoder by its folder, so that the sibling alone is in the models folder.
        config.model = model_dir();
        config.models_dir = models;
        config.admin_key_file = key;
    })
    .await
}

pub async fn admin(client: &reqwest::Client, url: &str, path: &str) -> reqwest::Response {
    client.post(format!("{url}{path}")).bearer_auth(KEY).send().await.unwrap()
}

async fn put(server: &Server, id: &str, picture: &[u8]) {
    let url = server.at(&format!("/items/{id}"));
    let request = server.client.put(url).header("content-type", "image/png").body(picture.to_vec());
    let status = request.send().await.unwrap().status();
    assert!(status.is_success(), "{id}: {status}");
}

pub async fn until_done(client: &reqwest::Client, url: &str) -> Value {
    let began = Instant::now();
    loop {
        let reply = client.get(format!("{url}/models/refresh")).send().await.unwrap();
        let progress: Value = reply.json().await.unwrap();
        if !matches!(progress["state"].as_str(), Some("embedding" | "switching")) {
            return progress;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{progress}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn vector(server: &Server, id: &str) -> (String, Vec<f32>) {
    let item = server.get_json(&format!("/items/{id}?include=vector")).await;
    let numbers = item["vector"].as_array().unwrap_or_else(|| panic!("{item}"));
    (
        item["contract"].as_str().unwrap().to_owned(),
        numbers.iter().map(|number| number.as_f64().unwrap() as f32).collect(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_encoder_changes_under_load_and_back() {
    let (_, sibling) = models();
    let server = Arc::new(server().await);
    let pictures = Arc::new(pictures());
    let old = server.app.embedder().artefact().contract().to_string();
    for (id, picture) in pictures.iter() {
        put(&server, id, picture).await;
    }
    let (kept, gone) = (&pictures[0], &pictures[1]);
    let before = vector(&server, &kept.0).await;
    assert_eq!(before.0, old);

    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn({
        let (server, pictures, stop, written) =
            (server.clone(), pictures.clone(), stop.clone(), written.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let n = written.load(Ordering::Relaxed);
                put(&server, &format!("during-{n}"), &pictures[n % pictures.len()].1).await;
                written.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let searcher = tokio::spawn({
        let (server, pictures, stop, old) = (server.clone(), pictures.clone(), stop.clone(), old.clone());
        async move {
            let (mut searches, mut contracts) = (0usize, Vec::<String>::new());
            while !stop.load(Ordering::Relaxed) {
                let (id, picture) = &pictures[2 + searches % (pictures.len() - 2)];
                let reply = if searches % 2 == 0 {
                    server.post("/search?k=3", picture.clone()).await
                } else {
                    server.post_json("/search", &json!({"id": id, "k": 3, "exclude_self": false})).await
                };
                let status = reply.status();
                let found: Value = reply.json().await.unwrap();
                assert_eq!(status, 200, "{found}");
                let contract = found["contract"].as_str().unwrap().to_owned();
                if contracts.last() != Some(&contract) {
                    contracts.push(contract);
                }
                assert!(found["neighbours"][0]["score"].as_f64().unwrap() > 0.9, "{found}");
                searches += 1;
            }
            assert_eq!(contracts[0], old);
            assert!(contracts.len() <= 2, "old, then new, and never back: {contracts:?}");
            searches
        }
    });

    let begun = admin(&server.client, &server.url, &format!("/models/{sibling}/activate")).await;
    assert!(matches!(begun.status().as_u16(), 200 | 202), "{}", begun.text().await.unwrap());
    // Where several processes share the store a write may be refused while they agree; then nothing was deleted.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        let url = server.at(&format!("/items/{}", gone.0));
        let deleted = server.client.delete(url).send().await.unwrap();
        if deleted.status() == 204 {
            break;
        }
        assert!(distributed().is_some(), "{}", deleted.status());
        problem(deleted, 503, "encoder_changing").await;
    }
    let done = until_done(&server.client, &server.url).await;
    assert_eq!(done["state"], "done", "{done}");
    assert!(done["from_thumbnails"].as_u64().unwrap() >= pictures.len() as u64 - 1, "{done}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let searches = searcher.await.unwrap();
    let during = written.load(Ordering::Relaxed);
    println!("{during} writes and {searches} searches while the encoder changed");
    assert!(during > 5 && searches > 5);

    let new = server.app.embedder().artefact().contract().to_string();
    assert_ne!(old, new);
    let int8 = Server::with(|config| config.model = models().0.join(sibling)).await;
    let expected = int8.embed(&kept.1).await;
    int8.stop().await;
    let after = vector(&server, &kept.0).await;
    assert_eq!(after.0, new);
    // Not the file but its thumbnail was embedded.
    assert!(cosine(&after.1, &expected) > 0.97, "{}", cosine(&after.1, &expected));
    for n in 0..during {
        let (contract, _) = vector(&server, &format!("during-{n}")).await;
        assert_eq!(contract, new, "during-{n}");
    }
    let away = server.client.get(server.at(&format!("/items/{}", gone.0))).send().await.unwrap();
    assert_eq!(away.status(), 404);
    let foreign = json!({"vector": before.1, "contract": old});
    problem(server.post_json("/search", &foreign).await, 409, "contract_mismatch").await;
    let listed = server.get_json("/models").await;
    assert_eq!(listed["active"].as_str(), Some(sibling));

    put(&server, "since", &kept.1).await;
    let back = admin(&server.client, &server.url, "/models/rollback").await;
    let status = back.status();
    let text = back.text().await.unwrap();
    // Where several processes share the store it takes some seconds until all of them know.
    assert!(status == 200 || (status == 202 && distributed().is_some()), "{status} {text}");
    assert_eq!(until_done(&server.client, &server.url).await["state"], "done");
    let again = vector(&server, &kept.0).await;
    assert_eq!(again, before, "the old vector itself");
    assert_eq!(vector(&server, "since").await.0, old);
    assert_eq!(vector(&server, &format!("during-{}", during - 1)).await.0, old);
    let away = server.client.get(server.at(&format!("/items/{}", gone.0))).send().await.unwrap();
    assert_eq!(away.status(), 404, "what was deleted stays away");
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test]
async fn only_the_admin_key_changes_it_and_refusals_change_nothing() {
    let (_, sibling) = models();
    let path = format!("/models/{sibling}/activate");
    let open = Server::start().await;
    let refused = open.client.post(open.at(&path)).bearer_auth(KEY).send().await.unwrap();
    let told = problem(refused, 403, "admin_key_not_set").await;
    assert!(told["detail"].as_str().unwrap().contains("--admin-key-file"));
    open.stop().await;

    let server = server().await;
    let old = server.app.embedder().artefact().contract();
    for key in [None, Some("a-key-that-is-long-enougi"), Some("")] {
        let request = server.client.post(server.at(&path));
        let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
        problem(request.send().await.unwrap(), 401, "admin_key_needed").await;
    }
    let ask = async |path: &str| admin(&server.client, &server.url, path).await;
    problem(ask("/models/nobody-v1/activate").await, 404, "unknown_model").await;
    problem(ask("/models/..%2Fkey/activate").await, 404, "unknown_model").await;
    problem(ask("/models/rollback").await, 409, "no_previous_model").await;
    problem(ask(&format!("{path}?min_overlap=2")).await, 400, "invalid_query").await;
    let cancel = server.client.delete(server.at("/models/refresh")).bearer_auth(KEY).send().await.unwrap();
    problem(cancel, 409, "no_refresh").await;

    // An item that came as a vector cannot be embedded again.
    for (id, picture) in &pictures()[..20] {
        put(&server, id, picture).await;
    }
    let (contract, numbers) = vector(&server, &pictures()[0].0).await;
    let item = json!({"vector": numbers, "contract": contract});
    server
        .client
        .put(server.at("/items/ready"))
        .json(&item)
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    let told = problem(ask(&path).await, 409, "unembeddable_items").await;
    assert_eq!(told["unembeddable"], 1);
    // A bound that no other encoder reaches.
    ask(&format!("{path}?drop_unembeddable=true&min_overlap=1")).await;
    let failed = until_done(&server.client, &server.url).await;
    assert_eq!(failed["state"], "failed", "{failed}");
    assert!(failed["error"].as_str().unwrap().contains("below the bound of 1"), "{failed}");
    assert_eq!(server.app.embedder().artefact().contract(), old);
    assert_eq!(vector(&server, "ready").await.0, contract);

    ask(&format!("{path}?drop_unembeddable=true")).await;
    let done = until_done(&server.client, &server.url).await;
    assert_eq!((&done["state"], &done["unembeddable"]), (&json!("done"), &json!(1)), "{done}");
    assert_eq!(server.client.get(server.at("/items/ready")).send().await.unwrap().status(), 404);
    problem(ask(&path).await, 409, "already_active").await;
    ask("/models/rollback").await;
    assert_eq!(until_done(&server.client, &server.url).await["state"], "done");
    assert_eq!(vector(&server, "ready").await, (contract, numbers), "it was kept");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_whose_client_leaves_keeps_no_other_out() {
    let (_, sibling) = models();
    let server = server().await;
    let (id, picture) = &pictures()[0];
    put(&server, id, picture).await;
    let (client, url) = (server.client.clone(), server.url.clone());
    let path = format!("/models/{sibling}/activate");
    // Gone while the encoder is being opened.
    for limit in [1, 5, 20] {
        let ask = client.post(server.at(&path)).bearer_auth(KEY).header("x-request-timeout-ms", limit);
        let status = ask.send().await.unwrap().status().as_u16();
        assert!(matches!(status, 200 | 202 | 409 | 504), "{status}");
    }
    let began = Instant::now();
    loop {
        let status = admin(&client, &url, &path).await.status().as_u16();
        let progress = until_done(&client, &url).await;
        if server.app.embedder().artefact().manifest().full_name() == sibling {
            assert_eq!(progress["state"], "done", "{progress}");
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{status} {progress}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let back = admin(&client, &url, "/models/rollback").await;
    assert!(back.status().is_success(), "{}", back.status());
    assert_eq!(until_done(&client, &url).await["state"], "done");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_collection_that_is_dropped_meanwhile_does_not_end_it() {
    let (_, sibling) = models();
    let server = server().await;
    for (id, picture) in &pictures()[..20] {
        put(&server, id, picture).await;
        put(&server, &format!("{id}?collection=going"), picture).await;
    }
    admin(&server.client, &server.url, &format!("/models/{sibling}/activate")).await;
    // Its items are in hand already, behind those of the other. Just while the encoders are exchanged, a store that
    // several processes share takes no deletion.
    let began = Instant::now();
    loop {
        let dropped = server.client.delete(server.at("/collections/going")).send().await.unwrap();
        if dropped.status() == 204 {
            break;
        }
        problem(dropped, 503, "encoder_changing").await;
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let progress = until_done(&server.client, &server.url).await;
    assert_eq!(progress["state"], "done", "{progress}");
    assert_eq!(server.app.embedder().artefact().manifest().full_name(), sibling);
    server.stop().await;
}

#[tokio::test]
async fn originals_are_embedded_again_exactly() {
    let (models, sibling) = models();
    let key = key_file();
    let server = Server::with(|config| {
        config.model = model_dir();
        config.models_dir = models.to_owned();
        config.admin_key_file = key;
        config.keep_pictures = latentd::config::KeepPictures::Original;
    })
    .await;
    let pictures = crate::support::examples();
    for (id, picture) in &pictures {
        put(&server, id, picture).await;
    }
    admin(&server.client, &server.url, &format!("/models/{sibling}/activate")).await;
    let done = until_done(&server.client, &server.url).await;
    assert_eq!(done["from_originals"], pictures.len(), "{done}");
    for (id, picture) in &pictures {
        let (_, kept) = vector(&server, id).await;
        assert!(cosine(&kept, &server.embed(picture).await) > 0.999_999, "{id}");
    }
    server.stop().await;
}

/// The program on a data folder and a store, without `--model`.
fn spawn(data: &Path, store: &str) -> Program {
    Program::serve(data, |command| {
        command.arg("--models-dir").arg(models().0).arg("--admin-key-file").arg(key_file());
        command.args(["--store", store]).env_remove("LATENTD_MODEL");
    })
}

async fn contracts(client: &reqwest::Client, url: &str) -> HashMap<String, usize> {
    let mut found = HashMap::new();
    let mut after = String::new();
    loop {
        let page = client.get(format!("{url}/items?limit=1000{after}")).send().await.unwrap();
        let page: Value = page.json().await.unwrap();
        for item in page["items"].as_array().unwrap() {
            *found.entry(item["contract"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return found,
        }
    }
}

#[tokio::test]
async fn a_killed_change_goes_on_and_the_changed_encoder_stays() {
    let (models, sibling) = models();
    // The float encoder beside its sibling, so that the sibling is not served by being alone.
    let float = model_dir().canonicalize().unwrap();
    let link = models.join(float.file_name().unwrap());
    let _ = std::os::unix::fs::symlink(&float, &link);
    let data = tempfile::tempdir().unwrap();
    let store = match distributed() {
        None => choice().to_string(),
        Some(_) => format!("{}?lead_ms=5000", choice()),
    };
    let client = reqwest::Client::new();
    let program = spawn(data.path(), &store);
    let url = program.url.as_str();
    let pictures = pictures();
    let mut total = 0;
    for chunk in 0..12 {
        let item = |(id, picture): &(String, Vec<u8>)| json!({"id": format!("{chunk}-{id}"), "image": BASE64_STANDARD.encode(picture)});
        let items: Vec<Value> = pictures.iter().take(100).map(item).collect();
        let reply = client.post(format!("{url}/items")).json(&json!({"items": items})).send().await.unwrap();
        let reply: Value = reply.json().await.unwrap();
        total += reply["indexed"].as_u64().unwrap() as usize;
    }
    let old = contracts(&client, url).await;
    assert_eq!(old.values().sum::<usize>(), total);
    assert_eq!(old.len(), 1);

    let path = format!("{url}/models/{sibling}/activate");
    let activating = tokio::spawn(client.post(path).bearer_auth(KEY).send());
    let mut done = 0;
    let began = Instant::now();
    while done < 200 {
        // Where several processes share the store it takes longer than the reply is waited for.
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(!activating.is_finished() || distributed().is_some());
        let reply = client.get(format!("{url}/models/refresh")).send().await.unwrap();
        let progress: Value = reply.json().await.unwrap();
        assert_ne!(progress["state"], "done", "too fast to be killed: {progress}");
        done = progress["done"].as_u64().unwrap();
    }
    program.kill();
    activating.abort();

    let program = spawn(data.path(), &store);
    let url = program.url.as_str();
    // Of a store that is shared it is first found that the leader is gone.
    let began = Instant::now();
    let progress = loop {
        let progress = until_done(&client, url).await;
        if progress["state"] == "done" || began.elapsed() > Duration::from_secs(60) {
            break progress;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(progress["state"], "done", "{progress}");
    let again = progress["done"].as_u64().unwrap();
    assert!(again < total as u64, "what was embedded before the kill is not embedded again");
    println!("killed after {done} of {total} items, {again} were embedded after the restart");
    let new = contracts(&client, url).await;
    assert_eq!(new.values().sum::<usize>(), total);
    assert!(new.len() == 1 && new.keys().next() != old.keys().next(), "{old:?} {new:?}");
    program.kill();

    let program = spawn(data.path(), &store);
    let url = program.url.as_str();
    let listed: Value = client.get(format!("{url}/models")).send().await.unwrap().json().await.unwrap();
    assert_eq!(listed["active"].as_str(), Some(sibling), "the change lasts: {listed}");
    let (id, picture) = &pictures[3];
    let search = client.post(format!("{url}/search?k=1")).header("content-type", "image/png");
    let found: Value = search.body(picture.clone()).send().await.unwrap().json().await.unwrap();
    assert!(found["neighbours"][0]["id"].as_str().unwrap().ends_with(id.as_str()), "{found}");
    let back = admin(&client, url, "/models/rollback").await;
    assert!(back.status().is_success());
    assert_eq!(until_done(&client, url).await["state"], "done");
    assert_eq!(contracts(&client, url).await, old);
    program.kill();
}
