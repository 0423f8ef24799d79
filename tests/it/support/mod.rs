//! Support: servers, pictures and vectors for the tests.

pub mod engine;
pub mod fake;
pub mod program;

use std::path::{Path, PathBuf};
use std::time::Duration;

use latentd::app::{App, AppState, Chosen};
use latentd::backend::Backends;
use latentd::cli::serve::{Opened, assemble, open_model, open_store};
use latentd::config::Config;
use latentd::http::{router, serve};
use latentd::shutdown::Shutdown;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running app, ended when dropped.
pub struct Server {
    pub url: String,
    pub app: AppState,
    pub client: reqwest::Client,
    pub shutdown: Shutdown,
    task: JoinHandle<()>,
    _data: TempDir,
}

impl Server {
    /// The app as it comes.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// The app with other settings.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let (config, data) = settings(change);
        Self::serve(assemble(config).await.unwrap(), data, true).await
    }

    /// The app with other settings and a fake backend, which gets every picture unless `change` asks for a cache.
    pub async fn faking(change: impl FnOnce(&mut Config), fake: &fake::Control) -> Self {
        Self::faking_both(change, fake, None).await
    }

    /// The same, with a fake for pictures that are alone.
    pub async fn faking_both(
        change: impl FnOnce(&mut Config),
        fake: &fake::Control,
        solo: Option<&fake::Control>,
    ) -> Self {
        let (config, data) = settings(|config| {
            config.cache_mib = 0;
            change(config);
        });
        let Opened { runtime, artefact, backends, .. } = open_model(&config).unwrap();
        let dim = artefact.manifest().output.dim;
        let (sessions, solo) = (vec![fake.backend(dim)], solo.map(|fake| fake.backend(dim)));
        let store = open_store(&config).await.unwrap();
        let backends = Backends { sessions, solo, device: backends.device };
        let chosen = Chosen::default();
        let app = App::new(config, artefact, Some(runtime), backends, store, chosen).unwrap();
        Self::serve(app, data, false).await
    }

    async fn serve(app: AppState, data: TempDir, check: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = Shutdown::new();
        let served = serve::serve(app.clone(), listener, router::router(app.clone()), shutdown.clone());
        let task = tokio::spawn(served);
        if check {
            app.check().await.unwrap();
        } else {
            app.lifecycle.enter(latentd::app::Phase::Ready);
        }
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { url, app, client, shutdown, task, _data: data }
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.url.trim_start_matches("http://").parse().unwrap()
    }

    /// The address of a path.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Posts a raw picture.
    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let request = self.client.post(self.at(path)).header("content-type", "image/jpeg").body(body);
        request.send().await.unwrap()
    }

    /// Posts JSON.
    pub async fn post_json(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(self.at(path)).json(body).send().await.unwrap()
    }

    /// Posts files as a multipart form.
    pub async fn post_form(&self, path: &str, files: Vec<Vec<u8>>) -> reqwest::Response {
        let part = |bytes| reqwest::multipart::Part::bytes(bytes).file_name("picture");
        let form = files
            .into_iter()
            .fold(reqwest::multipart::Form::new(), |form, bytes| form.part("image", part(bytes)));
        self.client.post(self.at(path)).multipart(form).send().await.unwrap()
    }

    /// The body of a GET that answers 200.
    pub async fn get_json(&self, path: &str) -> Value {
        let reply = self.client.get(self.at(path)).send().await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        reply.json().await.unwrap()
    }

    /// The vector of a picture.
    pub async fn embed(&self, picture: &[u8]) -> Vec<f32> {
        let reply = self.post("/embed", picture.to_vec()).await;
        assert_eq!(reply.status(), 200);
        vectors(&reply.json().await.unwrap()).remove(0)
    }

    /// Gives the shutdown signal and waits for the end.
    pub async fn stop(self) {
        self.shutdown.start();
        tokio::time::timeout(Duration::from_secs(30), self.task)
            .await
            .expect("the server did not end")
            .unwrap();
    }
}

