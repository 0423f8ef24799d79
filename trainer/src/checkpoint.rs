//! Checkpoints: a safetensors file that holds everything a run needs to go on.
//!
//! A file is complete or absent (written beside, synced, renamed), and its tensors' SHA-256 is in
//! its header, so that a damaged one is known and the one before is taken.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::RunConfig;
use crate::method::byol::Snapshot;
use crate::nn::config::EncoderConfig;
use crate::nn::weights::{WeightTensor, Weights};

/// File of a run's best checkpoint.
const BEST: &str = "best.safetensors";
/// Checkpoints that a run keeps beside it.
const KEPT: usize = 3;
const VERSION: u32 = 1;
/// A header is a few hundred lines of names and shapes.
const MOST_HEADER_BYTES: u64 = 64 << 20;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of this format.
    pub version: u32,
    /// Steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Seconds spent so far.
    pub seconds: f64,
    /// The run's configuration.
    pub config: RunConfig,
    /// The encoder, with the normalisation measured on the pictures.
    pub encoder: EncoderConfig,
    /// SHA-256 over the pictures' names and contents.
    pub data: String,
    /// Pictures held out of training, see `monitor::Watched`.
    #[serde(default)]
    pub held_out: usize,
}

/// A run at one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Where the run stands.
    pub header: Header,
    /// All arrays.
    pub arrays: Snapshot,
}

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// No room, or no right to write.
    #[error(
        "{path} was not written: {source}; the checkpoints before it are kept: make room, then go on with `latentd-trainer resume`"
    )]
    Write {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a checkpoint, or a damaged one.
    #[error("{path}: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A run without a usable checkpoint.
    #[error("{0}: no usable checkpoint; start again with `latentd-trainer train`")]
    None(String),
}

