//! POST /embed: pictures in, embeddings out.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use latentd_model::Contract;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::encoding::{Encoding, Format, Vector};
use super::extract::{Payload, Query};
use super::input::{ItemError, JsonInputs, embed_inputs, inputs};
use super::problem::Problem;
use super::stored::NUMBER;
use super::{etag, held};
use crate::app::{App, AppState};
use crate::embedder::Embedder;
use crate::npy;
use crate::outcome::{Embedded, Timing};
use crate::store::ContentHash;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(embed))
}

/// What can be asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EmbedQuery {
    /// How vectors are written in a JSON reply.
    #[serde(default)]
    #[param(inline)]
    encoding: Encoding,
}

/// The vectors of a request's pictures.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbedReply {
    /// The encoder, `<name>-v<N>`.
    pub model: String,
    /// The contract of its vectors: those of another contract cannot be compared with them.
    #[schema(value_type = String)]
    pub contract: Contract,
    /// Numbers of a vector.
    pub dim: usize,
    /// How vectors are written.
    pub encoding: Encoding,
    /// One per picture, in order.
    pub results: Vec<EmbedResult>,
}

/// The vector of one picture, or why it has none.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbedResult {
    /// The picture's place in the request, from 0.
    pub index: usize,
    /// The vector, of norm 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Vector>,
    /// For the encoding `int8`: what the integers are multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// Why there is no vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ItemError>,
}

/// Raw bytes of a body, for the description alone.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct RawBytes(Vec<u8>);

/// A multipart form of picture files, for the description alone.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct ImageForm {
    /// A picture file; repeat the part for more, under any name.
    #[schema(value_type = Vec<String>, format = Binary)]
    image: Vec<Vec<u8>>,
}

/// Embed pictures
///
/// One picture as a raw body, several as parts of a multipart form or as JSON. A raw picture that fails is a
/// problem; in a form or in JSON every picture has its own result. In the binary replies the row of a
/// picture that failed is NaN, and the header `x-latentd-failed` lists the places of those.
///
/// The reply to a raw picture has an `etag`. Sent back as `if-none-match` with the same picture, it saves the run of
/// the model while the encoder is the same.
#[utoipa::path(
    post, path = "/embed", tag = "embed",
    params(
        EmbedQuery,
        ("x-request-timeout-ms" = Option<u64>, Header, description = "Milliseconds after which the client needs no answer; on every route"),
    ),
    request_body(description = "JPEG, PNG, WebP, GIF, BMP or TIFF", content(
        (RawBytes = "image/*"), (RawBytes = "application/octet-stream"),
        (ImageForm = "multipart/form-data"), (JsonInputs = "application/json"),
    )),
    responses(
        (status = 200, description = "The vectors", content(
            (EmbedReply = "application/json"), (RawBytes = "application/octet-stream"), (RawBytes = "application/x-npy"),
        )),
        (status = 304, description = "The reply to this raw picture that the client has (if-none-match)"),
        (status = 400, description = "A broken body or query", body = Problem, content_type = "application/problem+json"),
        (status = 406, description = "No acceptable media type", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large a body, or too many pictures or pixels", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not a picture of a supported format", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A corrupt picture", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "Not finished within the time that the client gave", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn embed(
    State(app): State<AppState>,
    Query(query): Query<EmbedQuery>,
    headers: HeaderMap,
    payload: Payload,
) -> Result<Response, Problem> {
    let format = Format::of(&headers)?;
    if format != Format::Json && query.encoding != Encoding::Float {
        let detail =
            "encodings other than float are written in JSON only: leave out ?encoding= or the accept header";
        return Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "encoding_not_acceptable", detail));
    }
    let embedder = app.embedder();
    let inputs = inputs(payload, &app).await?;
    let single = inputs.single;
    if let (true, true, [Ok(image)]) =
        (single, headers.contains_key(header::IF_NONE_MATCH), inputs.images.as_slice())
    {
        let content = embedder.content_hash(image.clone()).await;
        let tag = content.map(|content| tag(&embedder, content, format, query.encoding));
        if let Some(tag) = tag.filter(|tag| etag::is_known(&headers, tag)) {
            return Ok(etag::not_modified(&tag));
        }
    }
    let results = embed_inputs(&embedder, inputs).await?;
    let timing = slowest(&results);
    let content = results.first().and_then(|outcome| outcome.as_ref().ok()?.content).filter(|_| single);
    let mut response = match format {
        Format::Json => json_reply(&app, &embedder, query.encoding, results).await?,
        Format::Rows | Format::Npy => binary_reply(&embedder, format, &results),
    };
    describe(response.headers_mut(), &embedder, timing);
    Ok(match content {
        Some(content) => etag::tagged(response, &tag(&embedder, content, format, query.encoding)),
        None => response,
    })
}

