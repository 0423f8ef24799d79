//! Form: the parts of a multipart body as items, read one by one as they come.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::{FutureExt, StreamExt};

use super::apart::off_thread;
use super::entries::{self, BulkEntry, METADATA, MetadataById};
use super::input::Part;
use super::intake::Intake;
use super::pieces::Pieces;
use super::problem::Problem;
use crate::admission::Permit;

/// Bytes that may come before a part's content: what leads up to the first part, and each part's headers.
const MAX_HEAD: usize = 16 << 10;
/// Bytes that the parser is fed at a time. It holds what it was fed until a part's headers have ended, and looks through
/// all of it each time.
const MOUTHFUL: usize = 4 << 10;

/// A form that is read as it comes. Its field `metadata` comes before the files that it tells of.
pub struct Form {
    pieces: Pieces,
    /// What came and was not fed yet.
    rest: Bytes,
    /// Gone once the parser was told that the body has ended.
    feed: Option<UnboundedSender<Bytes>>,
    parser: multer::Multipart<'static>,
    metadata: MetadataById,
    /// The place of the bytes that the metadata came as, until the end.
    metadata_place: Option<Permit>,
    /// Bytes of a part beyond which it is left out.
    largest: usize,
    begun: bool,
    /// The place of what was read and is held.
    intake: Intake,
}

impl Form {
    /// Of the pieces of a body; parts are at most `largest` bytes.
    pub fn new(pieces: Pieces, boundary: String, largest: usize, intake: Intake) -> Self {
        let (feed, fed) = unbounded::<Bytes>();
        let parser = multer::Multipart::new(fed.map(Ok::<_, Infallible>), boundary);
        Self {
            pieces,
            rest: Bytes::new(),
            feed: Some(feed),
            parser,
            metadata: MetadataById::new(),
            metadata_place: None,
            largest,
            begun: false,
            intake,
        }
    }

    /// The entries of at most `most` parts and about `bytes` bytes, and their place; none at the end. An error comes
    /// with what was read before it.
    pub async fn batch(
        &mut self,
        most: usize,
        bytes: usize,
    ) -> (Vec<BulkEntry>, Option<Permit>, Result<(), Problem>) {
        let (mut batch, mut read, mut outcome) = (Vec::new(), 0, Ok(()));
        while batch.len() < most && read < bytes {
            match self.next().await {
                Ok(Some((entry, size))) => {
                    batch.push(entry);
                    read += size;
                }
                Ok(None) => {
                    outcome = self.end();
                    break;
                }
                Err(problem) => {
                    outcome = Err(problem);
                    break;
                }
            }
        }
        (batch, self.intake.hand_over(read), outcome)
    }

    /// What is wrong with a form that has come to its end.
    fn end(&mut self) -> Result<(), Problem> {
        match std::mem::take(&mut self.metadata).keys().next() {
            None => Ok(()),
            Some(id) => Err(entries::no_such_file(id)),
        }
    }

    async fn next(&mut self) -> Result<Option<(BulkEntry, usize)>, Problem> {
        loop {
            let Some(field) = self.field().await? else { return Ok(None) };
            let is_file = field.file_name().is_some() || field.content_type().is_some();
            let (name, file_name) = (field.name().map(str::to_owned), field.file_name().map(str::to_owned));
            let content = self.content(field).await?;
            self.pieces.item_came();
            if name.as_deref() == Some(METADATA) {
                self.take_metadata(content).await?;
                continue;
            }
            if !is_file {
                return Err(entries::no_file(name.as_deref()));
            }
            self.begun = true;
            let size = content.as_ref().map_or(0, BytesMut::len);
            let entry = match content {
                Some(bytes) => {
                    let part = Part { name, file_name, bytes: bytes.freeze() };
                    entries::of_part(part, &mut self.metadata)
                }
                None => BulkEntry { id: file_name.or(name), ..entries::too_large() },
            };
            return Ok(Some((entry, size)));
        }
    }

    async fn take_metadata(&mut self, content: Option<BytesMut>) -> Result<(), Problem> {
        if self.begun {
            let detail =
                "the field \"metadata\" must come before the files where the reply is to be streamed";
            return Err(Problem::bad_request("invalid_metadata", detail));
        }
        let content = content.unwrap_or_default();
        let size = content.len();
        let place = self.intake.hand_over(size);
        let read = move || Ok((entries::metadata_by_id(&content)?, place));
        (self.metadata, self.metadata_place) = off_thread(size, read).await?;
        Ok(())
    }

    /// The next part, whose content is yet to be read.
    async fn field(&mut self) -> Result<Option<multer::Field<'static>>, Problem> {
        let mut head = 0;
        loop {
            // All that it waits for is to be fed.
            if let Some(field) = self.parser.next_field().now_or_never() {
                return field.map_err(broken);
            }
            if head > MAX_HEAD {
                let detail = format!(
                    "more than {MAX_HEAD} bytes came in a form before a part's content: no headers are so long"
                );
                return Err(Problem::bad_request("invalid_multipart", detail));
            }
            head += self.feed().await?;
        }
    }

    /// A part's content; none where it is too large, of which no more is held than may be.
    async fn content(&mut self, mut field: multer::Field<'static>) -> Result<Option<BytesMut>, Problem> {
        let mut content = Some(BytesMut::new());
        loop {
            let Some(piece) = field.chunk().now_or_never() else {
                self.feed().await?;
                continue;
            };
            let Some(piece) = piece.map_err(broken)? else { return Ok(content) };
            let Some(begun) = &mut content else { continue };
            self.intake.take(piece.len()).await?;
            begun.extend_from_slice(&piece);
            if begun.len() > self.largest {
                self.intake.give_back(begun.len());
                content = None;
            }
        }
    }

    /// Feeds the parser a little more of the body, or its end; tells how much.
    async fn feed(&mut self) -> Result<usize, Problem> {
        let Some(feed) = &self.feed else { return Err(broken(multer::Error::IncompleteStream)) };
        if self.rest.is_empty() {
            match self.pieces.next().await? {
                Some(piece) => self.rest = piece,
                None => {
                    self.feed = None;
                    return Ok(0);
                }
            }
        }
        let mouthful = self.rest.split_to(self.rest.len().min(MOUTHFUL));
        let size = mouthful.len();
        feed.unbounded_send(mouthful).map_err(|_| Problem::internal())?;
        Ok(size)
    }
}

