//! Held: large replies have a place in the server until their clients have taken them.
//!
//! A client that asks for much and reads slowly would otherwise make the server keep it, once for each connection.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use super::apart::off_thread;
use super::mapped::mapped;
use super::problem::Problem;
use crate::admission::{Overloaded, Permit};
use crate::app::{App, AppState};

const JSON: &str = "application/json";

/// Bytes of a reply that are nobody's concern.
const FREE: u64 = 64 << 10;

/// Those of a reply to a write: when it finds no place, the write is done already, and its client should know of it.
const FREE_OF_WRITES: u64 = 1 << 20;

/// The middleware. Replies of no known size pass: they are made as they are taken.
pub async fn hold(State(app): State<AppState>, request: Request, next: Next) -> Response {
    // What tells of a full server has to come through.
    if request.uri().path() == "/metrics" {
        return next.run(request).await;
    }
    let writes = may_write(request.method(), request.uri().path());
    let response = next.run(request).await;
    let size = response.body().size_hint().exact().unwrap_or(0);
    if size <= FREE || response.extensions().get::<Placed>().is_some() {
        return response;
    }
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    match app.replies.admit(0, bytes) {
        Ok(place) => response.map(|body| held(body, Arc::new(place))),
        Err(_) if writes && size <= FREE_OF_WRITES => response,
        Err(overloaded) => no_place(overloaded.into(), bytes, writes).into_response(),
    }
}

/// The reply has its place already.
#[derive(Debug, Clone, Copy)]
struct Placed;

/// A reply in JSON of about `size` bytes: a large one gets its place first, and is written off the async threads.
///
/// # Errors
/// When there is no place for it.
pub async fn json<T: Serialize + Send + 'static>(
    app: &App,
    size: usize,
    value: T,
) -> Result<Response, Problem> {
    if size as u64 <= FREE {
        return Ok(axum::Json(value).into_response());
    }
    let full = |overloaded: Overloaded| no_place(overloaded.into(), size, false);
    let place = app.replies.admit(0, size).map_err(full)?;
    // Nothing stops it once it has begun, so the place goes with it.
    let write = move || {
        let mut text = Vec::with_capacity(size);
        serde_json::to_writer(&mut text, &value).map_err(|_| Problem::internal())?;
        Ok((text, place))
    };
    let (text, mut place) = off_thread(size, write).await?;
    place.grow(0, text.len().saturating_sub(size)).map_err(full)?;
    let body = held(text.into(), Arc::new(place));
    Ok((Extension(Placed), [(header::CONTENT_TYPE, JSON)], body).into_response())
}

/// Whether a request may have changed something.
fn may_write(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET | Method::HEAD => false,
        Method::POST => path == "/items",
        _ => true,
    }
}

fn no_place(mut problem: Problem, bytes: usize, writes: bool) -> Problem {
    let done = if writes { "what was asked for was done, but " } else { "" };
    let detail = format!(
        "{done}there is no place now for a reply of {bytes} bytes beside what other clients have yet to read: ask again, or for less"
    );
    problem.detail = detail.into();
    problem
}

/// The body, of which each piece has the place until the last of them was sent.
fn held(body: Body, place: Arc<Permit>) -> Body {
    mapped(body, move |data| Bytes::from_owner(Piece { data, _place: place.clone() }))
}

struct Piece {
    data: Bytes,
    _place: Arc<Permit>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn the_place_is_held_until_the_bytes_are_gone() {
        let admission = Admission::new(1, 100);
        let place = Arc::new(admission.admit(0, 60).unwrap());
        let mut body = held(Body::from("abc"), place);
        assert_eq!(body.size_hint().exact(), Some(3));
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!((piece.as_ref(), admission.bytes()), (&b"abc"[..], 60));
        drop(piece);
        assert_eq!(admission.bytes(), 0);
    }

    #[test]
    fn who_writes_is_told_that_it_was_done() {
        assert!(may_write(&Method::PUT, "/items/a") && may_write(&Method::POST, "/items"));
        assert!(!may_write(&Method::POST, "/search") && !may_write(&Method::GET, "/items"));
        assert!(no_place(Problem::internal(), 7, true).detail.contains("was done"));
        assert!(!no_place(Problem::internal(), 7, false).detail.contains("was done"));
    }
}
