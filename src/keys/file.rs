//! The file of keys: TOML with one `[[key]]` each, which holds digests and no key.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Role;
use super::secret::{Digest, new_key};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Most keys of a file.
const MAX_KEYS: usize = 1000;

/// Longest name of a key, in characters.
const MAX_NAME: usize = 64;

/// One key of the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// What it is called, in the log too.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The digest of the key.
    pub sha256: Digest,
    /// Requests a second, as many as wanted when left out.
    #[serde(default)]
    pub requests_per_second: Option<f64>,
    /// Requests at once, a second's when left out.
    #[serde(default)]
    pub burst: Option<u32>,
    /// Pictures taken in and not yet answered, as many as the server takes when left out.
    #[serde(default)]
    pub max_images: Option<usize>,
}

impl KeyRecord {
    /// A key without limits.
    #[must_use]
    pub fn new(name: &str, role: Role, sha256: Digest) -> Self {
        Self { name: name.to_owned(), role, sha256, requests_per_second: None, burst: None, max_images: None }
    }

    /// The key of `--admin-key-file`.
    #[must_use]
    pub fn admin(sha256: Digest) -> Self {
        Self::new("admin-key-file", Role::Admin, sha256)
    }

    /// Requests at once.
    #[must_use]
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or_else(|| self.requests_per_second.unwrap_or(1.0).ceil().max(1.0) as u32)
    }

    fn check(&self) -> Result<(), String> {
        let Self { name, .. } = self;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
            return Err(format!("the name {name:?} must be 1 to {MAX_NAME} of A-Z a-z 0-9 . _ -"));
        }
        if self.requests_per_second.is_some_and(|rate| !(rate > 0.0 && rate <= 1e9)) {
            return Err(format!("{name}: requests_per_second must be above 0 and at most 1e9"));
        }
        if self.burst.is_some_and(|burst| burst == 0 || self.requests_per_second.is_none()) {
            return Err(format!("{name}: burst must be at least 1, and goes with requests_per_second"));
        }
        if self.max_images == Some(0) {
            return Err(format!("{name}: max_images must be at least 1"));
        }
        Ok(())
    }

    fn to_toml(&self) -> String {
        let Self { name, role, sha256, .. } = self;
        let mut text = format!("[[key]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{sha256}\"\n");
        // Writing to a string does not fail.
        if let Some(rate) = self.requests_per_second {
            let _ = writeln!(text, "requests_per_second = {rate:?}");
        }
        if let Some(burst) = self.burst {
            let _ = writeln!(text, "burst = {burst}");
        }
        if let Some(images) = self.max_images {
            let _ = writeln!(text, "max_images = {images}");
        }
        text
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysToml {
    #[serde(default)]
    key: Vec<KeyRecord>,
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysFileError {
    /// It cannot be read or written.
    #[error("the API keys in {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it must be.
    #[error("the API keys in {path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The keys of a text.
///
/// # Errors
/// What is wrong with it, in one line that quotes nothing secret.
pub fn parse(text: &str) -> Result<Vec<KeyRecord>, String> {
    let KeysToml { key: keys } = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        format!("{place}{}", error.message().replace('\n', "; "))
    })?;
    if keys.len() > MAX_KEYS {
        return Err(format!("{} keys are more than the {MAX_KEYS} that are taken", keys.len()));
    }
    let (mut names, mut digests) = (HashSet::new(), HashSet::new());
    for key in &keys {
        key.check()?;
        if !names.insert(&key.name) || !digests.insert(key.sha256.to_string()) {
            return Err(format!("{}: two keys have this name or this sha256", key.name));
        }
    }
    Ok(keys)
}

/// Reads a file of keys.
///
/// # Errors
/// See [`KeysFileError`].
pub fn read(path: &Path) -> Result<Vec<KeyRecord>, KeysFileError> {
    let invalid = |reason| KeysFileError::Invalid { path: path.to_owned(), reason };
    parse(&text_of(path)?).map_err(invalid)
}

fn text_of(path: &Path) -> Result<String, KeysFileError> {
    let (mut text, failed) = (String::new(), |source| KeysFileError::Io { path: path.to_owned(), source });
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        let reason = format!("the file is larger than {MAX_FILE} bytes");
        return Err(KeysFileError::Invalid { path: path.to_owned(), reason });
    }
    Ok(text)
}

