//! Snapshots: the collections' graphs in files beside the database, so that a start need not link again.
//!
//! They are derived: one that is missing, damaged or of another version costs time and nothing else. An older one
//! is caught up from the database, because each of its nodes says which write it is of.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry::Collection;
use super::rows::CollectionRow;
use crate::store::index::{Frozen, Owner};

/// Folder of the snapshots in the data folder.
const FOLDER: &str = "graphs";

/// The folder.
pub struct Snapshots {
    dir: PathBuf,
    seq: Arc<AtomicU64>,
}

fn owner(row: &CollectionRow) -> Owner {
    Owner { collection: row.key, contract: row.contract.to_bytes(), dim: row.dim }
}

impl Snapshots {
    /// Of this data folder; `seq` is the number of the last write.
    pub fn new(data: &Path, seq: Arc<AtomicU64>) -> Self {
        Self { dir: data.join(FOLDER), seq }
    }

    fn path(&self, key: i64) -> PathBuf {
        self.dir.join(format!("{key}.graph"))
    }

    /// The snapshot of a collection, if there is one that is whole.
    pub fn read(&self, row: &CollectionRow) -> Option<Frozen> {
        let path = self.path(row.key);
        let frozen = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
            Ok(bytes) => Frozen::read(&bytes, owner(row)).map_err(str::to_owned),
        };
        frozen
            .inspect_err(|reason| {
                tracing::warn!(path = %path.display(), reason, "this snapshot is of no use: the graph is built anew");
            })
            .ok()
    }

    /// Writes a collection's snapshot in place of the one before, or leaves that where it cannot.
    pub fn write(&self, collection: &Collection) {
        let Some(bytes) = collection.index.freeze(owner(&collection.row), self.seq.load(Ordering::Relaxed))
        else {
            return;
        };
        let path = self.path(collection.row.key);
        match self.replace(&path, &bytes) {
            Ok(()) => tracing::debug!(path = %path.display(), bytes = bytes.len(), "snapshot written"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the snapshot could not be written; nothing is lost");
            }
        }
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let part = path.with_extension("part");
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(&part, path)
    }

    /// Deletes the snapshots of collections that are gone.
    pub fn sweep(&self, keys: &[i64]) {
        let Ok(files) = std::fs::read_dir(&self.dir) else { return };
        for path in files.filter_map(Result::ok).map(|file| file.path()) {
            let key = path.file_stem().and_then(|stem| stem.to_str()?.parse::<i64>().ok());
            let ours = matches!(path.extension().and_then(|end| end.to_str()), Some("graph" | "part"));
            if ours && key.is_none_or(|key| !keys.contains(&key)) {
                // One that stays takes space and does no harm.
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}
