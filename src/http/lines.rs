//! Lines: a body read line by line as it comes, within bounds.

use bytes::{Buf, Bytes, BytesMut};

use super::intake::Intake;
use super::pieces::Pieces;
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
    pieces: Pieces,
    rest: BytesMut,
    /// Bytes of the rest that hold no end of a line.
    searched: usize,
    /// Bytes of the rest that have no place yet.
    owed: usize,
    skipping: bool,
    ended: bool,
    longest: usize,
    /// The place of what was read and is held: of lines that were handed out, and of the rest.
    pub intake: Intake,
}

impl Lines {
    /// Of the pieces of a body; lines are at most `longest` bytes.
    pub fn new(pieces: Pieces, longest: usize, intake: Intake) -> Self {
        let (rest, skipping, ended) = (BytesMut::new(), false, false);
        Self { pieces, rest, searched: 0, owed: 0, skipping, ended, longest, intake }
    }

    /// The next line, or none at the end. Dropped before it answers, it loses nothing.
    ///
    /// # Errors
    /// As the pieces, and when there is no place for too long.
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
        let blank = line.trim_ascii().is_empty();
        if too_long || !blank {
            self.pieces.item_came();
        }
        if !too_long && !blank {
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
        let Some(mut piece) = self.pieces.next().await? else {
            self.ended = true;
            return Ok(());
        };
        if self.skipping {
            // Nothing of it is held.
            let end = piece.iter().position(|&byte| byte == b'\n');
            piece.advance(end.unwrap_or(piece.len()));
        }
        self.owed += piece.len();
        self.rest.extend_from_slice(&piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::until::Until;
    use super::*;
    use crate::admission::Admission;
    use crate::transfer::Transfers;
    use axum::body::Body;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::time::Duration;

    fn lines_of(body: Body, admission: &Admission) -> Lines {
        let (wait, until) = (Duration::from_secs(1), Until::default());
        let arrival = Arc::new(Transfers::new(admission.clone(), Duration::MAX).begin());
        let intake = Intake::new(arrival.clone(), wait, until.clone());
        Lines::new(Pieces::new(body, arrival, wait, until), 4, intake)
    }

    async fn lines(pieces: &[&'static str]) -> Vec<String> {
        let pieces: Vec<Result<Bytes, Infallible>> =
            pieces.iter().map(|piece| Ok(Bytes::from(*piece))).collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let mut lines = lines_of(body, &Admission::new(1, 1000));
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
        let body = Body::from_stream(futures::stream::iter(pieces.map(Ok::<_, Infallible>)));
        let mut lines = lines_of(body, &admission);
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
        let mut lines = lines_of(Body::from("abc\nd"), &admission);
        assert!(tokio::time::timeout(Duration::from_millis(20), lines.next()).await.is_err());
        drop(held);
        assert_eq!(lines.next().await.unwrap(), Some(Line::Whole(Bytes::from("abc\n"))));
        assert_eq!(admission.bytes(), 5);
    }
}