/// Names a reply by what it is made of. Weak: a run of another size may differ in a number's last bit.
fn tag(embedder: &Embedder, content: ContentHash, format: Format, encoding: Encoding) -> String {
    let contract = embedder.artefact().contract();
    format!("W/\"{contract}-{content}-{format:?}-{encoding:?}\"")
}

async fn json_reply(
    app: &App,
    embedder: &Embedder,
    encoding: Encoding,
    results: Vec<Result<Embedded, ItemError>>,
) -> Result<Response, Problem> {
    let manifest = embedder.artefact().manifest();
    let size = results.len() * manifest.output.dim * NUMBER;
    let write = |(index, outcome): (usize, Result<Embedded, ItemError>)| match outcome {
        Ok(embedded) => {
            let (vector, scale) = encoding.encode(&embedded.embedding);
            EmbedResult { index, embedding: Some(vector), scale, error: None }
        }
        Err(error) => EmbedResult { index, embedding: None, scale: None, error: Some(error) },
    };
    let reply = EmbedReply {
        model: manifest.full_name(),
        contract: manifest.contract,
        dim: manifest.output.dim,
        encoding,
        results: results.into_iter().enumerate().map(write).collect(),
    };
    held::json(app, size, reply).await
}

fn binary_reply(embedder: &Embedder, format: Format, results: &[Result<Embedded, ItemError>]) -> Response {
    let dim = embedder.artefact().manifest().output.dim;
    let mut body = Vec::with_capacity(npy::HEADER_LEN + results.len() * dim * 4);
    if format == Format::Npy {
        body.extend_from_slice(&npy::header(results.len(), dim));
    }
    let (missing, mut failed) = (vec![f32::NAN; dim], Vec::new());
    for (index, outcome) in results.iter().enumerate() {
        match outcome {
            Ok(embedded) => npy::push_row(&mut body, embedded.embedding.as_slice()),
            Err(_) => {
                failed.push(index.to_string());
                npy::push_row(&mut body, &missing);
            }
        }
    }
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, format.content_type());
    if let (false, Ok(value)) = (failed.is_empty(), HeaderValue::try_from(failed.join(","))) {
        response.headers_mut().insert(HeaderName::from_static("x-latentd-failed"), value);
    }
    response
}

/// The longest of each phase over the pictures of a request.
fn slowest(results: &[Result<Embedded, ItemError>]) -> Timing {
    let timings = results.iter().filter_map(|outcome| outcome.as_ref().ok()).map(|embedded| embedded.timing);
    timings.fold(Timing::default(), |a, b| Timing {
        wait: a.wait.max(b.wait),
        decode: a.decode.max(b.decode),
        queue: a.queue.max(b.queue),
        inference: a.inference.max(b.inference),
        batch: a.batch.max(b.batch),
        shared: a.shared || b.shared,
    })
}

/// Adds what a client that wants no JSON needs to know, and what the phases took.
fn describe(headers: &mut HeaderMap, embedder: &Embedder, timing: Timing) {
    let manifest = embedder.artefact().manifest();
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    // No run: the vector was in the cache.
    let cache = if timing.batch == 0 { "cache;desc=\"hit\", " } else { "" };
    let phases = format!(
        "{cache}decode;dur={:.3}, queue;dur={:.3}, inference;dur={:.3}, batch;desc=\"{}\"",
        ms(timing.decode),
        ms(timing.queue),
        ms(timing.inference),
        timing.batch
    );
    let values = [
        ("x-latentd-model", manifest.full_name()),
        ("x-latentd-contract", manifest.contract.to_string()),
        ("x-latentd-dim", manifest.output.dim.to_string()),
        ("server-timing", phases),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}
