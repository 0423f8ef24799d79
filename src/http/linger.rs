//! Lingering: what is left of a body that nobody reads to its end is taken from the client for a while and thrown away.
//!
//! A socket that is closed while the client still sends answers it with a reset, and with that the reply is lost on its
//! way: the client sees a broken connection where it was told what to do (RFC 9112, section 9.6).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::HttpBody;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;

use crate::shutdown::Shutdown;

/// A request's body, which outlives whoever drops it before its end.
pub struct Lingering<B: HttpBody + Send + Unpin + 'static> {
    /// Gone once it has ended.
    body: Option<B>,
    /// Whether a client that waits to be told to send (`expect: 100-continue`) was not told yet.
    held_back: bool,
    limit: Duration,
    ending: Shutdown,
    left: Left,
}

/// Whether a body was left before its end.
#[derive(Clone, Default)]
pub struct Left(Arc<AtomicBool>);

impl Left {
    /// Whether it was: then the connection will not be used again, which the reply has to say.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl<B: HttpBody + Send + Unpin + 'static> Lingering<B> {
    /// What is left of `body` will be read for at most so long, and not once the server is to end; `held_back` says
    /// whether the client waits before it sends any.
    pub fn new(body: B, held_back: bool, limit: Duration, ending: Shutdown) -> (Self, Left) {
        let left = Left::default();
        (Self { body: Some(body), held_back, limit, ending, left: left.clone() }, left)
    }
}

impl<B: HttpBody + Send + Unpin + 'static> HttpBody for Lingering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.held_back = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl<B: HttpBody + Send + Unpin + 'static> Drop for Lingering<B> {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        self.left.0.store(true, Ordering::Release);
        // Reading would tell a client that waits to send it all.
        if let (false, Ok(runtime)) = (self.held_back, Handle::try_current()) {
            runtime.spawn(discard(body, self.limit, self.ending.clone()));
        }
    }
}

async fn discard<B: HttpBody + Unpin>(mut body: B, limit: Duration, ending: Shutdown) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    tokio::select! {
        () = all => {}
        () = tokio::time::sleep(limit) => {}
        () = ending.wait() => {}
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use tokio::sync::mpsc;

    use super::*;

    /// A body of what is sent, and the way to send.
    fn body() -> (mpsc::Sender<Bytes>, Body) {
        let (sender, mut receiver) = mpsc::channel(1);
        let frames = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        (sender, Body::from_stream(futures::StreamExt::map(frames, Ok::<_, std::convert::Infallible>)))
    }

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_is_left_is_read() {
        let (sender, body) = body();
        let (lingering, left) = Lingering::new(body, false, LIMIT, Shutdown::new());
        drop(lingering);
        assert!(left.is_set());
        for _ in 0..100 {
            sender.send(Bytes::from_static(b"more")).await.unwrap();
        }
    }

    #[tokio::test]
    async fn not_for_ever() {
        let (sender, hurried) = body();
        drop(Lingering::new(hurried, false, Duration::from_millis(20), Shutdown::new()));
        sender.closed().await;
        let (sender, ended) = body();
        let ending = Shutdown::new();
        drop(Lingering::new(ended, false, LIMIT, ending.clone()));
        ending.start();
        sender.closed().await;
    }

    #[tokio::test]
    async fn a_client_that_waits_is_not_told_to_send() {
        let (sender, body) = body();
        let (lingering, left) = Lingering::new(body, true, LIMIT, Shutdown::new());
        drop(lingering);
        assert!(left.is_set() && sender.is_closed());
    }

    #[tokio::test]
    async fn a_body_that_was_read_is_not_left() {
        let (sender, body) = body();
        let (mut lingering, left) = Lingering::new(body, true, LIMIT, Shutdown::new());
        sender.send(Bytes::from_static(b"all")).await.unwrap();
        drop(sender);
        assert_eq!(lingering.frame().await.unwrap().unwrap().into_data().unwrap(), "all");
        assert!(lingering.frame().await.is_none());
        drop(lingering);
        let (empty, none) = Lingering::new(Body::empty(), false, LIMIT, Shutdown::new());
        drop(empty);
        assert!(!left.is_set() && !none.is_set());
    }
}
