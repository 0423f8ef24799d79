//! Pieces: a body as it comes, as long as it is wanted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::extract::gave_way;
use super::problem::Problem;
use super::until::Until;
use crate::transfer::Transfer;

/// Parts that the time for an item is counted in. Of a time when nobody asked for the next piece, since there was enough
/// to do, no more than such a part counts.
const TICKS: u32 = 30;

/// A body that is read piece by piece.
pub struct Pieces {
    body: Body,
    wait: Duration,
    /// How much of it the item that is being read has waited.
    waited: Duration,
    until: Until,
    arrival: Arc<Transfer>,
}

impl Pieces {
    /// Of a body that is waited for at most `wait` from one of its items to the next, in however many pieces they come;
    /// not at all once it is time to end, or others want its place.
    pub fn new(body: Body, arrival: Arc<Transfer>, wait: Duration, until: Until) -> Self {
        Self { body, wait, waited: Duration::ZERO, until, arrival }
    }

    /// An item has come whole: the next has its own time.
    pub fn item_came(&mut self) {
        self.waited = Duration::ZERO;
        self.arrival.whole();
    }

    /// The next piece, or none at the end. Dropped before it answers, it loses nothing.
    ///
    /// # Errors
    /// When the client breaks off or sends nothing for too long, or it is time to end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let Self { body, wait, waited, until, arrival } = self;
        let next = async {
            let _waits = arrival.waits();
            loop {
                if *waited >= *wait {
                    return Err(too_slow(*wait));
                }
                let frame = {
                    let _counted = Waiting { since: Instant::now(), at_most: *wait / TICKS, waited };
                    tokio::time::timeout(*wait / TICKS, body.frame()).await
                };
                let Ok(frame) = frame else { continue };
                let Some(frame) = frame else { return Ok(None) };
                let frame = frame.map_err(|error| {
                    let detail = format!("the body could not be read: {error}");
                    Problem::bad_request("body_incomplete", detail)
                })?;
                if let Ok(data) = frame.into_data() {
                    arrival.moved(data.len());
                    return Ok(Some(data));
                }
            }
        };
        let asked = async {
            arrival.asked().await;
            Err(gave_way())
        };
        until
            .unless(async {
                tokio::select! {
                    biased;
                    gone = asked => gone,
                    piece = next => piece,
                }
            })
            .await
    }
}

/// Counts the time until it is dropped, whether or not a piece came.
struct Waiting<'a> {
    since: Instant,
    at_most: Duration,
    waited: &'a mut Duration,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.waited += self.since.elapsed().min(self.at_most);
    }
}

/// The problem of a body of which no item came whole for so long.
fn too_slow(wait: Duration) -> Problem {
    let detail =
        format!("no item of the body came whole within {} ms of the one before it", wait.as_millis());
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use crate::shutdown::Shutdown;
    use crate::transfer::Transfers;
    use axum::http::HeaderMap;
    use futures::StreamExt;
    use std::convert::Infallible;

    fn arrival() -> Arc<Transfer> {
        Arc::new(Transfers::new(Admission::new(1, 1), Duration::MAX).begin())
    }

    #[tokio::test]
    async fn items_that_come_in_drops_end_it_too() {
        let drops = || {
            let drop = |_| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, Infallible>(Bytes::from_static(b"x"))
            };
            Body::from_stream(futures::stream::iter(0..50).then(drop))
        };
        let mut pieces = Pieces::new(drops(), arrival(), Duration::from_millis(100), Until::default());
        let mut came = 0;
        let ended = loop {
            match pieces.next().await {
                Ok(piece) => came += piece.map_or(0, |piece| piece.len()),
                Err(problem) => break problem.code,
            }
        };
        assert_eq!(ended, "body_timeout");
        assert!((1..=8).contains(&came), "{came}");
        // As long as items come, and however often nobody waits for the next.
        let mut pieces = Pieces::new(drops(), arrival(), Duration::from_millis(100), Until::default());
        for _ in 0..15 {
            while tokio::time::timeout(Duration::from_millis(1), pieces.next()).await.is_err() {}
            pieces.item_came();
        }
        let silent = Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
        let mut pieces = Pieces::new(silent, arrival(), Duration::from_millis(300), Until::default());
        let waits = async {
            loop {
                if let Ok(ended) = tokio::time::timeout(Duration::from_millis(20), pieces.next()).await {
                    return ended;
                }
            }
        };
        assert_eq!(waits.await.unwrap_err().code, "body_timeout");
    }

    #[tokio::test]
    async fn silence_ends_it_and_so_does_the_shutdown() {
        let never = || Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
        let mut pieces = Pieces::new(never(), arrival(), Duration::from_millis(5), Until::default());
        assert_eq!(pieces.next().await.unwrap_err().code, "body_timeout");
        let ending = Shutdown::new();
        let until = Until::of(&HeaderMap::new(), ending.clone()).unwrap();
        let mut pieces = Pieces::new(never(), arrival(), Duration::from_secs(60), until.clone());
        let (ended, ()) = tokio::join!(pieces.next(), async { ending.start() });
        assert_eq!(ended.unwrap_err().code, "shutting_down");
        // What is there is not taken any more either.
        let mut pieces = Pieces::new(Body::from("abc"), arrival(), Duration::from_secs(60), until);
        assert_eq!(pieces.next().await.unwrap_err().code, "shutting_down");
    }
}
