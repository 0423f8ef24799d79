//! Spans: what the phases of a picture took, for the request's trace.

use std::time::Instant;

use crate::outcome::{Outcome, Timing};
use crate::trace::{Record, Span};

/// Notes what became of a picture that was handed in at `since`. Its phases follow one another.
pub fn note(record: &Record, index: usize, since: Instant, outcome: &Outcome) {
    let part = |name, start, took| Span::new(name, start, took).with("latentd.picture.index", index);
    record.count("latentd.pictures");
    let timing = match outcome {
        Ok(embedded) => embedded.timing,
        Err(error) => return record.note(part("picture", since, since.elapsed()).failed(error.code())),
    };
    let Timing { wait, decode, queue, inference, batch, shared } = timing;
    if shared {
        // The phases are those of the equal picture that was there first.
        return record.note(part("wait for an equal picture", since, since.elapsed()));
    }
    record.note(part("wait", since, wait));
    if batch == 0 {
        return record.count("latentd.pictures.from_cache");
    }
    let decoding = since + wait;
    let queued = decoding + decode;
    record.note(part("decode", decoding, decode));
    record.note(part("queue", queued, queue));
    record.note(part("inference", queued + queue, inference).with("latentd.batch.size", batch));
}
