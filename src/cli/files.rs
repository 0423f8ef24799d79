//! Files: the pictures that paths on a command line mean.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Extensions of the formats that are decoded.
const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif"];

/// Deepest nesting of folders that is followed.
const MAX_DEPTH: usize = 64;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Pictures: files that were named, and those in folders by extension; each folder sorted.
    pub pictures: Vec<PathBuf>,
    /// Other files in the folders.
    pub skipped: Vec<PathBuf>,
}

/// The pictures that `paths` mean: files as named, folders at any depth, hidden entries left out.
///
/// # Errors
/// When a path or folder cannot be read.
pub fn find(paths: &[PathBuf]) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    for path in paths {
        let kind = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if kind.is_dir() {
            walk(path, 0, &mut seen, &mut found)?;
        } else {
            found.pictures.push(path.clone());
        }
    }
    Ok(found)
}

fn walk(folder: &Path, depth: usize, seen: &mut HashSet<PathBuf>, found: &mut Found) -> anyhow::Result<()> {
    let real = folder.canonicalize().with_context(|| format!("cannot read {}", folder.display()))?;
    if depth > MAX_DEPTH || !seen.insert(real) {
        return Ok(());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, depth + 1, seen, found)?;
        } else if is_picture(&path) {
            found.pictures.push(path);
        } else {
            found.skipped.push(path);
        }
    }
    Ok(())
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Paths for a message.
pub fn show(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_in_order_and_loops_end() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b/2.JPG", "b/1.png", "a.webp", "notes.txt", ".hidden.jpg"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("b/loop")).unwrap();
        let found = find(&[dir.path().to_owned(), dir.path().join("notes.txt")]).unwrap();
        let names: Vec<_> =
            found.pictures.iter().map(|p| p.strip_prefix(dir.path()).unwrap().to_owned()).collect();
        assert_eq!(names, ["a.webp", "b/1.png", "b/2.JPG", "notes.txt"].map(PathBuf::from));
        assert_eq!(found.skipped.len(), 1);
        assert!(find(&[dir.path().join("absent")]).is_err());
    }
}
