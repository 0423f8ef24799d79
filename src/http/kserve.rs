//! /v2: the Open Inference Protocol (KServe, Triton), the input being a tensor of picture files.

mod tensor;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use latentd_model::Manifest;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::tensor::{INPUT, OUTPUT};
pub use self::tensor::{Infer, InferRequest};
use super::apart::take_apart;
use super::extract::{Path, read_body};
use super::held;
use super::input::{embed_inputs, given_inputs};
use super::openai::{check_model, of_picture};
use super::problem::Problem;
use super::stored::NUMBER;
use crate::app::{App, AppState};

/// The header that says where the JSON of a body ends and its tensors begin.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(server))
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(model))
        .routes(routes!(model_version))
        .routes(routes!(model_ready))
        .routes(routes!(model_version_ready))
        .routes(routes!(infer))
        .routes(routes!(infer_version))
}

/// What the server is, as the protocol asks.
#[derive(Debug, Serialize, ToSchema)]
struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    /// What it can beyond the protocol: tensors as bytes after the JSON.
    extensions: [&'static str; 1],
}

/// What the encoder is, as the protocol asks.
#[derive(Debug, Serialize, ToSchema)]
struct ModelMetadata {
    name: String,
    versions: Vec<String>,
    platform: &'static str,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
}

/// A tensor's name, type and shape; -1 is any number.
#[derive(Debug, Serialize, ToSchema)]
struct TensorMetadata {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<i64>,
}

/// The server, for the Open Inference Protocol
#[utoipa::path(get, path = "/v2", tag = "inference", responses((status = 200, description = "What it is", body = ServerMetadata)))]
async fn server() -> axum::Json<ServerMetadata> {
    let version = env!("CARGO_PKG_VERSION");
    axum::Json(ServerMetadata { name: "latentd", version, extensions: ["binary_tensor_data"] })
}

/// Whether the process lives, for the Open Inference Protocol
#[utoipa::path(get, path = "/v2/health/live", tag = "inference", responses((status = 200, description = "It does")))]
async fn live() -> StatusCode {
    StatusCode::OK
}

/// Whether requests are taken, for the Open Inference Protocol
#[utoipa::path(get, path = "/v2/health/ready", tag = "inference", responses((status = 200, description = "They are"), (status = 503, description = "They are not", body = Problem, content_type = "application/problem+json")))]
async fn ready(State(app): State<AppState>) -> Result<StatusCode, Problem> {
    app.ready()?;
    Ok(StatusCode::OK)
}

/// The encoder, for the Open Inference Protocol
#[utoipa::path(get, path = "/v2/models/{name}", tag = "inference", params(("name" = String, Path, description = "`<name>-v<N>`, or `<name>`")), responses((status = 200, description = "What it is", body = ModelMetadata), (status = 404, description = "Another one serves", body = Problem, content_type = "application/problem+json")))]
async fn model(
    State(app): State<AppState>,
    Path(name): Path<String>,
) -> Result<axum::Json<ModelMetadata>, Problem> {
    metadata(&app, &name, None).map(axum::Json)
}

/// A version of the encoder, for the Open Inference Protocol
#[utoipa::path(get, path = "/v2/models/{name}/versions/{version}", tag = "inference", params(("name" = String, Path, description = "`<name>`"), ("version" = String, Path, description = "`<N>`")), responses((status = 200, description = "What it is", body = ModelMetadata), (status = 404, description = "Another one serves", body = Problem, content_type = "application/problem+json")))]
async fn model_version(
    State(app): State<AppState>,
    Path((name, version)): Path<(String, String)>,
) -> Result<axum::Json<ModelMetadata>, Problem> {
    metadata(&app, &name, Some(&version)).map(axum::Json)
}

/// Whether the encoder takes requests, for the Open Inference Protocol
#[utoipa::path(get, path = "/v2/models/{name}/ready", tag = "inference", params(("name" = String, Path, description = "`<name>-v<N>`, or `<name>`")), responses((status = 200, description = "It does"), (status = 404, description = "Another one serves", body = Problem, content_type = "application/problem+json"), (status = 503, description = "It does not", body = Problem, content_type = "application/problem+json")))]
async fn model_ready(State(app): State<AppState>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    metadata(&app, &name, None)?;
    app.ready()?;
    Ok(StatusCode::OK)
}

