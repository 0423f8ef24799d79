//! GET /info, /livez, /readyz and /metrics: what the server is and how it does.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use latentd_model::{Contract, Manifest};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::Problem;
use crate::app::{App, AppState};
use crate::backend::DeviceReport;
use crate::precision::PrecisionReport;
use crate::tuning::Tuned;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(info))
        .routes(routes!(livez))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
}

/// What the server is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Info {
    /// `latentd`.
    pub name: &'static str,
    /// Version of the server.
    pub version: &'static str,
    /// Seconds since start.
    pub uptime_s: f64,
    /// Whether requests are taken.
    pub ready: bool,
    /// The encoder served.
    pub model: ModelInfo,
    /// The ONNX Runtime in use.
    #[schema(value_type = Option<Object>)]
    pub runtime: Option<serde_json::Value>,
    /// Where the encoder runs.
    #[schema(value_type = Object)]
    pub device: DeviceReport,
    /// What the server chose or was told for its work.
    pub tuning: Tuning,
    /// What a request may hold.
    pub limits: Limits,
    /// The embeddings kept for pictures that come again; null where none are.
    pub cache: Option<CacheInfo>,
    /// The items kept.
    #[schema(value_type = Object)]
    pub store: serde_json::Value,
}

/// The encoder served.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelInfo {
    /// `<name>-v<N>`.
    pub name: String,
    /// The contract of its vectors.
    #[schema(value_type = String)]
    pub contract: Contract,
    /// Numbers of a vector.
    pub dim: usize,
    /// What happens to a picture before the encoder.
    #[schema(value_type = Object)]
    pub preprocess: latentd_model::Preprocess,
    /// SPDX expression of the weights.
    pub licence: String,
    /// What it is, for a person.
    pub description: String,
    /// What was measured on it.
    #[schema(value_type = Vec<Object>)]
    pub evaluation: Vec<latentd_model::EvaluationFigure>,
    /// What its embeddings look like together on pictures like those it was trained on: how many were measured, and how
    /// far a window of such pictures is from them (squared Fréchet distance); null where nobody measured it.
    #[schema(value_type = Option<Object>)]
    pub reference: Option<latentd_model::Reference>,
}

/// Threads, sessions and queues.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tuning {
    /// Cores that the process may use.
    pub cores: usize,
    /// ONNX Runtime sessions.
    pub sessions: usize,
    /// Threads inside one session.
    pub intra_threads: usize,
    /// Whether a picture that is alone runs on all cores, in a session of its own.
    pub solo_session: bool,
    /// Threads that decode.
    pub decode_threads: usize,
    /// Most pictures of one run.
    pub max_batch: usize,
    /// What sessions and max_batch were chosen from, where the settings left them open.
    pub measured: Tuned,
    /// Float or int8 at start, and why; null where the store's encoder left no choice.
    pub precision: Option<PrecisionReport>,
    /// Pictures waiting for a session now.
    pub queue_depth: usize,
    /// Pictures taken in and not yet answered.
    pub in_flight_images: usize,
    /// Bytes of bodies taken in and not yet answered.
    pub in_flight_bytes: usize,
}

/// What a request may hold; more is refused.
#[derive(Debug, Serialize, ToSchema)]
pub struct Limits {
    /// Bytes of a body.
    pub max_body_bytes: usize,
    /// Bytes of one picture file.
    pub max_image_bytes: usize,
    /// Pixels that a picture may declare.
    pub max_pixels: u64,
    /// Pictures of one request.
    pub max_images: usize,
    /// Neighbours of one search.
    pub max_k: usize,
    /// Pictures inside the server.
    pub queue_images: usize,
    /// Bytes of bodies inside the server.
    pub queue_bytes: usize,
    /// Open connections.
    pub max_connections: usize,
    /// Milliseconds of a request.
    pub request_timeout_ms: u64,
}

/// The embedding cache.
#[derive(Debug, Serialize, ToSchema)]
pub struct CacheInfo {
    /// Embeddings kept.
    pub entries: usize,
    /// Memory they take.
    pub bytes: u64,
    /// Memory they may take.
    pub max_bytes: u64,
}

/// What the server is
#[utoipa::path(get, path = "/info", tag = "server", responses((status = 200, description = "Model, device, limits, store", body = Info)))]
async fn info(State(app): State<AppState>) -> axum::Json<Info> {
    let store = store_info(&app).await;
    axum::Json(describe(&app, store))
}

