//! The folder that a refresh works in: a lock, one run, and notes of what was done.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A refresh's folder, locked as long as this lives. It never holds more than one run and the notes.
#[derive(Debug)]
pub struct Workspace {
    dir: PathBuf,
    /// Held by the operating system, which lets go of it however the process ends.
    _lock: File,
}

/// A folder that cannot be worked in.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// Somebody else is at work in it.
    #[error("another refresh is at work in {}: wait for it, or give this one another --work", .0.display())]
    Locked(PathBuf),
    /// The file system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Workspace {
    /// Opens or makes the folder and locks it.
    ///
    /// # Errors
    /// When another process has the lock, or the folder cannot be written.
    pub fn open(dir: &Path) -> Result<Self, WorkspaceError> {
        let io = |path: &Path, source| WorkspaceError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(|e| io(dir, e))?;
        let path = dir.join("lock");
        let lock =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| io(&path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(WorkspaceError::Locked(dir.to_owned())),
            Err(TryLockError::Error(e)) => Err(io(&path, e)),
        }
    }

    /// Where the run is trained.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Whether there is a run.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.run().join("run.json").is_file()
    }

    /// Removes the run.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(&self) -> Result<(), WorkspaceError> {
        let run = self.run();
        match std::fs::remove_dir_all(&run) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(WorkspaceError::Io { path: run, source: e })
            }
            _ => Ok(()),
        }
    }

    /// Reads notes; `None` when there are none, or none that this version reads.
    #[must_use]
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.dir.join(name)).ok()?).ok()
    }

    /// Writes notes: whole or not at all.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), WorkspaceError> {
        let path = self.dir.join(name);
        let part = path.with_extension("part");
        let text = serde_json::to_vec_pretty(value).map_err(std::io::Error::other);
        text.and_then(|text| std::fs::write(&part, text))
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|source| WorkspaceError::Io { path, source })
    }

    /// Removes notes.
    pub fn forget(&self, name: &str) {
        std::fs::remove_file(self.dir.join(name)).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_notes_survive() {
        let dir = tempfile::tempdir().unwrap();
        let work = Workspace::open(&dir.path().join("w")).unwrap();
        let second = Workspace::open(&dir.path().join("w")).unwrap_err();
        assert!(matches!(second, WorkspaceError::Locked(_)), "{second}");
        work.write("notes.json", &vec![1, 2]).unwrap();
        assert_eq!(work.read::<Vec<u8>>("notes.json"), Some(vec![1, 2]));
        assert_eq!(work.read::<String>("notes.json"), None);
        std::fs::create_dir_all(work.run()).unwrap();
        std::fs::write(work.run().join("run.json"), "{}").unwrap();
        assert!(work.has_run());
        work.clear().unwrap();
        work.clear().unwrap();
        assert!(!work.has_run());
        drop(work);
        Workspace::open(&dir.path().join("w")).unwrap();
    }
}
