//! The admin key: who may change which encoder serves.

use std::path::Path;

use sha2::{Digest, Sha256};

/// The key, as its digest: the key itself is not kept.
#[derive(Clone)]
pub struct AdminKey([u8; 32]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum AdminKeyError {
    /// The file cannot be read.
    #[error("cannot read the admin key from {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The key could be guessed.
    #[error(
        "the admin key in {path} has {length} characters, but needs at least {MIN_LENGTH}: make one with `openssl rand -hex 32`"
    )]
    Short {
        /// The file.
        path: String,
        /// Its length.
        length: usize,
    },
}

const MIN_LENGTH: usize = 16;
const MAX_FILE: u64 = 64 * 1024;

impl AdminKey {
    /// Reads the key from a file; white space around it does not count.
    ///
    /// # Errors
    /// When the file cannot be read or the key is short.
    pub fn read(file: &Path) -> Result<Self, AdminKeyError> {
        use std::io::Read;
        let path = file.display().to_string();
        let mut text = String::new();
        std::fs::File::open(file)
            .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
            .map_err(|source| AdminKeyError::Read { path: path.clone(), source })?;
        let key = text.trim();
        if key.len() < MIN_LENGTH {
            return Err(AdminKeyError::Short { path, length: key.len() });
        }
        Ok(Self(Sha256::digest(key.as_bytes()).into()))
    }

    /// Whether this is the key. Takes the same time for every wrong one: what is compared are digests, to the end.
    #[must_use]
    pub fn is(&self, key: &str) -> bool {
        let other: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let difference = self.0.iter().zip(other).fold(0u8, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_trimmed_and_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, " 0123456789abcdef0123\n").unwrap();
        let key = AdminKey::read(&file).unwrap();
        assert!(key.is("0123456789abcdef0123"));
        assert!(!key.is("0123456789abcdef0124") && !key.is("") && !key.is("0123456789abcdef012"));
        std::fs::write(&file, "short\n").unwrap();
        assert!(AdminKey::read(&file).err().unwrap().to_string().contains("5 characters"));
        assert!(AdminKey::read(&dir.path().join("absent")).err().unwrap().to_string().contains("absent"));
    }
}