impl Checkpoint {
    /// Writes it into a folder as `step-<steps>.safetensors`, and removes all but the newest three.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let path = self.write_to(&folder.join(format!("step-{:09}.safetensors", self.header.step)))?;
        let mut all = list(folder)?;
        all.truncate(all.len().saturating_sub(KEPT));
        all.iter().for_each(|old| {
            std::fs::remove_file(old).ok();
        });
        Ok(path)
    }

    /// Writes it as the best of its run, in the place of the one before.
    pub fn write_best(&self, folder: &Path) -> Result<PathBuf, CheckpointError> {
        self.write_to(&folder.join(BEST))
    }

    fn write_to(&self, path: &Path) -> Result<PathBuf, CheckpointError> {
        let io = |source| CheckpointError::Write { path: path.display().to_string(), source };
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(io)?;
        let bytes = self
            .to_bytes()
            .map_err(|reason| CheckpointError::Damaged { path: path.display().to_string(), reason })?;
        let part = path.with_extension("part");
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&part, path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|e| {
            std::fs::remove_file(&part).ok();
            io(e)
        })?;
        Ok(path.to_path_buf())
    }

    /// The networks alone, for going on with another schedule: the target starts as the online network does.
    #[must_use]
    pub fn networks(&self) -> Self {
        let arrays = Snapshot {
            online: self.arrays.online.clone(),
            target: Weights::default(),
            velocity: Weights::default(),
        };
        Self { header: self.header.clone(), arrays }
    }

    /// The bytes of a checkpoint file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let groups = [
            ("online", &self.arrays.online),
            ("target", &self.arrays.target),
            ("velocity", &self.arrays.velocity),
        ];
        let named = groups.iter().flat_map(|(g, w)| w.0.iter().map(move |(n, t)| (format!("{g}/{n}"), t)));
        let mut hash = Sha256::new();
        let mut views = Vec::new();
        for (name, tensor) in named {
            let bytes: &[u8] = bytemuck::cast_slice(&tensor.data);
            hash.update(name.as_bytes());
            hash.update(bytes);
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map_err(|e| e.to_string())?;
            views.push((name, view));
        }
        let header = serde_json::to_string(&self.header).map_err(|e| e.to_string())?;
        let metadata =
            HashMap::from([("run".to_string(), header), ("sha256".to_string(), hex(&hash.finalize()))]);
        serialize(views, Some(metadata)).map_err(|e| e.to_string())
    }

    /// Reads a file and checks its hash.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let name = path.display().to_string();
        let bytes =
            std::fs::read(path).map_err(|source| CheckpointError::Io { path: name.clone(), source })?;
        Self::from_bytes(&bytes).map_err(|reason| CheckpointError::Damaged { path: name, reason })
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (_, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|e| format!("not a checkpoint: {e}"))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| format!("not a checkpoint: {e}"))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let header = metadata.get("run").ok_or("not a checkpoint of latentd-trainer")?;
        let header: Header = serde_json::from_str(header).map_err(|e| format!("unknown header: {e}"))?;
        if header.version != VERSION {
            return Err(format!("format version {}, this trainer reads {VERSION}", header.version));
        }
        let mut arrays =
            Snapshot { online: Weights::default(), target: Weights::default(), velocity: Weights::default() };
        let mut hash = Sha256::new();
        let mut names: Vec<_> = file.names().into_iter().map(str::to_string).collect();
        names.sort_unstable();
        for name in names {
            let view = file.tensor(&name).map_err(|e| e.to_string())?;
            hash.update(name.as_bytes());
            hash.update(view.data());
            let (group, array) = name.split_once('/').ok_or_else(|| format!("unknown array `{name}`"))?;
            let group = match group {
                "online" => &mut arrays.online,
                "target" => &mut arrays.target,
                "velocity" => &mut arrays.velocity,
                _ => return Err(format!("unknown array `{name}`")),
            };
            let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            group.0.insert(array.into(), WeightTensor { shape: view.shape().to_vec(), data: data.collect() });
        }
        if metadata.get("sha256") != Some(&hex(&hash.finalize())) {
            return Err("its contents do not match its checksum".into());
        }
        Ok(Self { header, arrays })
    }

    /// The newest checkpoint of a folder that can be read, and a line for every damaged newer one.
    pub fn newest(folder: &Path) -> Result<(Self, Vec<String>), CheckpointError> {
        let mut damaged = Vec::new();
        for path in list(folder)?.into_iter().rev() {
            match Self::read(&path) {
                Ok(checkpoint) => return Ok((checkpoint, damaged)),
                Err(e) => damaged.push(format!("{e}; taking the one before")),
            }
        }
        match damaged.into_iter().next() {
            Some(reason) => Err(CheckpointError::None(format!("{} ({reason})", folder.display()))),
            None => Err(CheckpointError::None(folder.display().to_string())),
        }
    }

    /// The best checkpoint of a folder by its label-free verdicts; the newest where there is none, or a damaged one.
    pub fn best(folder: &Path) -> Result<(Self, Vec<String>), CheckpointError> {
        let path = folder.join(BEST);
        if !path.is_file() {
            return Self::newest(folder);
        }
        match Self::read(&path) {
            Ok(checkpoint) => Ok((checkpoint, Vec::new())),
            Err(e) => {
                let (newest, mut damaged) = Self::newest(folder)?;
                damaged.insert(0, format!("{e}; taking the newest checkpoint"));
                Ok((newest, damaged))
            }
        }
    }

    /// Whether a file says that it is a checkpoint; it may still be damaged.
    pub fn is_one(path: &Path) -> Result<bool, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.display().to_string(), source };
        let mut file = File::open(path).map_err(io)?;
        let mut length = [0u8; 8];
        if file.read_exact(&mut length).is_err() {
            return Ok(false);
        }
        let mut header = Vec::new();
        let length = u64::from_le_bytes(length).min(MOST_HEADER_BYTES);
        file.take(length).read_to_end(&mut header).map_err(io)?;
        let header: Option<serde_json::Value> = serde_json::from_slice(&header).ok();
        Ok(header.is_some_and(|h| h["__metadata__"]["run"].is_string()))
    }

    /// A new header.
    pub fn header(
        config: &RunConfig,
        encoder: &EncoderConfig,
        step: u64,
        total_steps: u64,
        data: &str,
        held_out: usize,
    ) -> Header {
        Header {
            version: VERSION,
            step,
            total_steps,
            seconds: 0.0,
            config: config.clone(),
            encoder: encoder.clone(),
            data: data.into(),
            held_out,
        }
    }
}

