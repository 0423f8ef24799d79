//! Held: large replies have a place in the server until their clients have taken them.
//!
//! A client that asks for much and reads slowly would otherwise make the server keep it, once for each connection. When
//! others want the place of a reply that nobody reads, it is broken off.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::AbortHandle;

use super::apart::off_thread;
use super::problem::Problem;
use crate::admission::{Overloaded, Permit};
use crate::app::{App, AppState};
use crate::transfer::{Transfer, Transfers, Waits};

const JSON: &str = "application/json";

/// Bytes of a reply that are nobody's concern.
const FREE: u64 = 64 << 10;

/// Those of a reply to a write: when it finds no place, the write is done already, and its client should know of it.
const FREE_OF_WRITES: u64 = 1 << 20;

/// Bytes that are handed on at a time, which take no place any longer.
const PIECE: usize = 64 << 10;

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
    match app.replies.admit(bytes).await {
        Ok(place) => response.map(|body| Body::new(Held::new(body, place, &app.replies))),
        Err(_) if writes && size <= FREE_OF_WRITES => response,
        Err(overloaded) => no_place(overloaded.into(), bytes, writes).into_response(),
    }
}

/// The reply has its place already.
#[derive(Debug, Clone, Copy)]
struct Placed;

/// A reply in JSON of about `size` bytes: see [`written`].
///
/// # Errors
/// When there is no place for it.
pub async fn json<T: Serialize + Send + 'static>(
    app: &App,
    size: usize,
    value: T,
) -> Result<Response, Problem> {
    let write = move || {
        let mut text = Vec::with_capacity(size);
        serde_json::to_writer(&mut text, &value).map_err(|_| Problem::internal())?;
        Ok((text, ()))
    };
    let (mut response, ()) = written(app, size, write).await?;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    Ok(response)
}

/// A reply of about `size` bytes, and what else `write` gives: a large one gets its place first, and is written off the
/// async threads.
///
/// # Errors
/// When there is no place for it, or what `write` gives.
pub async fn written<T: Send + 'static>(
    app: &App,
    size: usize,
    write: impl FnOnce() -> Result<(Vec<u8>, T), Problem> + Send + 'static,
) -> Result<(Response, T), Problem> {
    if size as u64 <= FREE {
        let (bytes, beside) = write()?;
        return Ok((Body::from(bytes).into_response(), beside));
    }
    let full = |overloaded: Overloaded| no_place(overloaded.into(), size, false);
    let place = app.replies.admit(size).await.map_err(full)?;
    // Nothing stops it once it has begun, so the place goes with it.
    let ((bytes, beside), mut place) = off_thread(size, move || Ok((write()?, place))).await?;
    app.replies.grow(&mut place, bytes.len().saturating_sub(size)).await.map_err(full)?;
    let body = Body::new(Held::new(bytes.into(), place, &app.replies));
    Ok(((Extension(Placed), body).into_response(), beside))
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

/// A body that has a place until its client has taken it, or others want the place while it does not.
struct Held {
    rest: Arc<Mutex<Option<Rest>>>,
    transfer: Arc<Transfer>,
    /// From the first byte to the last.
    _waits: Waits,
    giving_way: AbortHandle,
}

/// What the client has yet to take.
struct Rest {
    body: Body,
    /// A piece of it that was begun.
    begun: Bytes,
    _place: Permit,
}

/// Why a reply broke off.
#[derive(Debug, thiserror::Error)]
#[error("the client took this reply so slowly that its place went to others")]
struct GaveWay;

impl Held {
    fn new(body: Body, place: Permit, replies: &Transfers) -> Self {
        let transfer = Arc::new(replies.begin());
        transfer.holds(place.bytes());
        let rest = Arc::new(Mutex::new(Some(Rest { body, begun: Bytes::new(), _place: place })));
        // Nobody asks for the next piece while the connection takes none, so the place goes by itself.
        let giving_way = tokio::spawn({
            let (transfer, rest) = (transfer.clone(), rest.clone());
            async move {
                transfer.asked().await;
                tracing::debug!("a reply that is not read gives up its place");
                drop(rest.lock().take());
                transfer.holds(0);
            }
        });
        Self { rest, _waits: transfer.waits(), transfer, giving_way: giving_way.abort_handle() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.giving_way.abort();
        // The task holds it too, until the runtime gets round to ending it.
        drop(self.rest.lock().take());
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut rest = self.rest.lock();
        let Some(Rest { body, begun, .. }) = &mut *rest else {
            return Poll::Ready(Some(Err(axum::Error::new(GaveWay))));
        };
        if begun.is_empty() {
            match ready!(Pin::new(body).poll_frame(context)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => *begun = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = begun.split_to(begun.len().min(PIECE));
        self.transfer.moved(piece.len());
        // A part of the same memory would keep the whole of it.
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(&piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.lock().as_ref().is_some_and(|rest| rest.begun.is_empty() && rest.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.lock();
        let Some(rest) = rest.as_ref() else { return SizeHint::default() };
        let (hint, begun) = (rest.body.size_hint(), rest.begun.len() as u64);
        match hint.exact() {
            Some(exact) => SizeHint::with_exact(exact + begun),
            None => hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use http_body_util::BodyExt;

    fn replies() -> Transfers {
        Transfers::new(Admission::new(1, 100), std::time::Duration::from_secs(1))
    }

    async fn held(text: impl Into<Body>, bytes: usize, replies: &Transfers) -> Held {
        Held::new(text.into(), replies.admit(bytes).await.unwrap(), replies)
    }

    #[tokio::test]
    async fn the_place_is_held_until_it_is_taken() {
        let (replies, text) = (replies(), vec![7u8; PIECE + 3]);
        let mut body = held(text.clone(), 60, &replies).await;
        assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
        let mut first = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
        assert_eq!((first.len(), body.size_hint().exact(), body.is_end_stream()), (PIECE, Some(3), false));
        first.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
        assert_eq!((first == text, replies.admission().bytes()), (true, 60));
        assert!(body.is_end_stream() && body.frame().await.is_none());
        drop(body);
        assert_eq!(replies.admission().bytes(), 0);
    }

    #[tokio::test]
    async fn one_that_is_not_read_gives_way() {
        let replies = replies();
        let (mut unread, mut read) = (held("abc", 50, &replies).await, held("abc", 40, &replies).await);
        assert!(replies.admit(50).await.is_err());
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        read.transfer.whole();
        assert!(replies.admit(70).await.is_err());
        let place = replies.admit(50).await.unwrap();
        assert_eq!(replies.admission().bytes(), 90);
        // It holds nothing any more, though its connection may be stuck for a while.
        assert!(!replies.make_room(60));
        assert!(unread.frame().await.unwrap().is_err());
        assert!(read.frame().await.unwrap().is_ok());
        drop((place, unread, read));
        assert_eq!(replies.admission().bytes(), 0);
    }

    #[test]
    fn who_writes_is_told_that_it_was_done() {
        assert!(may_write(&Method::PUT, "/items/a") && may_write(&Method::POST, "/items"));
        assert!(!may_write(&Method::POST, "/search") && !may_write(&Method::GET, "/items"));
        assert!(no_place(Problem::internal(), 7, true).detail.contains("was done"));
        assert!(!no_place(Problem::internal(), 7, false).detail.contains("was done"));
    }
}
