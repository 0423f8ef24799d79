//! Lines: a body read line by line as it comes, within bounds.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::{Buf, Bytes, BytesMut};
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
    /// Bytes of the rest that have no place yet.
    owed: usize,
    skipping: bool,
    ended: bool,
    longest: usize,
    wait: Duration,
    /// The place of what was read and is held: of lines that were handed out, and of the rest.
    pub intake: Intake,
}

impl Lines {
    /// Of a body; lines are at most `longest` bytes, and the next piece of it takes at most `wait`.
    pub fn new(body: Body, longest: usize, wait: Duration, intake: Intake) -> Self {
        let (rest, skipping, ended) = (BytesMut::new(), false, false);
        Self { body, rest, searched: 0, owed: 0, skipping, ended, longest, wait, intake }
    }

    /// The next line, or none at the end. Dropped before it answers, it loses nothing.
    ///
    /// # Errors
    /// When the client breaks off or sends nothing for too long.
    pub async fn next(&mut self) -> Result<Option<Line>, Problem> {
        loop {
            self.settle().await?;
            let found = self.rest[self.searched..].iter().position(|&byte| byte == b'\n');
            if let Some(at) = found {
                let line = self.rest.split_to(self.searched + at + 1);
                if let Some(line) = self.end_line(line) {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.rest.len();
            if self.rest.len() > self.longest {
                self.intake.give_back(self.rest.len());
                (self.skipping, self.searched, self.rest) = (true, 0, BytesMut::new());
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
        let too_long = std::mem::take(&mut self.skipping) || line.len() > self.longest + 1;
        if !too_long && !line.trim_ascii().is_empty() {
            return Some(Line::Whole(line.freeze()));
        }
        // Whoever is handed a batch takes over the place of its lines alone.
        self.intake.give_back(line.len());
        too_long.then_some(Line::TooLong)
    }

    /// Takes a place for what was read. Where that is given up, it is made up for at the next line.
    async fn settle(&mut self) -> Result<(), Problem> {
        if self.owed > 0 {
            self.intake.take(self.owed).await?;
            self.owed = 0;
        }
        Ok(())
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
                if let Ok(mut data) = frame.into_data() {
                    if self.skipping {
                        // Nothing of it is held.
                        let end = data.iter().position(|&byte| byte == b'\n');
                        data.advance(end.unwrap_or(data.len()));
                    }
                    self.owed += data.len();
                    self.rest.extend_from_slice(&data);
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
    async fn only_what_is_held_takes_a_place() {
        let pieces = ["\n \n\n\n\n\n\n\n\n", "\r\n\r\n\r\n\r\n", "abcdef", "ghijk", "l\nab\n", "\n\n\n\nc"];
        let admission = Admission::new(1, 10);
        let intake = Intake::new(admission.clone(), Duration::from_millis(5));
        let body = futures::stream::iter(pieces.map(Ok::<_, Infallible>));
        let mut lines = Lines::new(Body::from_stream(body), 4, Duration::from_secs(1), intake);
        assert_eq!(lines.next().await.unwrap(), Some(Line::TooLong));
        // The rest of the piece in which the long one ended.
        assert_eq!(admission.bytes(), 3);
        let line = lines.next().await.unwrap().unwrap();
        assert_eq!((&line, admission.bytes()), (&Line::Whole(Bytes::from("ab\n")), 3));
        let place = lines.intake.hand_over(3);
        assert_eq!(lines.next().await.unwrap(), Some(Line::Whole(Bytes::from("c"))));
        drop((place, line));
        assert_eq!(admission.bytes(), 1);
        drop(lines);
        assert_eq!(admission.bytes(), 0);
    }

    #[tokio::test]
    async fn a_line_that_was_given_up_while_it_waited_for_a_place_takes_it_later() {
        let admission = Admission::new(1, 10);
        let held = admission.admit(0, 8).unwrap();
        let intake = Intake::new(admission.clone(), Duration::from_secs(1));
        let mut lines = Lines::new(Body::from("abc\nd"), 4, Duration::from_secs(1), intake);
        assert!(tokio::time::timeout(Duration::from_millis(20), lines.next()).await.is_err());
        drop(held);
        assert_eq!(lines.next().await.unwrap(), Some(Line::Whole(Bytes::from("abc\n"))));
        assert_eq!(admission.bytes(), 5);
    }

    #[tokio::test]
    async fn silence_ends_it() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
        let error = Lines::new(body, 4, Duration::from_millis(5), intake()).next().await.unwrap_err();
        assert_eq!(error.code, "body_timeout");
    }
}