fn broken(error: multer::Error) -> Problem {
    Problem::bad_request("invalid_multipart", format!("the multipart form is broken: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;

    use super::super::until::Until;
    use super::*;
    use crate::admission::Admission;
    use crate::transfer::Transfers;
    use std::sync::Arc;

    const LARGEST: usize = 50_000;

    fn form(body: &[u8], piece: usize, admission: &Admission) -> Form {
        let pieces: Vec<_> =
            body.chunks(piece).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
        let (body, wait) = (Body::from_stream(futures::stream::iter(pieces)), Duration::from_secs(5));
        let arrival = Arc::new(Transfers::new(admission.clone(), Duration::MAX).begin());
        let intake = Intake::new(arrival.clone(), wait, Until::default());
        Form::new(Pieces::new(body, arrival, wait, Until::default()), "xyz".to_owned(), LARGEST, intake)
    }

    fn part(name: &str, content: &[u8]) -> Vec<u8> {
        let head = format!("--xyz\r\ncontent-disposition: form-data; name=i; filename={name}\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    }

    /// The ids, those left out in brackets, and the code of what ended it.
    async fn read(mut form: Form) -> (Vec<String>, Option<String>) {
        let mut ids = Vec::new();
        loop {
            let (batch, _place, outcome) = form.batch(64, 1 << 20).await;
            if let Err(problem) = outcome {
                return (ids, Some(problem.code.into_owned()));
            }
            if batch.is_empty() {
                return (ids, None);
            }
            for BulkEntry { id, entry } in batch {
                let id = id.unwrap_or_default();
                ids.push(if entry.is_ok() { id } else { format!("({id})") });
            }
        }
    }

    #[tokio::test]
    async fn parts_are_read_however_they_are_cut() {
        let admission = Admission::new(1, 1 << 20);
        let like_a_boundary = b"\r\n--xy\r\n--x\r--xyz\r\n".repeat(500);
        let mut body = b"a preamble\r\n".to_vec();
        body.extend(part("a", b"1"));
        body.extend(part("b", &like_a_boundary));
        body.extend(part("c", &[7; LARGEST + 1]));
        // Together their heads are longer than one may be.
        for n in 0..300 {
            body.extend(part(&n.to_string(), b""));
        }
        body.extend(b"--xyz--\r\n");
        for piece in [1, 3, 1000, 1 << 20] {
            let (ids, ended) = read(form(&body, piece, &admission)).await;
            assert_eq!((ids.len(), ended), (303, None), "in pieces of {piece}");
            assert_eq!(ids[..4], ["a", "b", "(c)", "0"].map(str::to_owned));
            assert_eq!(admission.bytes(), 0);
        }
    }

    #[tokio::test]
    async fn what_leads_up_to_a_part_is_bounded() {
        let admission = Admission::new(1, 1 << 20);
        let endless = [part("a", b"1"), b"--xyz\r\ncontent-type: ".to_vec(), vec![b'a'; 1 << 20]].concat();
        for (body, ids) in [(vec![b'\n'; 1 << 20], 0), (endless, 1)] {
            let mut form = form(&body, 1 << 16, &admission);
            let (batch, place, outcome) = form.batch(64, 1 << 20).await;
            assert_eq!((batch.len(), place.map_or(0, |place| place.bytes())), (ids, ids));
            let problem = outcome.unwrap_err();
            assert_eq!((problem.status, problem.code.as_ref()), (400, "invalid_multipart"));
            assert!(problem.detail.contains("16384"), "{}", problem.detail);
        }
        for cut in [&b"--xyz\r\ncontent-"[..], b"", b"--xyz\r\ncontent-type: image/png\r\n\r\n12"] {
            assert_eq!(read(form(cut, 5, &admission)).await, (vec![], Some("invalid_multipart".to_owned())));
        }
    }

    #[tokio::test]
    async fn metadata_keeps_its_place_and_parts_left_out_do_not() {
        let admission = Admission::new(1, 60_000);
        let metadata = |text: &str| {
            format!("--xyz\r\ncontent-disposition: form-data; name=metadata\r\n\r\n{text}\r\n").into_bytes()
        };
        let large = part("large", &[7; LARGEST + 1]);
        let body =
            [metadata("{\"a\":{\"n\":1}}"), metadata("{\"a\":{}}"), large.clone(), large, part("a", b"123")];
        let mut form = form(&[body.concat(), b"--xyz--".to_vec()].concat(), 1000, &admission);
        let (batch, place, outcome) = form.batch(64, 1 << 20).await;
        assert!(outcome.is_ok());
        assert_eq!((batch.len(), place.map(|place| place.bytes())), (3, Some(3)));
        assert_eq!(admission.bytes(), "{\"a\":{}}".len());
        drop(form);
        assert_eq!(admission.bytes(), 0);
    }
}
