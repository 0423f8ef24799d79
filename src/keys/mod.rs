//! Keys: who may call and how much, known by the digests of their keys alone.

pub mod bucket;
pub mod file;
pub mod secret;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use bucket::Bucket;
use file::{KeyRecord, KeysFileError};
use secret::{AdminKeyError, Digest};

/// What a key may do; each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Embed, search and look at items.
    Read,
    /// Also write and delete items and collections.
    Write,
    /// Also change which encoder serves.
    Admin,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

/// A key that is known, and what is in use of its limits.
#[derive(Debug)]
pub struct Key {
    record: KeyRecord,
    bucket: Option<Bucket>,
    pictures: AtomicUsize,
}

impl Key {
    /// A key that has used nothing yet.
    #[must_use]
    pub fn new(record: KeyRecord) -> Self {
        let bucket = record.requests_per_second.map(|rate| Bucket::new(rate, record.burst(), Instant::now()));
        Self { record, bucket, pictures: AtomicUsize::new(0) }
    }

    /// Its name, which may be logged.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// What it may do.
    #[must_use]
    pub fn role(&self) -> Role {
        self.record.role
    }

    /// Pictures it may have in flight, when that is limited.
    #[must_use]
    pub fn max_images(&self) -> Option<usize> {
        self.record.max_images
    }

    /// Counts a request.
    ///
    /// # Errors
    /// How long to wait, when it has had its requests.
    pub fn request(&self) -> Result<(), Duration> {
        self.bucket.as_ref().map_or(Ok(()), |bucket| bucket.take(Instant::now()))
    }

    /// Takes `count` pictures in flight, until what is given back is dropped; `None` when they are too many.
    #[must_use]
    pub fn pictures(self: &Arc<Self>, count: usize) -> Option<InFlight> {
        let max = self.max_images().unwrap_or(usize::MAX);
        let add = |now: usize| now.checked_add(count).filter(|&sum| sum <= max);
        let taken = self.pictures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        taken.is_ok().then(|| InFlight { key: self.clone(), count })
    }
}

/// Pictures of a key that are in flight.
#[derive(Debug)]
pub struct InFlight {
    key: Arc<Key>,
    count: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.key.pictures.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file of keys.
    #[error(transparent)]
    File(#[from] KeysFileError),
    /// The file of the admin key.
    #[error(transparent)]
    Admin(#[from] AdminKeyError),
}

/// All keys of a server.
#[derive(Debug)]
pub struct Keys {
    /// The file of keys, when every call needs one.
    file: Option<PathBuf>,
    listed: RwLock<Arc<[Arc<Key>]>>,
    /// The key of `--admin-key-file`.
    admin: Option<Arc<Key>>,
}

impl Keys {
    /// The keys of `--api-keys-file` and `--admin-key-file`; an empty path stands for none.
    ///
    /// # Errors
    /// When a file is named and cannot be used.
    pub fn open(file: &Path, admin: &Path) -> Result<Self, KeysError> {
        let named = |path: &Path| Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty());
        let file = named(file);
        let admin = match named(admin) {
            Some(path) => Some(Arc::new(Key::new(KeyRecord::admin(secret::read_admin_key(&path)?)))),
            None => None,
        };
        let listed = match &file {
            Some(path) => renewed(&[], file::read(path)?),
            None => Arc::default(),
        };
        Ok(Self { file, listed: RwLock::new(listed), admin })
    }

    /// Whether every call needs a key.
    #[must_use]
    pub fn required(&self) -> bool {
        self.file.is_some()
    }

    /// Whether anybody may change the encoder.
    #[must_use]
    pub fn any(&self) -> bool {
        self.file.is_some() || self.admin.is_some()
    }

    /// The file to watch.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// How many keys the file lists.
    #[must_use]
    pub fn listed(&self) -> usize {
        self.listed.read().len()
    }

    /// Whose key this is. Looks at every key to the end, whichever it is.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<Arc<Key>> {
        let digest = Digest::of(key);
        let listed = self.listed.read().clone();
        let all = listed.iter().chain(&self.admin);
        all.fold(None, |found, key| if key.record.sha256.is(&digest) { Some(key.clone()) } else { found })
    }

    /// What is known of a key now, which was found before; `None` when its entry is gone.
    #[must_use]
    pub fn again(&self, key: &Key) -> Option<Arc<Key>> {
        let listed = self.listed.read().clone();
        listed.iter().chain(&self.admin).find(|known| known.record.sha256.is(&key.record.sha256)).cloned()
    }

    /// Reads the file again. A bad one changes nothing; keys that stay keep what they have used of their limits.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn reload(&self) -> Result<usize, KeysFileError> {
        let Some(path) = &self.file else { return Ok(0) };
        let records = file::read(path)?;
        let before = self.listed.read().clone();
        let now = renewed(&before, records);
        let count = now.len();
        *self.listed.write() = now;
        Ok(count)
    }
}

fn renewed(before: &[Arc<Key>], records: Vec<KeyRecord>) -> Arc<[Arc<Key>]> {
    let kept = |record: &KeyRecord| before.iter().find(|key| key.record == *record).cloned();
    records.into_iter().map(|record| kept(&record).unwrap_or_else(|| Arc::new(Key::new(record)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_limited_and_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        let key = file::append(&path, |sha256| KeyRecord {
            requests_per_second: Some(0.001),
            burst: Some(2),
            max_images: Some(3),
            ..KeyRecord::new("shop", Role::Read, sha256)
        });
        let (key, keys) = (key.unwrap(), Keys::open(&path, Path::new("")).unwrap());
        assert!(keys.required() && keys.any() && keys.find("").is_none() && keys.find("shop").is_none());
        let shop = keys.find(&key).unwrap();
        assert_eq!((shop.name(), shop.role()), ("shop", Role::Read));
        assert!(shop.request().is_ok() && shop.request().is_ok() && shop.request().is_err());
        let held = shop.pictures(2).unwrap();
        assert!(shop.pictures(2).is_none() && shop.pictures(usize::MAX).is_none());
        drop(held);
        assert!(shop.pictures(3).is_some());

        let other = file::append(&path, |sha256| KeyRecord::new("ops", Role::Admin, sha256)).unwrap();
        assert!(keys.find(&other).is_none());
        assert_eq!(keys.reload().unwrap(), 2);
        assert_eq!(keys.find(&other).unwrap().role(), Role::Admin);
        assert!(keys.find(&key).unwrap().request().is_err(), "what was used is not forgotten");
        assert_eq!(keys.again(&shop).unwrap().name(), "shop");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(keys.reload().is_err() && keys.find(&other).is_some());
        std::fs::write(&path, "").unwrap();
        assert_eq!(keys.reload().unwrap(), 0);
        assert!(keys.find(&other).is_none() && keys.again(&shop).is_none() && keys.required());
    }
}
