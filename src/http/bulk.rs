//! POST /items: many items in one request, each with its own outcome.

use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

use super::apart::{off_thread, take_apart};
use super::auth::{Caller, hold};
use super::embed::RawBytes;
use super::entries::{self, BulkEntry, ItemBodies};
use super::extract::{MediaType, Payload, Query, read_body};
use super::input::{ItemError, multipart_with_fields, too_many_images};
use super::items::CollectionQuery;
use super::problem::Problem;
use super::stored;
use super::until::Until;
use super::upload::{self, BulkLine, NDJSON, Source, Upload};
use crate::admission::Permit;
use crate::app::{App, AppState};
use crate::indexer::{self, Entry};
use crate::keys::InFlight;
use crate::slots::Slots;
use crate::store::Upserted;

/// What became of the items.
#[derive(Debug, Serialize, ToSchema)]
pub struct BulkReply {
    /// The collection.
    pub collection: String,
    /// How many were written.
    pub indexed: usize,
    /// How many were not.
    pub failed: usize,
    /// One per item, in order.
    pub results: Vec<BulkResult>,
}

/// What became of one item.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BulkResult {
    /// Its place in the request, from 0.
    pub index: usize,
    /// Its id, where it had one.
    pub id: Option<String>,
    /// Whether the id was new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<bool>,
    /// Number of the write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Why it was not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ItemError>,
}

/// A form of several pictures, for the description alone.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct ItemsForm {
    /// The picture files; the id of each is its file name, or the part's name where it has none.
    #[schema(value_type = Vec<String>, format = Binary)]
    image: Vec<Vec<u8>>,
    /// The metadata by id, a JSON object of objects.
    metadata: Option<String>,
}

/// A bulk body.
pub enum BulkPayload {
    /// One that was read.
    Whole(Whole),
    /// One that is to be answered as it comes.
    Upload(Source, Option<Caller>, Until),
}

/// A bulk body, read whole.
pub enum Whole {
    /// A body of a kind that other routes take too.
    Common(Payload),
    /// Lines of JSON.
    Lines(Bytes, Arc<Permit>, Option<Caller>),
}

impl FromRequest<AppState> for BulkPayload {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Self::Rejection> {
        let media = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = upload::essence(media.unwrap_or_default());
        let is_lines = NDJSON.iter().any(|known| essence.eq_ignore_ascii_case(known));
        let streams = upload::is_asked_for(request.headers());
        if !is_lines && !streams {
            return Payload::from_request(request, app)
                .await
                .map(|payload| Self::Whole(Whole::Common(payload)));
        }
        app.ready()?;
        let until = Until::of(request.headers(), app.lifecycle.draining().clone())?;
        let caller = request.extensions().get().cloned();
        if is_lines && !streams {
            let (bytes, permit) = read_body(request.into_body(), app).await?;
            return Ok(Self::Whole(Whole::Lines(bytes, Arc::new(permit), caller)));
        }
        let source = match is_lines {
            true => Source::lines(request.into_body(), app, &until),
            false => match MediaType::of(request.headers())? {
                MediaType::Multipart(boundary) => Source::form(request.into_body(), boundary, app, &until),
                MediaType::Json => {
                    let (bytes, permit) = read_body(request.into_body(), app).await?;
                    let size = bytes.len();
                    let read = move || Ok((entries::of_json(&bytes)?, permit));
                    let (entries, permit) = off_thread(size, read).await?;
                    Source::Whole(entries.into(), permit)
                }
                MediaType::Image => return Err(no_raw_picture()),
            },
        };
        Ok(Self::Upload(source, caller, until))
    }
}