/// Makes a key, appends what `record` makes of its digest to the file, and gives the key, which is kept nowhere.
/// The file is replaced as a whole, so that a server that reads it sees all of it or what was there before.
///
/// # Errors
/// When the file is no file of keys, the name is taken, or it cannot be written; nothing is changed then.
pub fn append(path: &Path, record: impl FnOnce(Digest) -> KeyRecord) -> Result<String, KeysFileError> {
    let failed = |source| KeysFileError::Io { path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Held until the end, so that two that append at once do not lose a key.
    let lock = std::fs::File::open(folder).map_err(failed)?;
    lock.lock().map_err(failed)?;
    // Following a link, so that the link stays one.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut text = match text_of(&real) {
        Err(KeysFileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            String::new()
        }
        text => text?,
    };
    let key = new_key().map_err(failed)?;
    if !text.is_empty() {
        text.push_str(if text.ends_with('\n') { "\n" } else { "\n\n" });
    }
    text.push_str(&record(Digest::of(&key)).to_toml());
    parse(&text).map_err(|reason| KeysFileError::Invalid { path: path.to_owned(), reason })?;
    replace(&real, text.as_bytes()).map_err(failed)?;
    Ok(key)
}

/// Writes a file beside `path` that only its owner may read, or with the rights of the one there, and renames it.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let written = (|| {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        if let Ok(there) = std::fs::metadata(path) {
            file.set_permissions(there.permissions())?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_read_back_and_names_are_unique() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        let shop = |sha256| KeyRecord {
            requests_per_second: Some(0.5),
            burst: Some(7),
            max_images: Some(9),
            ..KeyRecord::new("shop", Role::Write, sha256)
        };
        let key = append(&path, shop).unwrap();
        append(&path, |sha256| KeyRecord::new("ops", Role::Admin, sha256)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&key));
        let keys = read(&path).unwrap();
        assert_eq!(keys[0], shop(Digest::of(&key)));
        assert_eq!((keys.len(), keys[1].role, keys[1].burst()), (2, Role::Admin, 1));
        let told = append(&path, |sha256| KeyRecord::new("ops", Role::Read, sha256)).unwrap_err().to_string();
        assert!(told.contains("ops"), "{told}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_bad_file_is_told_in_one_line() {
        let digest = Digest::of("x");
        let with = |more: &str| {
            parse(&format!("[[key]]\nname = \"a\"\nrole = \"read\"\nsha256 = \"{digest}\"\n{more}"))
        };
        assert_eq!(with("requests_per_second = 10").unwrap()[0].burst(), 10);
        assert_eq!(parse("").unwrap().len(), 0);
        for (more, told) in [
            ("burst = 3", "requests_per_second"),
            ("requests_per_second = 0", "above 0"),
            ("requests_per_second = nan", "above 0"),
            ("max_images = 0", "max_images"),
            ("colour = 1", "line 5: unknown field `colour`"),
            ("[[key]]\nname = \"b c\"\nrole = \"read\"\nsha256 = \"0\"", "64 hex digits"),
            ("role = 7", "duplicate key"),
        ] {
            let error = with(more).unwrap_err();
            assert!(error.contains(told) && !error.contains('\n'), "{more}: {error}");
        }
        assert!(with(&with_name("a b", "y")).unwrap_err().contains("A-Z"));
        assert!(with(&with_name("a", "y")).unwrap_err().contains("two keys"));
        assert!(with(&with_name("b", "x")).unwrap_err().contains("two keys"));
        assert_eq!(with(&with_name("b", "y")).unwrap().len(), 2);
    }

    fn with_name(name: &str, key: &str) -> String {
        KeyRecord::new(name, Role::Read, Digest::of(key)).to_toml()
    }
}
