//! Secrets: making a key, and knowing one again by its digest.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer};
use sha2::Digest as _;
use subtle::ConstantTimeEq;

/// What keys made here begin with, so that a scanner for leaked secrets can tell them.
const PREFIX: &str = "ltd_";

/// Random bytes of a key made here.
const RANDOM: usize = 32;

/// The SHA-256 of a key. Keys have 256 random bits, so that no slow hash is needed to keep them from being guessed.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of this key.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(sha2::Sha256::digest(key.as_bytes()).into())
    }

    /// Whether both are the same; takes as long for every answer.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest(…)")
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom("sha256 must be the 64 hex digits of the key's SHA-256");
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |&[high, low]: &[u8; 2]| Some((digit(high)? * 16 + digit(low)?) as u8);
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        let bytes = bytes.filter(|_| rest.is_empty()).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(wrong)
    }
}

/// A new key.
///
/// # Errors
/// When the system has no random numbers to give.
pub fn new_key() -> std::io::Result<String> {
    let mut random = [0u8; RANDOM];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    Ok(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random)))
}

/// Why there is no admin key.
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

/// Reads the admin key from a file; white space around it does not count.
///
/// # Errors
/// When the file cannot be read or the key is short.
pub fn read_admin_key(file: &Path) -> Result<Digest, AdminKeyError> {
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
    Ok(Digest::of(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_random_and_known_by_their_digest() {
        let (key, other) = (new_key().unwrap(), new_key().unwrap());
        assert!(key != other && key.starts_with(PREFIX) && key.len() == PREFIX.len() + 43);
        let digest = Digest::of(&key);
        assert!(digest.is(&Digest::of(&key)) && !digest.is(&Digest::of(&other)));
        let read = |text: &str| toml::from_str::<std::collections::BTreeMap<String, Digest>>(text);
        assert_eq!(read(&format!("sha256 = \"{digest}\"")).unwrap()["sha256"], digest);
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(66), &"a".repeat(63)] {
            assert!(read(&format!("sha256 = \"{bad}\"")).is_err(), "{bad}");
        }
        assert!(!format!("{digest:?}").contains(&digest.to_string()));
    }

    #[test]
    fn an_admin_key_is_read_trimmed_and_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, " 0123456789abcdef0123\n").unwrap();
        let key = read_admin_key(&file).unwrap();
        assert!(key.is(&Digest::of("0123456789abcdef0123")));
        for other in ["0123456789abcdef0124", "", "0123456789abcdef012"] {
            assert!(!key.is(&Digest::of(other)));
        }
        std::fs::write(&file, "short\n").unwrap();
        assert!(read_admin_key(&file).err().unwrap().to_string().contains("5 characters"));
        assert!(read_admin_key(&dir.path().join("absent")).err().unwrap().to_string().contains("absent"));
    }
}
