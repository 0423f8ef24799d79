//! Form: the parts of a multipart body as items, read one by one as they come.

use std::time::Duration;

use axum::body::Body;
use bytes::BytesMut;

use super::entries::{self, BulkEntry, METADATA, MetadataById};
use super::input::Part;
use super::intake::Intake;
use super::lines::silent;
use super::problem::Problem;
use crate::admission::Permit;

/// A form that is read as it comes. Its field `metadata` comes before the files that it tells of.
pub struct Form {
    parts: multer::Multipart<'static>,
    metadata: MetadataById,
    /// Bytes that the metadata came as, which have their place until the end.
    metadata_bytes: usize,
    /// Bytes of a part beyond which it is left out.
    largest: usize,
    wait: Duration,
    begun: bool,
    /// The place of what was read and is held.
    intake: Intake,
}

impl Form {
    /// Of a body; parts are at most `largest` bytes, and the next piece of it takes at most `wait`.
    pub fn new(body: Body, boundary: String, largest: usize, wait: Duration, intake: Intake) -> Self {
        let parts = multer::Multipart::new(body.into_data_stream(), boundary);
        Self { parts, metadata: MetadataById::new(), metadata_bytes: 0, largest, wait, begun: false, intake }
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
            let Some(field) = within(self.wait, self.parts.next_field()).await? else { return Ok(None) };
            let is_file = field.file_name().is_some() || field.content_type().is_some();
            let (name, file_name) = (field.name().map(str::to_owned), field.file_name().map(str::to_owned));
            let content = content(field, self.largest, self.wait, &mut self.intake).await?;
            if name.as_deref() == Some(METADATA) {
                self.take_metadata(content)?;
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

    fn take_metadata(&mut self, content: Option<BytesMut>) -> Result<(), Problem> {
        if self.begun {
            let detail =
                "the field \"metadata\" must come before the files where the reply is to be streamed";
            return Err(Problem::bad_request("invalid_metadata", detail));
        }
        let content = content.unwrap_or_default();
        self.metadata = entries::metadata_by_id(&content)?;
        self.intake.give_back(std::mem::replace(&mut self.metadata_bytes, content.len()));
        Ok(())
    }
}

/// A part's content; none where it is too large, of which no more is held than may be.
async fn content(
    mut field: multer::Field<'static>,
    largest: usize,
    wait: Duration,
    intake: &mut Intake,
) -> Result<Option<BytesMut>, Problem> {
    let mut content = Some(BytesMut::new());
    while let Some(piece) = within(wait, field.chunk()).await? {
        if let Some(begun) = &mut content {
            intake.take(piece.len()).await?;
            begun.extend_from_slice(&piece);
            if begun.len() > largest {
                intake.give_back(begun.len());
                content = None;
            }
        }
    }
    Ok(content)
}

async fn within<T>(
    wait: Duration,
    next: impl Future<Output = Result<T, multer::Error>>,
) -> Result<T, Problem> {
    let next = tokio::time::timeout(wait, next).await.map_err(|_| silent(wait))?;
    next.map_err(|error| {
        Problem::bad_request("invalid_multipart", format!("the multipart form is broken: {error}"))
    })
}