fn describe(app: &App, store: serde_json::Value) -> Info {
    let embedder = app.embedder();
    let config = &app.config;
    Info {
        name: "latentd",
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: (app.started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
        ready: app.ready().is_ok(),
        model: model_info(embedder.artefact().manifest()),
        runtime: app.runtime.as_ref().map(|runtime| {
            serde_json::json!({ "name": "ONNX Runtime", "version": runtime.version, "path": runtime.path })
        }),
        device: embedder.device().clone(),
        tuning: Tuning {
            cores: crate::config::cores(),
            sessions: embedder.sessions(),
            intra_threads: config.intra_threads,
            solo_session: embedder.has_solo(),
            decode_threads: embedder.decode_threads(),
            max_batch: config.max_batch(),
            measured: app.chosen.tuned.clone(),
            precision: app.chosen.precision.clone(),
            queue_depth: embedder.queue_depth(),
            in_flight_images: app.admission.images(),
            in_flight_bytes: app.admission.bytes(),
        },
        limits: Limits {
            max_body_bytes: config.max_body_bytes,
            max_image_bytes: config.max_image_bytes,
            max_pixels: config.max_pixels,
            max_images: config.max_images,
            max_k: config.max_k,
            queue_images: config.queue_images,
            queue_bytes: config.queue_bytes,
            max_connections: config.max_connections,
            request_timeout_ms: config.request_timeout_ms,
        },
        cache: app.cache.as_ref().map(|cache| CacheInfo {
            entries: cache.len(),
            bytes: cache.bytes(),
            max_bytes: cache.capacity(),
        }),
        store,
    }
}

/// The encoder of a manifest.
pub fn model_info(manifest: &Manifest) -> ModelInfo {
    ModelInfo {
        name: manifest.full_name(),
        contract: manifest.contract,
        dim: manifest.output.dim,
        preprocess: manifest.preprocess.clone(),
        licence: manifest.licence.clone(),
        description: manifest.description.clone(),
        evaluation: manifest.evaluation.clone(),
        reference: manifest.reference.clone(),
    }
}

async fn store_info(app: &App) -> serde_json::Value {
    match app.store.stats().await {
        Ok(stats) => serde_json::json!({
            "engine": stats.engine,
            "collections": stats.collections.len(),
            "items": stats.collections.iter().map(|collection| collection.items).sum::<u64>(),
            "disk_bytes": stats.disk_bytes,
            "index_bytes": stats.index_bytes,
            "scan": stats.scan,
            "queued_writes": stats.queued_writes,
        }),
        Err(error) => {
            serde_json::json!({ "error": { "code": error.code(), "message": error.for_clients() } })
        }
    }
}

/// Whether the process lives
#[utoipa::path(get, path = "/livez", tag = "server", responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn livez() -> &'static str {
    "ok\n"
}

/// Whether requests are taken
///
/// 503 until the golden check passed, while shutting down, when the store cannot take writes (after one failed for lack
/// of room, until one is kept; the disk is tried again every few seconds), and when another process has changed the
/// encoder of the store that they share to one that is missing here.
#[utoipa::path(
    get, path = "/readyz", tag = "server",
    responses(
        (status = 200, description = "They are", body = String, content_type = "text/plain"),
        (status = 503, description = "They are not", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn readyz(State(app): State<AppState>) -> Result<&'static str, Problem> {
    app.ready()?;
    match app.store.health().await {
        Ok(()) => Ok("ok\n"),
        Err(error) => Err(Problem::unavailable(error.code(), error.for_clients())),
    }
}

/// Metrics in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "server", responses((status = 200, description = "The metrics", body = String, content_type = "text/plain")))]
async fn metrics(State(app): State<AppState>) -> impl IntoResponse {
    app.metrics.in_flight_images.set(app.admission.images() as f64);
    app.metrics.in_flight_bytes.set(app.admission.bytes() as f64);
    app.metrics.reply_bytes.set(app.replies.admission().bytes() as f64);
    app.metrics.decode_queue_depth.set(app.embedder().decode_queue_depth() as f64);
    app.metrics.process();
    if let Ok(stats) = app.store.stats().await {
        app.metrics.store(&stats);
    }
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, app.metrics.render())
}
