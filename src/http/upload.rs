//! Upload: a bulk write that is read, embedded, written and answered a batch at a time.
//!
//! While one batch is written the next is embedded and the one after is read, so that memory holds a few batches
//! however long the body is. A client that does not read its answers is not read any further.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Serialize;
use utoipa::ToSchema;

use super::apart::off_thread;
use super::auth::Caller;
use super::batch::{Batch, Batches, Work, Written};
use super::bulk::BulkResult;
use super::entries::{self, BulkEntry};
use super::form::Form;
use super::input::ItemError;
use super::intake::Intake;
use super::lines::{Line, Lines};
use super::pieces::Pieces;
use super::problem::Problem;
use super::until::Until;
use crate::admission::Permit;
use crate::app::AppState;
use crate::store::CollectionName;

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
/// Batches in hand at once, beside the one that is read while there are fewer.
const IN_HAND: usize = 3;

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
    let arrival = Arc::new(app.incoming.begin());
    let intake = Intake::new(arrival.clone(), wait, until.clone());
    (Pieces::new(body, arrival, wait, until.clone()), intake)
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
    // Nothing stops it once it has begun, so the place goes with it.
    let read = move || Ok(Batch { entries: batch.iter().map(entry).collect(), place });
    match off_thread(bytes, read).await {
        Ok(batch) => (batch, outcome),
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

impl Upload {
    /// The answer, which does the work as it is sent.
    pub fn answer(self) -> Response {
        let Self { app, collection, caller, source, until } = self;
        // A batch of more pictures than the key may have in flight would never find a place.
        let allowed = caller.as_ref().and_then(Caller::max_images).unwrap_or(TOGETHER).max(1);
        let most = TOGETHER.min(app.config.max_images).min(allowed);
        let mut begun = Batches::new(Work { app, collection, caller, until: until.clone() });
        // A client that does not read its answers gets no further batch begun.
        let written = batches(source, most, until).map(move |batch| {
            let work = batch.map(|batch| begun.begin(batch));
            async move { work?.await }
        });
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON[0]));
        // It may end before the body does, and then nothing else can come over the connection.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        // A proxy that collects the answer would take its sense away.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        (headers, Body::from_stream(lines(written.buffered(IN_HAND)))).into_response()
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

/// The lines that tell of batches: one for each item, then how far it is, and at the end that it is the end.
fn lines(
    written: impl Stream<Item = Result<Written, Problem>> + Send,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let begin = Some((Box::pin(written), BulkProgress::default(), 0));
    futures::stream::unfold(begin, |state| async move {
        let (mut written, mut progress, mut index) = state?;
        let mut text = Vec::new();
        match written.next().await {
            None => progress.done = true,
            Some(Err(problem)) => {
                progress.error = Some(ItemError { code: problem.code, message: problem.detail.into() });
            }
            Some(Ok(batch)) => {
                for (id, outcome) in batch {
                    let mut result = BulkResult { index, id, created: None, seq: None, error: None };
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
                    index += 1;
                    push(&mut text, &BulkLine::Item(result));
                }
            }
        }
        push(&mut text, &BulkLine::Progress(progress.clone()));
        let goes_on = !progress.done && progress.error.is_none();
        Some((Ok(Bytes::from(text)), goes_on.then_some((written, progress, index))))
    })
}

fn push(text: &mut Vec<u8>, line: &BulkLine) {
    // Strings and numbers have JSON; nothing else is in it.
    let _ = serde_json::to_writer(&mut *text, line);
    text.push(b'\n');
}