/// The encoder found as the server finds it, and a data folder of the test's own.
pub fn settings(change: impl FnOnce(&mut Config)) -> (Config, TempDir) {
    let data = tempfile::tempdir().unwrap();
    let model = std::env::var_os("LATENTD_MODEL").map(PathBuf::from).unwrap_or_default();
    let data_dir = data.path().join("data");
    let mut config = Config { model, data_dir, store: engine::choice(), ..Config::default() };
    change(&mut config);
    config.check().unwrap();
    (config, data)
}

/// The folder of the encoder that [`settings`] would serve.
pub fn model_dir() -> PathBuf {
    let (config, _data) = settings(|_| {});
    latentd::locate::open(&config).unwrap().dir().to_owned()
}

/// Copies a folder with what is in it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// An example picture, e.g. `outwear-1`.
pub fn example(name: &str) -> Vec<u8> {
    std::fs::read(root().join(format!("examples/{name}.jpg"))).unwrap()
}

/// All example pictures with their names.
pub fn examples() -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "jpg")).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|p| (p.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&p).unwrap()))
        .collect()
}

/// Crops of the example pictures, as files in a folder: alike in groups, as pictures of a shop are.
pub fn crops(dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for (name, bytes) in examples() {
        let picture = image::load_from_memory(&bytes).unwrap();
        let (width, height) = (picture.width() * 3 / 5, picture.height() * 3 / 5);
        for i in 0..16u32 {
            let (x, y) = (i % 4 * (picture.width() - width) / 3, i / 4 * (picture.height() - height) / 3);
            let crop = picture.crop_imm(x, y, width, height).thumbnail(96, 96);
            let path = dir.join(format!("{name}-{i}.png"));
            crop.to_rgb8().save(&path).unwrap();
            paths.push(path);
        }
    }
    paths
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The vectors of a reply of /embed.
pub fn vectors(reply: &Value) -> Vec<Vec<f32>> {
    let results = reply["results"].as_array().unwrap_or_else(|| panic!("{reply}"));
    let numbers = |result: &Value| {
        let numbers = result["embedding"].as_array().unwrap_or_else(|| panic!("{result}"));
        numbers.iter().map(|number| number.as_f64().unwrap() as f32).collect()
    };
    results.iter().map(numbers).collect()
}

/// The cosine of two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Checks that a reply is a problem in due form, and gives it.
pub async fn problem(reply: reqwest::Response, status: u16, code: &str) -> Value {
    let (got, headers) = (reply.status(), reply.headers().clone());
    let text = reply.text().await.unwrap();
    assert_eq!(got, status, "{text}");
    assert_eq!(headers["content-type"], "application/problem+json", "{text}");
    let problem: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(problem["code"], code, "{text}");
    assert_eq!(problem["status"], status, "{text}");
    assert_eq!(problem["type"], format!("urn:latentd:problem:{code}"), "{text}");
    assert!(
        problem["title"].is_string() && problem["detail"].as_str().is_some_and(|d| d.len() > 5),
        "{text}"
    );
    assert_eq!(problem["request_id"].as_str(), headers["x-request-id"].to_str().ok(), "{text}");
    problem
}

/// The collection of odd, malformed and hostile picture files by name, without the references; `None`, which is
/// said, where it is not at hand.
pub fn nasty() -> Option<std::collections::BTreeMap<String, Vec<u8>>> {
    let named = std::env::var_os("LATENTD_SHARED_DATA").map(PathBuf::from);
    let path = named.unwrap_or_else(|| root().join("../shared/data")).join("nasty.tar");
    let Ok(file) = std::fs::File::open(&path) else {
        println!("skipped: no {}; LATENTD_SHARED_DATA may name its folder", path.display());
        return None;
    };
    let mut archive = tar::Archive::new(file);
    let read = |entry: std::io::Result<tar::Entry<'_, std::fs::File>>| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("nasty/").to_owned();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        (entry.header().entry_type().is_file() && !name.starts_with("ref/")).then_some((name, bytes))
    };
    Some(archive.entries().unwrap().filter_map(read).collect())
}
