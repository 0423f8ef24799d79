//! Pieces: a body as it comes, as long as it is wanted.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::problem::Problem;
use super::until::Until;

/// A body that is read piece by piece.
pub struct Pieces {
    body: Body,
    wait: Duration,
    until: Until,
}

impl Pieces {
    /// Of a body, each piece of which takes at most `wait`; none is waited for once it is time to end.
    pub fn new(body: Body, wait: Duration, until: Until) -> Self {
        Self { body, wait, until }
    }

    /// The next piece, or none at the end. Dropped before it answers, it loses nothing.
    ///
    /// # Errors
    /// When the client breaks off or sends nothing for too long, or it is time to end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let Self { body, wait, until } = self;
        let next = async {
            loop {
                let frame = tokio::time::timeout(*wait, body.frame()).await;
                let Some(frame) = frame.map_err(|_| silent(*wait))? else { return Ok(None) };
                let frame = frame.map_err(|error| {
                    let detail = format!("the body could not be read: {error}");
                    Problem::bad_request("body_incomplete", detail)
                })?;
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        };
        until.unless(next).await
    }
}

/// The problem of a body of which nothing came for so long.
fn silent(wait: Duration) -> Problem {
    let detail = format!("nothing of the body came for {} ms", wait.as_millis());
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Shutdown;
    use axum::http::HeaderMap;
    use std::convert::Infallible;

    #[tokio::test]
    async fn silence_ends_it_and_so_does_the_shutdown() {
        let never = || Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
        let mut pieces = Pieces::new(never(), Duration::from_millis(5), Until::default());
        assert_eq!(pieces.next().await.unwrap_err().code, "body_timeout");
        let ending = Shutdown::new();
        let until = Until::of(&HeaderMap::new(), ending.clone()).unwrap();
        let mut pieces = Pieces::new(never(), Duration::from_secs(60), until.clone());
        let (ended, ()) = tokio::join!(pieces.next(), async { ending.start() });
        assert_eq!(ended.unwrap_err().code, "shutting_down");
        // What is there is not taken any more either.
        let mut pieces = Pieces::new(Body::from("abc"), Duration::from_secs(60), until);
        assert_eq!(pieces.next().await.unwrap_err().code, "shutting_down");
    }
}