fn no_raw_picture() -> Problem {
    let detail =
        "this address takes many items, as a form, JSON or NDJSON: send one raw picture to PUT /items/{id}";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

/// Write many items
///
/// A form of picture files, JSON, or lines of JSON (NDJSON). Each item has its own outcome: one that fails does
/// not keep the others from being written. The reply comes when all are on disk.
///
/// With `accept: application/x-ndjson` the server reads, writes and answers as the body comes, which then may have
/// any length: a line for each item once it is on disk (a member of `results`), after each batch one of how far it is
/// (`indexed`, `failed`), and at the end one with `done` true; one with `error` says why it ended early, and that what
/// has no line was not written. Read the reply while you send. The server's time limit of requests then holds for each
/// wait in it, `x-request-timeout-ms` for all of it, `max_images` for what is in hand at once, and a form's field
/// `metadata` comes first.
#[utoipa::path(
    post, path = "/items", tag = "items", params(CollectionQuery),
    request_body(description = "The items", content(
        (ItemsForm = "multipart/form-data"), (ItemBodies = "application/json"), (RawBytes = "application/x-ndjson"),
    )),
    responses(
        (status = 200, description = "What became of each", content((BulkReply = "application/json"), (BulkLine = "application/x-ndjson"))),
        (status = 400, description = "A broken body, or a bad collection name", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large a body, too many pictures or items", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Another kind of body", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full: nothing was written", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn post_items(
    State(app): State<AppState>,
    Query(query): Query<CollectionQuery>,
    payload: BulkPayload,
) -> Result<Response, Problem> {
    let collection = stored::collection(query.collection.as_deref())?;
    let payload = match payload {
        BulkPayload::Whole(payload) => payload,
        BulkPayload::Upload(source, caller, until) => {
            return Ok(Upload { app, collection, caller, source, until }.answer());
        }
    };
    let Bulk { entries: bulk, permit, held: _held } = read(payload, &app).await?;
    let (ids, entries): (Vec<_>, Vec<_>) =
        bulk.into_iter().map(|BulkEntry { id, entry }| (id, entry)).unzip();
    let (entries, slots) = Slots::split(entries);
    // The encoder does not change while this is held.
    let _writing = app.writes.read().await;
    let (embedder, keep) = (app.embedder(), app.config.keep_pictures);
    let written =
        indexer::index(&embedder, &*app.store, collection.clone(), entries, keep, Some(permit)).await?;
    let outcomes = slots.fill(written, ItemError::lost);
    let result =
        |(index, (id, outcome)): (usize, (Option<String>, Result<Upserted, ItemError>))| match outcome {
            Ok(Upserted { created, seq, .. }) => {
                BulkResult { index, id, created: Some(created), seq: Some(seq), error: None }
            }
            Err(error) => BulkResult { index, id, created: None, seq: None, error: Some(error) },
        };
    let results: Vec<_> = ids.into_iter().zip(outcomes).enumerate().map(result).collect();
    let failed = results.iter().filter(|result| result.error.is_some()).count();
    let indexed = results.len() - failed;
    let reply = BulkReply { collection: collection.to_string(), indexed, failed, results };
    Ok(axum::Json(reply).into_response())
}

/// A bulk body, taken apart.
struct Bulk {
    entries: Vec<BulkEntry<Entry>>,
    permit: Arc<Permit>,
    held: Option<InFlight>,
}

async fn read(payload: Whole, app: &App) -> Result<Bulk, Problem> {
    let max = app.config.max_images;
    let (entries, permit, caller) = match payload {
        Whole::Lines(bytes, permit, caller) => {
            (take_apart(bytes.len(), &permit, move || entries::of_ndjson(&bytes)).await?, permit, caller)
        }
        Whole::Common(Payload { media, bytes, permit, caller }) => match media {
            MediaType::Json => {
                (take_apart(bytes.len(), &permit, move || entries::of_json(&bytes)).await?, permit, caller)
            }
            MediaType::Multipart(boundary) => {
                let (files, fields) = multipart_with_fields(bytes, boundary, max).await?;
                let size = fields.iter().map(|field| field.bytes.len()).sum();
                (take_apart(size, &permit, move || entries::of_form(files, fields)).await?, permit, caller)
            }
            MediaType::Image => return Err(no_raw_picture()),
        },
    };
    let pictures = entries.iter().filter(|entry| entry.is_picture()).count();
    if pictures > max {
        return Err(too_many_images(max));
    }
    if entries.is_empty() {
        return Err(Problem::bad_request("no_inputs", "the request holds no item"));
    }
    let held = hold(caller.as_ref(), pictures)?;
    let (entries, permit) = entries::fetched(app, entries, permit).await?;
    Ok(Bulk { entries, permit, held })
}
