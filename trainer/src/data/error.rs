//! What can go wrong between a folder of pictures and a batch of views.

use std::path::PathBuf;

use thiserror::Error;

/// An error of the data pipeline; its text says what to do.
#[derive(Debug, Error)]
pub enum DataError {
    /// The path given is not there.
    #[error("{path}: no such folder; give the folder that holds the pictures", path = .0.display())]
    NotFound(PathBuf),
    /// The path given is a file.
    #[error("{path}: is not a folder; give the folder that holds the pictures", path = .0.display())]
    NotAFolder(PathBuf),
    /// No readable picture under the root.
    #[error(
        "{path}: no pictures found ({skipped} other files skipped); JPEG, PNG, WebP, GIF, BMP and TIFF are read, sub-folders included",
        path = root.display()
    )]
    NoPictures {
        /// Folder that was scanned.
        root: PathBuf,
        /// Files that were seen and not used.
        skipped: usize,
    },
    /// A labelled folder without class folders.
    #[error("{path}: no class folders; expected one sub-folder of pictures per class, or train/ and test/ with such sub-folders", path = .0.display())]
    NoClasses(PathBuf),
    /// Fewer pictures than one batch needs.
    #[error(
        "{pictures} pictures are fewer than one batch of {batch}; use a smaller batch size or more pictures"
    )]
    TooFewPictures {
        /// Pictures in the cache.
        pictures: usize,
        /// Batch size asked for.
        batch: usize,
    },
    /// A setting out of range.
    #[error("{0}")]
    Setting(String),
    /// The file system said no.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Cancelled,
    /// A thread that renders views failed; the message of its panic.
    #[error("a view renderer failed: {0}")]
    Worker(String),
}

impl DataError {
    /// An I/O error together with what was being done.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}
