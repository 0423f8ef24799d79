//! Mapped: a body with something done to each of its pieces, whose size stays known.
//!
//! `map_frame` of http-body-util forgets it, and then a reply has no content-length.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// The body, with `piece` done to each of its pieces, which leaves their length. What `piece` owns lives as long.
pub fn mapped(body: Body, piece: impl FnMut(Bytes) -> Bytes + Send + Unpin + 'static) -> Body {
    Body::new(Mapped { body, piece })
}

struct Mapped<F> {
    body: Body,
    piece: F,
}

impl<F: FnMut(Bytes) -> Bytes + Unpin> HttpBody for Mapped<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, piece } = &mut *self;
        let frame = Pin::new(body).poll_frame(context);
        frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