/// A folder's checkpoints, oldest first.
fn list(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: folder.display().to_string(), source };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("step-") && name.ends_with(".safetensors") {
            all.push(path);
        }
    }
    all.sort_unstable();
    Ok(all)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::method::byol::random_weights;

    fn checkpoint(step: u64) -> Checkpoint {
        let config = RunConfig { width: 0.125, ..RunConfig::default() };
        let encoder = config.encoder([0.5; 3], [0.25; 3]);
        let online = random_weights(&encoder, config.heads, step);
        let arrays = Snapshot { target: online.clone(), velocity: Weights::default(), online };
        Checkpoint { header: Checkpoint::header(&config, &encoder, step, 100, "abc", 0), arrays }
    }

    #[test]
    fn what_was_written_is_read_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        for step in [1, 20, 3, 100, 7] {
            checkpoint(step).write(dir.path()).unwrap();
        }
        let (newest, damaged) = Checkpoint::newest(dir.path()).unwrap();
        assert_eq!(newest, checkpoint(100));
        assert!(damaged.is_empty());
        assert_eq!(list(dir.path()).unwrap().len(), KEPT);
    }

    #[test]
    fn a_damaged_file_falls_back_to_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(1).write(dir.path()).unwrap();
        let path = checkpoint(2).write(dir.path()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (found, damaged) = Checkpoint::newest(dir.path()).unwrap();
        assert_eq!(found.header.step, 1);
        assert!(damaged[0].contains("do not match its checksum"), "{damaged:?}");
        std::fs::write(&path, &bytes[..100]).unwrap();
        assert_eq!(Checkpoint::newest(dir.path()).unwrap().0.header.step, 1);
    }

    #[test]
    fn the_best_is_never_rotated_away_and_a_damaged_one_falls_back() {
        let dir = tempfile::tempdir().unwrap();
        let best = checkpoint(2).write_best(dir.path()).unwrap();
        for step in 3..9 {
            checkpoint(step).write(dir.path()).unwrap();
        }
        let step = || Checkpoint::best(dir.path()).unwrap().0.header.step;
        assert_eq!((step(), Checkpoint::newest(dir.path()).unwrap().0.header.step), (2, 8));
        assert!(Checkpoint::is_one(&best).unwrap());
        std::fs::write(&best, b"broken").unwrap();
        assert!(!Checkpoint::is_one(&best).unwrap());
        let (found, damaged) = Checkpoint::best(dir.path()).unwrap();
        assert_eq!(found.header.step, 8);
        assert!(damaged[0].contains("best.safetensors") && damaged[0].contains("newest"), "{damaged:?}");
        std::fs::remove_file(&best).unwrap();
        assert_eq!(step(), 8);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(1).write(dir.path()).unwrap();
        // A folder in the place of the file to be written.
        std::fs::create_dir(dir.path().join("step-000000002.part")).unwrap();
        let said = checkpoint(2).write(dir.path()).unwrap_err().to_string();
        assert!(
            said.contains("step-000000002.safetensors was not written") && said.contains("resume"),
            "{said}"
        );
        assert_eq!(Checkpoint::newest(dir.path()).unwrap().0.header.step, 1);
    }

    #[test]
    fn an_empty_folder_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Checkpoint::newest(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no usable checkpoint"), "{error}");
    }
}