/// Whether a version of the encoder takes requests, for the Open Inference Protocol
#[utoipa::path(get, path = "/v2/models/{name}/versions/{version}/ready", tag = "inference", params(("name" = String, Path, description = "`<name>`"), ("version" = String, Path, description = "`<N>`")), responses((status = 200, description = "It does"), (status = 404, description = "Another one serves", body = Problem, content_type = "application/problem+json"), (status = 503, description = "It does not", body = Problem, content_type = "application/problem+json")))]
async fn model_version_ready(
    State(app): State<AppState>,
    Path((name, version)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    metadata(&app, &name, Some(&version))?;
    app.ready()?;
    Ok(StatusCode::OK)
}

/// Embed pictures, by the Open Inference Protocol
///
/// One input `image` of datatype `BYTES` and shape `[n]` or `[n, 1]`: picture files, in JSON as base64 or data URIs, or as
/// they are after the JSON (`binary_tensor_data`). One output `embedding`, `FP32`, `[n, dim]`. Where one picture fails, so
/// does the request.
#[utoipa::path(
    post, path = "/v2/models/{name}/infer", tag = "inference",
    params(("name" = String, Path, description = "`<name>-v<N>`, or `<name>`")),
    request_body(description = "An inference request", content((InferRequest = "application/json"))),
    responses(
        (status = 200, description = "An inference response", body = tensor::InferReply),
        (status = "4XX", description = "No usable request or picture", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn infer(
    State(app): State<AppState>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    run(&app, &name, None, request).await
}

/// Embed pictures with a version of the encoder, by the Open Inference Protocol
#[utoipa::path(
    post, path = "/v2/models/{name}/versions/{version}/infer", tag = "inference",
    params(("name" = String, Path, description = "`<name>`"), ("version" = String, Path, description = "`<N>`")),
    request_body(description = "An inference request", content((InferRequest = "application/json"))),
    responses(
        (status = 200, description = "An inference response", body = tensor::InferReply),
        (status = "4XX", description = "No usable request or picture", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn infer_version(
    State(app): State<AppState>,
    Path((name, version)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    run(&app, &name, Some(&version), request).await
}

fn check(manifest: &Manifest, name: &str, version: Option<&str>) -> Result<(), Problem> {
    check_model(name, manifest)?;
    match version {
        Some(version) if version != manifest.version.to_string() => {
            check_model(&format!("{name}-v{version}"), manifest)
        }
        _ => Ok(()),
    }
}

fn metadata(app: &App, name: &str, version: Option<&str>) -> Result<ModelMetadata, Problem> {
    let embedder = app.embedder();
    let manifest = embedder.artefact().manifest();
    check(manifest, name, version)?;
    let dim = i64::try_from(manifest.output.dim).unwrap_or(i64::MAX);
    Ok(ModelMetadata {
        name: name.to_owned(),
        versions: vec![manifest.version.to_string()],
        platform: "onnxruntime_onnx",
        inputs: vec![TensorMetadata { name: INPUT, datatype: "BYTES", shape: vec![-1] }],
        outputs: vec![TensorMetadata { name: OUTPUT, datatype: "FP32", shape: vec![-1, dim] }],
    })
}

async fn run(
    app: &AppState,
    name: &str,
    version: Option<&str>,
    request: Request,
) -> Result<Response, Problem> {
    app.ready()?;
    let embedder = app.embedder();
    let manifest = embedder.artefact().manifest();
    check(manifest, name, version)?;
    let caller = request.extensions().get().cloned();
    let header_length = header_length(request.headers())?;
    let (bytes, permit) = read_body(request.into_body(), app).await?;
    let max = app.config.max_images;
    let (size, permit) = (bytes.len(), Arc::new(permit));
    let read = move || Infer::read(bytes, header_length, max);
    let Infer { given, id, binary } = take_apart(size, &permit, read).await?;
    let inputs = given_inputs(app, given, permit, caller.as_ref()).await?;
    let mut rows = Vec::with_capacity(inputs.images.len());
    for (index, outcome) in embed_inputs(&embedder, inputs).await?.into_iter().enumerate() {
        rows.push(outcome.map_err(|error| of_picture(index, error))?.embedding);
    }
    let (name, version, dim) = (name.to_owned(), manifest.version.to_string(), manifest.output.dim);
    let size = rows.len() * dim * if binary { size_of::<f32>() } else { NUMBER };
    let write = move || Ok(tensor::write((name, version), id, &rows, dim, binary));
    let (mut response, json_length) = held::written(app, size, write).await?;
    let headers = response.headers_mut();
    let kind = if json_length.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = json_length {
        headers.insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

/// How long a body's JSON is, where tensors follow it.
fn header_length(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let Some(value) = headers.get(&HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length.map(Some).ok_or_else(|| {
        Problem::bad_request(
            "invalid_inference_request",
            "the header inference-header-content-length is no number",
        )
    })
}
