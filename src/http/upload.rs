//! Upload: a bulk write that is read, embedded, written and answered a batch at a time.
//!
//! While one batch is written the next is embedded and the one after is read, so that memory holds a few batches
//! however long the body is. A client that does not read its answers is not read any further.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::OwnedRwLockReadGuard;
use utoipa::ToSchema;

use super::auth::{Caller, hold};
use super::bulk::BulkResult;
use super::entries::{self, BulkEntry, Content};
use super::form::Form;
use super::input::{ItemError, off_thread};
use super::intake::Intake;
use super::lines::{Line, Lines};
use super::pieces::Pieces;
use super::problem::Problem;
use super::until::Until;
use crate::admission::Permit;
use crate::app::{AppState, Phase};
use crate::indexer;
use crate::store::{CollectionName, NewItem, StoreError, Upserted};

/// Media types of lines of JSON.
pub const NDJSON: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/jsonl"];

/// Items of one batch, at most.
const TOGETHER: usize = 64;
/// Bytes of a batch beyond which nothing is added to it.
const BATCH_BYTES: usize = 8 << 20;
/// Bytes of a line beside those of its picture: metadata, and a vector's numbers as text.
const BESIDE: usize = 1 << 20;
/// How long a batch that has begun waits for further items.
const LINGER: Duration = Duration::from_millis(50);
/// How long a batch waits at a time for a place in the server.
const REST: Duration = Duration::from_millis(200);
/// Batches that are embedded at once.
const AHEAD: usize = 2;

/// How far an upload is.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct BulkProgress {
    /// How many items were written so far.
    pub indexed: usize,
    /// How many were not.
    pub failed: usize,
    /// Whether this is the end, and everything that was sent has its line.
    pub done: bool,
    /// Why it ended early: what has no line yet was not written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ItemError>,
}

/// A line of the answer to an upload.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum BulkLine {
    /// What became of an item; it is on disk now.
    Item(BulkResult),
    /// How far the upload is, after each batch.
    Progress(BulkProgress),
}

/// Whether a client asks to be answered as it goes.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let kinds = accepted.flat_map(|value| value.split(','));
    kinds.map(essence).any(|kind| NDJSON.iter().any(|known| kind.eq_ignore_ascii_case(known)))
}

/// A media type without its parameters.
pub fn essence(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim()
}

/// Items that come one after another.
pub enum Source {
    /// Lines of JSON.
    Lines(Box<Lines>),
    /// The parts of a form.
    Form(Box<Form>),
    /// Those of a body that was read whole, and its place.
    Whole(VecDeque<BulkEntry>, Permit),
}

impl Source {
    /// Of a body of lines.
    pub fn lines(body: Body, app: &AppState, until: &Until) -> Self {
        // One that takes half of what the server may hold would only wait for others, and they for it.
        let longest = (app.config.max_image_bytes.div_ceil(3) * 4 + BESIDE).min(app.config.queue_bytes / 2);
        let (pieces, intake) = parts(body, app, until);
        Self::Lines(Box::new(Lines::new(pieces, longest, intake)))
    }

    /// Of a form.
    pub fn form(body: Body, boundary: String, app: &AppState, until: &Until) -> Self {
        let (pieces, intake) = parts(body, app, until);
        Self::Form(Box::new(Form::new(pieces, boundary, app.config.max_image_bytes, intake)))
    }

    /// A batch of at most `most` entries; of none at the end. An error comes with what was read before it.
    async fn batch(&mut self, most: usize) -> (Batch, Result<(), Problem>) {
        match self {
            Self::Lines(lines) => lines_of(lines, most).await,
            Self::Form(form) => {
                let (entries, place, outcome) = form.batch(most, BATCH_BYTES).await;
                (Batch { entries, place }, outcome)
            }
            Self::Whole(entries, _) => {
                let entries = entries.drain(..most.min(entries.len())).collect();
                (Batch { entries, place: None }, Ok(()))
            }
        }
    }
}

/// A body piece by piece, and the place that it takes.
fn parts(body: Body, app: &AppState, until: &Until) -> (Pieces, Intake) {
    let wait = app.config.body_timeout();
    let intake = Intake::new(app.admission.clone(), wait, until.clone());
    (Pieces::new(body, wait, until.clone()), intake)
}

