//! TensorBoard's event files: a run's metrics for people who watch them there.
//!
//! `tensorboard/events.out.tfevents.*` is a sequence of TFRecords (a length and a body, each with a masked CRC-32C),
//! whose bodies are `Event` messages of `tensorflow/core/util/event.proto`; the few fields in use are declared here.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use prost::{Message, Oneof};

use crate::report::MetricRow;
use crate::run::{RunError, now};

/// One record.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// Optimiser steps taken.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// What happened.
    #[prost(oneof = "What", tags = "3, 5")]
    pub what: Option<What>,
}

/// What an event tells.
#[derive(Clone, PartialEq, Oneof)]
pub enum What {
    /// The first event: `brain.Event:2`.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Values.
    #[prost(message, tag = "5")]
    Summary(Summary),
}

/// Values of one step.
#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    /// One a tag.
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Scalar>,
}

/// A named number.
#[derive(Clone, PartialEq, Message)]
pub struct Scalar {
    /// Its name, `group/name`.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// The number.
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
}

/// The longest record that is read: ours are a few hundred bytes.
const MOST_BYTES: u64 = 1 << 20;

/// An event file, open to be continued.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// The folder's event file, cut after the last event of step `step`, or a new one.
    ///
    /// A run that goes on from a checkpoint drops what it had written beyond it, and a record that a crash cut short.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(folder: &Path, step: u64) -> Result<Self, RunError> {
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| RunError::Io { path, source }
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
            if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("events.out.tfevents.")) {
                files.push(path);
            }
        }
        files.sort_unstable();
        if let Some(path) = files.pop() {
            let bytes = std::fs::read(&path).map_err(io(&path))?;
            let kept = length_until(&bytes, step);
            if kept > 0 {
                let file = OpenOptions::new().append(true).open(&path).map_err(io(&path))?;
                file.set_len(kept as u64).map_err(io(&path))?;
                return Ok(Self { path, file });
            }
            std::fs::remove_file(&path).map_err(io(&path))?;
        }
        let path = folder.join(format!("events.out.tfevents.{:010}.latentd", now()));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(io(&path))?;
        let mut log = Self { path, file };
        log.write(0, What::FileVersion("brain.Event:2".to_owned()))?;
        Ok(log)
    }

    /// Adds what a row of metrics holds.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn push(&mut self, row: &MetricRow) -> Result<(), RunError> {
        let named = [
            ("loss", row.loss),
            ("learning_rate", row.lr),
            ("tau", row.tau),
            ("representation_std", row.representation_std),
            ("projection_std", row.projection_std),
            ("effective_rank", row.effective_rank),
            ("alignment", row.alignment),
            ("uniformity", row.uniformity),
            ("view_retrieval", row.view_retrieval),
            ("images_per_s", row.images_per_s),
            ("epoch", Some(row.epoch)),
        ];
        let group = if row.kind == "step" { "train" } else { row.kind.as_str() };
        let scalar = |(name, value): (&str, Option<f64>)| {
            Some(Scalar { tag: format!("{group}/{name}"), simple_value: Some(value? as f32) })
        };
        let value = named.into_iter().filter_map(scalar).collect();
        self.write(row.step, What::Summary(Summary { value }))
    }

    fn write(&mut self, step: u64, what: What) -> Result<(), RunError> {
        let event = Event { wall_time: wall_time(), step: step as i64, what: Some(what) };
        let record = record(&event.encode_to_vec());
        // One write a record, so that a crash cuts at most the last.
        self.file
            .write_all(&record)
            .map_err(|source| RunError::Io { path: self.path.display().to_string(), source })
    }
}

fn wall_time() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A body as a TFRecord.
fn record(body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u64).to_le_bytes();
    let (head, tail) = (masked_crc(&length).to_le_bytes(), masked_crc(body).to_le_bytes());
    [&length[..], &head, body, &tail].concat()
}

/// The event of the first record, and how many bytes that takes; `None` if it is cut short or damaged.
pub fn read_event(bytes: &[u8]) -> Option<(Event, usize)> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let head = bytes.get(..8)?;
    let length = u64::from_le_bytes(head.try_into().ok()?);
    if number(8)? != masked_crc(head) || length > MOST_BYTES {
        return None;
    }
    let end = 12 + length as usize;
    let body = bytes.get(12..end)?;
    if number(end)? != masked_crc(body) {
        return None;
    }
    Some((Event::decode(body).ok()?, end + 4))
}

/// Bytes of the records up to step `step`.
fn length_until(bytes: &[u8], step: u64) -> usize {
    let mut at = 0;
    while let Some((event, length)) = read_event(&bytes[at..]) {
        if event.step > step as i64 {
            break;
        }
        at += length;
    }
    at
}

/// CRC-32C (Castagnoli), rotated and shifted as TFRecords want it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(step: u64, loss: f64) -> MetricRow {
        MetricRow { kind: "step".into(), step, loss: Some(loss), ..MetricRow::default() }
    }

    /// (step, tag, value) of all that can be read.
    fn all(folder: &Path) -> Vec<(i64, String, f32)> {
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        let bytes = std::fs::read(&files[0]).unwrap();
        let (mut at, mut found) = (0, Vec::new());
        while let Some((event, length)) = read_event(&bytes[at..]) {
            match event.what.unwrap() {
                What::FileVersion(version) => assert_eq!((at, version.as_str()), (0, "brain.Event:2")),
                What::Summary(summary) => {
                    found.extend(
                        summary.value.into_iter().map(|v| (event.step, v.tag, v.simple_value.unwrap())),
                    );
                }
            }
            at += length;
        }
        assert_eq!(at, bytes.len());
        found.into_iter().filter(|(_, tag, _)| tag != "train/epoch").collect()
    }

    #[test]
    fn the_checksum_is_that_of_the_format() {
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720, B.4 uses the same polynomial).
        let unmasked = masked_crc(b"123456789").wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0xe306_9283);
    }

    #[test]
    fn a_run_that_goes_on_drops_what_it_does_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(dir.path(), 0).unwrap();
        (1..=5).for_each(|step| log.push(&row(step, step as f64)).unwrap());
        // A crash in the middle of a record.
        let half = record(&[1, 2, 3]);
        log.file.write_all(&half[..9]).unwrap();
        drop(log);
        let mut log = EventLog::open(dir.path(), 3).unwrap();
        log.push(&row(4, 9.0)).unwrap();
        let verdict =
            MetricRow { kind: "verdict".into(), step: 4, alignment: Some(0.5), ..MetricRow::default() };
        log.push(&verdict).unwrap();
        let found = all(dir.path());
        let steps: Vec<_> = found.iter().filter(|f| f.1 == "train/loss").map(|f| (f.0, f.2)).collect();
        assert_eq!(steps, [(1, 1.0), (2, 2.0), (3, 3.0), (4, 9.0)]);
        assert!(found.contains(&(4, "verdict/alignment".into(), 0.5)), "{found:?}");
    }

    #[test]
    fn a_file_that_is_none_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("events.out.tfevents.1.x"), b"not a record").unwrap();
        EventLog::open(dir.path(), 3).unwrap().push(&row(4, 1.0)).unwrap();
        assert_eq!(all(dir.path()), [(4, "train/loss".into(), 1.0)]);
    }
}
