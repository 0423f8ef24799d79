//! The least server that could embed pictures: what `latentd` is measured against where everything but the model and
//! the picture is overhead. No bounds, no queue of its own, no checks, no metrics; a session a core behind a lock.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use latentd_model::{Artefact, DecodeLimits, Encoder, Pixels, SessionOptions};
use parking_lot::Mutex;

struct Server {
    artefact: Artefact,
    sessions: Vec<Mutex<Encoder>>,
    next: AtomicUsize,
}

impl Server {
    fn pixels(&self, bytes: &[u8]) -> Pixels {
        self.artefact.manifest().preprocess.load(bytes, &DecodeLimits::default()).unwrap()
    }

    fn embed(&self, bytes: &[u8]) -> Vec<f32> {
        let pixels = [self.pixels(bytes)];
        let place = self.next.fetch_add(1, Ordering::Relaxed) % self.sessions.len();
        let embedding = self.sessions[place].lock().embed(&pixels).unwrap().remove(0);
        embedding.as_slice().to_vec()
    }
}

async fn embed(State(server): State<Arc<Server>>, bytes: Bytes) -> Json<serde_json::Value> {
    let vector = tokio::task::spawn_blocking(move || server.embed(&bytes)).await.unwrap();
    Json(serde_json::json!({ "embedding": vector }))
}

fn main() {
    let artefact = Artefact::open(std::env::args().nth(1).unwrap().as_ref()).unwrap();
    latentd_model::runtime::init(None).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let session = |_| Mutex::new(Encoder::open(&artefact, &SessionOptions::default()).unwrap());
    let sessions = (0..cores).map(session).collect();
    let server = Arc::new(Server { artefact, sessions, next: AtomicUsize::new(0) });
    let routes =
        Router::new().route("/embed", post(embed)).route("/ready", get(|| async {})).with_state(server);
    let address = std::env::args().nth(2).unwrap();
    // As many threads for pictures as cores: more only take turns.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.on_thread_start(latentd_model::decode_alone);
    runtime.max_blocking_threads(cores).enable_all().build().unwrap().block_on(async {
        let listener = tokio::net::TcpListener::bind(&address).await.unwrap();
        axum::serve(listener, routes).await.unwrap();
    });
}