/// Entries that are worked on together, and the place that their bytes take in the server.
struct Batch {
    entries: Vec<BulkEntry>,
    place: Option<Permit>,
}

async fn lines_of(lines: &mut Lines, most: usize) -> (Batch, Result<(), Problem>) {
    let (mut batch, mut bytes, mut outcome) = (Vec::new(), 0, Ok(()));
    while batch.len() < most && bytes < BATCH_BYTES {
        let next = match batch.is_empty() {
            true => lines.next().await,
            // What is slow to come does not keep what came from being written.
            false => tokio::time::timeout(LINGER, lines.next()).await.unwrap_or(Ok(None)),
        };
        match next {
            Ok(Some(line)) => {
                bytes += if let Line::Whole(line) = &line { line.len() } else { 0 };
                batch.push(line);
            }
            Ok(None) => break,
            Err(problem) => {
                outcome = Err(problem);
                break;
            }
        }
    }
    let place = lines.intake.hand_over(bytes);
    let entry = |line: &Line| match line {
        Line::Whole(line) => entries::of_line(line),
        Line::TooLong => entries::too_large(),
    };
    let read = off_thread(bytes, move || Ok(batch.iter().map(entry).collect())).await;
    match read {
        Ok(entries) => (Batch { entries, place }, outcome),
        Err(problem) => (Batch { entries: Vec::new(), place: None }, Err(problem)),
    }
}

/// An upload that is about to be read.
pub struct Upload {
    /// Where it goes.
    pub app: AppState,
    /// The collection there.
    pub collection: CollectionName,
    /// Whose it is, where that is known.
    pub caller: Option<Caller>,
    /// The items.
    pub source: Source,
    /// When it ends, whatever is left.
    pub until: Until,
}

/// A batch whose items are made, and what keeps the encoder as it is until they are written.
struct Made {
    ids: Vec<Option<String>>,
    items: Vec<Result<NewItem, ItemError>>,
    _writing: OwnedRwLockReadGuard<()>,
}

/// What became of the items of a batch, with their ids as they were given.
type Written = Vec<(Option<String>, Result<Upserted, ItemError>)>;

impl Upload {
    /// The answer, which does the work as it is sent.
    pub fn answer(self) -> Response {
        let Self { app, collection, caller, source, until } = self;
        let most = TOGETHER.min(app.config.max_images);
        let made = {
            let (app, caller) = (app.clone(), caller);
            batches(source, most, until)
                .map(move |batch| {
                    let (app, caller) = (app.clone(), caller.clone());
                    async move { make(&app, caller, batch?).await }
                })
                .buffered(AHEAD)
        };
        let written = made.then(move |made| {
            let (app, collection) = (app.clone(), collection.clone());
            async move { write(&app, collection, made?).await }
        });
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON[0]));
        // A proxy that collects the answer would take its sense away.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        (headers, Body::from_stream(lines(written))).into_response()
    }
}

/// The batches of a source, up to its end, an error, or until it is time.
fn batches(source: Source, most: usize, until: Until) -> impl Stream<Item = Result<Batch, Problem>> + Send {
    let begin = Some((source, until, Ok(())));
    futures::stream::unfold(begin, move |state: Option<(_, Until, Result<(), Problem>)>| async move {
        let (mut source, until, outcome): (Source, _, _) = state?;
        if let Err(problem) = outcome.and_then(|()| until.check()) {
            return Some((Err(problem), None));
        }
        match source.batch(most).await {
            (batch, Ok(())) if batch.entries.is_empty() => None,
            (batch, Err(problem)) if batch.entries.is_empty() => Some((Err(problem), None)),
            (batch, outcome) => Some((Ok(batch), Some((source, until, outcome)))),
        }
    })
}

