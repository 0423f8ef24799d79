//! A run's folder: what was asked for, what was seen, what was learnt.
//!
//! `run.json` (command, data, time), `config.toml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `eval.json`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::events::EventLog;
use crate::report::{MetricRow, parse_metrics};

/// Skipped files that `run.json` names; the rest is only counted.
const NAMED_SKIPS: usize = 1000;

/// Where a run came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// The trainer's version.
    pub trainer: String,
    /// The command line that started it.
    pub command: String,
    /// Folder of the pictures, as given.
    pub pictures_root: PathBuf,
    /// How many pictures could be read.
    pub pictures: usize,
    /// SHA-256 over their names and contents.
    pub fingerprint: String,
    /// Files that could not be used.
    pub skipped: usize,
    /// The first of them, with reasons.
    pub skipped_files: Vec<(PathBuf, String)>,
    /// Start in seconds since 1970, UTC.
    pub started: u64,
}

impl RunInfo {
    /// Notes the skipped files, at most a thousand by name.
    pub fn set_skipped(&mut self, skipped: impl ExactSizeIterator<Item = (PathBuf, String)>) {
        self.skipped = skipped.len();
        self.skipped_files = skipped.take(NAMED_SKIPS).collect();
    }
}

/// A run's folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A run is there already.
    #[error("{0} holds a run already: go on with `latentd-trainer resume {0}`, or choose another folder")]
    Exists(String),
}

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// A new run in `path`, which must not hold one.
    pub fn create(path: &Path, info: &RunInfo, config: &RunConfig) -> Result<Self, RunError> {
        let run = Self(path.to_path_buf());
        if run.info_path().exists() {
            return Err(RunError::Exists(path.display().to_string()));
        }
        std::fs::create_dir_all(run.checkpoints()).map_err(|e| io(path, e))?;
        let text = toml::to_string(config).map_err(|e| format_error(path, e))?;
        write(&path.join("config.toml"), text.as_bytes())?;
        run.write_json("run.json", info)?;
        Ok(run)
    }

    /// An existing run.
    pub fn open(path: &Path) -> Result<(Self, RunInfo), RunError> {
        let run = Self(path.to_path_buf());
        let info = run.read_json("run.json")?;
        Ok((run, info))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    fn info_path(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// Reads one of the folder's JSON files.
    pub fn read_json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<T, RunError> {
        let path = self.0.join(name);
        let bytes = std::fs::read(&path).map_err(|e| io(&path, e))?;
        serde_json::from_slice(&bytes).map_err(|e| format_error(&path, e))
    }

    /// Writes one of the folder's JSON files.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), RunError> {
        let path = self.0.join(name);
        let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| format_error(&path, e))?;
        bytes.push(b'\n');
        write(&path, &bytes)
    }

    /// All rows of `metrics.jsonl`; none if there is no such file.
    pub fn metrics(&self) -> Result<Vec<MetricRow>, RunError> {
        let path = self.0.join("metrics.jsonl");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io(&path, e)),
        };
        // A killed run may leave half a line at the end, which is passed over.
        Ok(parse_metrics(&text).0)
    }

    /// Opens `metrics.jsonl` to go on after `step`: later rows are dropped.
    pub fn metrics_from(&self, step: u64) -> Result<MetricsLog, RunError> {
        let path = self.0.join("metrics.jsonl");
        let kept: Vec<_> = self.metrics()?.into_iter().filter(|row| row.step <= step).collect();
        let part = path.with_extension("part");
        let mut file = BufWriter::new(File::create(&part).map_err(|e| io(&part, e))?);
        for row in &kept {
            line(&mut file, row).map_err(|e| io(&part, e))?;
        }
        std::fs::rename(&part, &path).map_err(|e| io(&path, e))?;
        let events = EventLog::open(&self.0.join("tensorboard"), step)?;
        Ok(MetricsLog { path, file, events })
    }
}

/// `metrics.jsonl` and TensorBoard's copy of it, open to be continued.
pub struct MetricsLog {
    path: PathBuf,
    file: BufWriter<File>,
    events: EventLog,
}

impl MetricsLog {
    /// Adds a row.
    pub fn push(&mut self, row: &MetricRow) -> Result<(), RunError> {
        line(&mut self.file, row).map_err(|e| io(&self.path, e))?;
        self.events.push(row)
    }
}

fn line(file: &mut BufWriter<File>, row: &MetricRow) -> std::io::Result<()> {
    serde_json::to_writer(&mut *file, row)?;
    file.write_all(b"\n")?;
    file.flush()
}

fn io(path: &Path, source: std::io::Error) -> RunError {
    RunError::Io { path: path.display().to_string(), source }
}

fn format_error(path: &Path, reason: impl std::fmt::Display) -> RunError {
    RunError::Format { path: path.display().to_string(), reason: reason.to_string() }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    let part = path.with_extension("part");
    std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path)).map_err(|e| io(path, e))
}

/// Seconds since 1970, UTC.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A time as RFC 3339 in UTC, by Howard Hinnant's civil calendar.
pub fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(step: u64) -> MetricRow {
        MetricRow { kind: "step".into(), step, epoch: 0.5, loss: Some(1.5), ..MetricRow::default() }
    }

    fn info() -> RunInfo {
        RunInfo {
            trainer: "0".into(),
            command: "c".into(),
            pictures_root: "p".into(),
            pictures: 1,
            fingerprint: "f".into(),
            skipped: 0,
            skipped_files: vec![],
            started: 0,
        }
    }

    #[test]
    fn metrics_go_on_where_the_checkpoint_stood() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(&dir.path().join("r"), &info(), &RunConfig::default()).unwrap();
        let mut log = run.metrics_from(0).unwrap();
        (1..=5).for_each(|step| log.push(&row(step)).unwrap());
        drop(log);
        let path = run.path().join("metrics.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"kind\":\"st");
        std::fs::write(&path, text).unwrap();
        let mut log = run.metrics_from(3).unwrap();
        log.push(&row(4)).unwrap();
        let steps: Vec<_> = run.metrics().unwrap().iter().map(|r| r.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }

    #[test]
    fn a_run_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        RunDir::create(dir.path(), &info(), &RunConfig::default()).unwrap();
        let again = RunDir::create(dir.path(), &info(), &RunConfig::default()).unwrap_err();
        assert!(again.to_string().contains("latentd-trainer resume"));
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_564_799), "2026-11-24T23:59:59Z");
    }
}
