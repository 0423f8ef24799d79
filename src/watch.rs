//! Watching: files that are read again when they change, or on SIGHUP.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// What tells one state of a file from another: a file renamed into place has another inode.
type Stamp = Option<(SystemTime, u64, u64)>;

/// Calls `changed` on a blocking thread each time that one of `files` is another than before, and on SIGHUP.
/// Never ends; drop or abort it. Anything else that happens to the files is for `changed` to tell.
pub async fn watch(files: Vec<PathBuf>, changed: impl Fn() + Clone + Send + 'static) {
    let mut hangup = signal(SignalKind::hangup()).inspect_err(|error| {
        tracing::warn!(%error, "cannot listen for SIGHUP: files are read again when they change only");
    });
    let mut seen = stamps(&files).await;
    loop {
        let told = async {
            match &mut hangup {
                Ok(hangup) => hangup.recv().await,
                Err(_) => std::future::pending().await,
            }
        };
        let asked = tokio::select! {
            told = told => told.is_some(),
            () = tokio::time::sleep(EVERY) => false,
        };
        let now = stamps(&files).await;
        if asked || now != seen {
            seen = now;
            if tokio::task::spawn_blocking(changed.clone()).await.is_err() {
                tracing::error!("reading changed files panicked");
            }
        }
    }
}

async fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = async |file: &PathBuf| {
        let metadata = tokio::fs::metadata(file).await.ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    let mut stamps = Vec::with_capacity(files.len());
    for file in files {
        stamps.push(stamp(file).await);
    }
    stamps
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_file_that_changes_comes_or_goes_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let task = tokio::spawn(watch(vec![file.clone()], move || {
            counted.fetch_add(1, Ordering::SeqCst);
        }));
        tokio::time::sleep(EVERY / 4).await;
        for step in 1..=2 {
            if step == 1 {
                std::fs::write(&file, "x").unwrap()
            } else {
                std::fs::remove_file(&file).unwrap()
            }
            for _ in 0..100 {
                tokio::time::sleep(EVERY / 10).await;
                if count.load(Ordering::SeqCst) == step {
                    break;
                }
            }
            tokio::time::sleep(EVERY * 2).await;
            assert_eq!(count.load(Ordering::SeqCst), step);
        }
        task.abort();
    }
}