/// Makes the items of a batch, as soon as there is a place in the server for it.
async fn make(app: &AppState, caller: Option<Caller>, batch: Batch) -> Result<Made, Problem> {
    let given = Instant::now();
    let Batch { entries, place } = batch;
    let is_picture = |entry: &&BulkEntry| matches!(&entry.entry, Ok(draft) if matches!(draft.content, Content::Picture(_)));
    let pictures = entries.iter().filter(is_picture).count();
    let _held = loop {
        // What was read before a shutdown is finished.
        if let (Err(problem), false) = (app.ready(), app.lifecycle.phase() == Phase::Draining) {
            return Err(problem);
        }
        match hold(caller.as_ref(), pictures) {
            Err(problem) if problem.status == 429 && given.elapsed() < app.config.request_timeout() => {
                tokio::time::sleep(REST).await;
            }
            held => break held?,
        }
    };
    let mut permit = app.admission.admit(0, 0)?;
    permit.absorb(place);
    let (fetched, permit) = entries::fetched(app, entries, Arc::new(permit)).await?;
    let (mut ids, mut items, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for BulkEntry { id, entry } in fetched {
        ids.push(id);
        items.push(entry.map(|entry| entries.push(entry)));
    }
    // The encoder does not change while this is held.
    let _writing = Arc::clone(&app.writes).read_owned().await;
    let (embedder, keep) = (app.embedder(), app.config.keep_pictures);
    let made = loop {
        match indexer::make(&embedder, entries.clone(), keep, Some(permit.clone())).await {
            Ok(made) => break made,
            Err(_) if given.elapsed() < app.config.request_timeout() => tokio::time::sleep(REST).await,
            Err(overloaded) => return Err(overloaded.into()),
        }
    };
    let made = made.into_iter().map(|made| made.map_err(ItemError::from));
    Ok(Made { ids, items: in_their_places(items, made), _writing })
}

/// The outcomes of a step in the places of those that came so far.
fn in_their_places<T>(
    so_far: Vec<Result<(), ItemError>>,
    mut outcomes: impl Iterator<Item = Result<T, ItemError>>,
) -> Vec<Result<T, ItemError>> {
    let lost = || Err(ItemError::new("internal_error", "an item got no answer"));
    so_far.into_iter().map(|one| one.and_then(|()| outcomes.next().unwrap_or_else(lost))).collect()
}

/// Writes a batch; tells what became of each of its items, in order.
async fn write(app: &AppState, collection: CollectionName, made: Made) -> Result<Written, Problem> {
    let Made { ids, items, _writing } = made;
    let (mut outcomes, mut sound) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    for item in items {
        outcomes.push(item.map(|item| sound.push(item)));
    }
    let written = match sound.is_empty() {
        true => Vec::new(),
        false => app.store.upsert(collection, sound).await?,
    };
    let error = |error: StoreError| ItemError::new(error.code(), error.to_string());
    let written = written.into_iter().map(|written| written.map_err(error));
    Ok(ids.into_iter().zip(in_their_places(outcomes, written)).collect())
}

/// The lines that tell of batches: one for each item, then how far it is, and at the end that it is the end.
fn lines(
    written: impl Stream<Item = Result<Written, Problem>> + Send,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let ended = futures::stream::once(async { None });
    let parts = written.map(Some).chain(ended);
    parts.scan((BulkProgress::default(), 0), |(progress, index), part| {
        let mut text = Vec::new();
        if progress.done || progress.error.is_some() {
            return std::future::ready(None);
        }
        match part {
            None => progress.done = true,
            Some(Err(problem)) => {
                progress.error = Some(ItemError { code: problem.code, message: problem.detail.into() });
            }
            Some(Ok(batch)) => {
                for (id, outcome) in batch {
                    let mut result = BulkResult { index: *index, id, created: None, seq: None, error: None };
                    match outcome {
                        Ok(upserted) => {
                            (result.created, result.seq) = (Some(upserted.created), Some(upserted.seq));
                            progress.indexed += 1;
                        }
                        Err(error) => {
                            result.error = Some(error);
                            progress.failed += 1;
                        }
                    }
                    *index += 1;
                    push(&mut text, &BulkLine::Item(result));
                }
            }
        }
        push(&mut text, &BulkLine::Progress(progress.clone()));
        std::future::ready(Some(Ok(Bytes::from(text))))
    })
}

fn push(text: &mut Vec<u8>, line: &BulkLine) {
    // Strings and numbers have JSON; nothing else is in it.
    let _ = serde_json::to_writer(&mut *text, line);
    text.push(b'\n');
}
