//! Lines: a body read line by line as it comes, within bounds.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::intake::Intake;
use super::problem::Problem;

/// A line that is not empty.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// As it came.
    Whole(Bytes),
    /// It was longer than may be, and was left out.
    TooLong,
}

/// A body that is read line by line. Of a line that is too long no more is held than may be.
pub struct Lines {
    body: Body,
    rest: BytesMut,
    /// Bytes of the rest that hold no end of a line.
    searched: usize,
    skipping: bool,
    ended: bool,
    longest: usize,
    wait: Duration,
    /// The place of what was read.
    pub intake: Intake,
}

impl Lines {
    /// Of a body; lines are at most `longest` bytes, and the next piece of it takes at most `wait`.
    pub fn new(body: Body, longest: usize, wait: Duration, intake: Intake) -> Self {
        let (rest, searched, skipping, ended) = (BytesMut::new(), 0, false, false);
        Self { body, rest, searched, skipping, ended, longest, wait, intake }
    }

    /// The next line, or none at the end. Dropped before it answers, it loses nothing.
    ///
    /// # Errors
    /// When the client breaks off or sends nothing for too long.
    pub async fn next(&mut self) -> Result<Option<Line>, Problem> {
        loop {
            let found = self.rest[self.searched..].iter().position(|&byte| byte == b'\n');
            if let Some(at) = found {
                let line = self.rest.split_to(self.searched + at + 1);
                if let Some(line) = self.end_line(line) {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.rest.len();
            if self.rest.len() > self.longest || self.skipping {
                (self.skipping, self.searched) = (true, 0);
                self.rest.clear();
            }
            if self.ended {
                let line = self.rest.split();
                return Ok(self.end_line(line));
            }
            self.read().await?;
        }
    }

    fn end_line(&mut self, line: BytesMut) -> Option<Line> {
        self.searched = 0;
        if std::mem::take(&mut self.skipping) || line.len() > self.longest + 1 {
            return Some(Line::TooLong);
        }
        (!line.trim_ascii().is_empty()).then(|| Line::Whole(line.freeze()))
    }

    async fn read(&mut self) -> Result<(), Problem> {
        let frame = tokio::time::timeout(self.wait, self.body.frame()).await;
        match frame.map_err(|_| silent(self.wait))? {
            None => self.ended = true,
            Some(Err(error)) => {
                let detail = format!("the body could not be read: {error}");
                return Err(Problem::bad_request("body_incomplete", detail));
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.rest.extend_from_slice(&data);
                    if !self.skipping {
                        self.intake.take(data.len()).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The problem of a body of which nothing came for so long.
pub fn silent(wait: Duration) -> Problem {
    let detail = format!("nothing of the body came for {} ms", wait.as_millis());
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use std::convert::Infallible;

    fn intake() -> Intake {
        Intake::new(Admission::new(1, 1000), Duration::from_millis(5))
    }

    async fn lines(pieces: &[&'static str]) -> Vec<String> {
        let pieces: Vec<Result<Bytes, Infallible>> =
            pieces.iter().map(|piece| Ok(Bytes::from(*piece))).collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let mut lines = Lines::new(body, 4, Duration::from_secs(1), intake());
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            assert!(lines.rest.len() <= 64);
            all.push(match line {
                Line::Whole(bytes) => String::from_utf8(bytes.to_vec()).unwrap().trim_end().to_owned(),
                Line::TooLong => "-".to_owned(),
            });
        }
        assert_eq!(lines.next().await.unwrap(), None);
        all
    }

    #[tokio::test]
    async fn lines_are_put_together_and_long_ones_left_out() {
        assert_eq!(lines(&["a\nbc\r\n\n  \nd"]).await, ["a", "bc", "d"]);
        assert_eq!(lines(&["a", "b", "\nc", "d\ne", ""]).await, ["ab", "cd", "e"]);
        assert_eq!(lines(&["abcd\nabcde\nx"]).await, ["abcd", "-", "x"]);
        assert_eq!(lines(&["abc", "def", "ghi", "\nx\nabc", "defg"]).await, ["-", "x", "-"]);
        assert!(lines(&[]).await.is_empty());
        assert!(lines(&["\n", "\n\n"]).await.is_empty());
    }

    #[tokio::test]
    async fn silence_ends_it() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
        let error = Lines::new(body, 4, Duration::from_millis(5), intake()).next().await.unwrap_err();
        assert_eq!(error.code, "body_timeout");
    }
}
