//! A folder of pictures: which files are pictures, which were skipped and why, and a fingerprint of the set.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::error::DataError;

/// Folders nested deeper than this are not entered.
const MAX_DEPTH: usize = 64;

/// A file that was not used.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// Path relative to the scanned root.
    pub path: PathBuf,
    /// Why, in words.
    pub reason: String,
}

/// What a folder holds.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The folder.
    pub root: PathBuf,
    /// Pictures, relative to `root`, sorted by name.
    pub pictures: Vec<PathBuf>,
    /// Files that are no pictures or could not be looked at.
    pub skipped: Vec<Skipped>,
    /// SHA-256 over the sorted relative names and sizes, hex. `PictureCache::fingerprint` covers the contents.
    pub fingerprint: String,
}

/// Finds the pictures under `root`, at any depth.
///
/// A file is taken by its extension, otherwise by its first bytes. Hidden files and folders are passed over,
/// links are followed and loops of links are reported as skipped. Labels, that is folder names, are ignored.
///
/// # Errors
/// When `root` is no readable folder or holds no picture.
pub fn scan(root: &Path) -> Result<Scan, DataError> {
    check_folder(root)?;
    let (candidates, mut skipped) = walk(root);
    let mut found: Vec<(PathBuf, u64)> = Vec::with_capacity(candidates.len());
    let looked: Vec<Result<(PathBuf, u64), Skipped>> =
        candidates.into_par_iter().map(|path| look(root, path)).collect();
    for outcome in looked {
        match outcome {
            Ok(picture) => found.push(picture),
            Err(skip) => skipped.push(skip),
        }
    }
    if found.is_empty() {
        return Err(DataError::NoPictures { root: root.to_owned(), skipped: skipped.len() });
    }
    found.sort();
    skipped.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hash = Sha256::new();
    for (path, size) in &found {
        hash.update(portable_name(path).as_bytes());
        hash.update([0]);
        hash.update(size.to_le_bytes());
    }
    let pictures = found.into_iter().map(|(path, _)| path).collect();
    Ok(Scan { root: root.to_owned(), pictures, skipped, fingerprint: hex(&hash.finalize()) })
}

/// Refuses what is not a folder, with an error that says so.
pub(super) fn check_folder(root: &Path) -> Result<(), DataError> {
    match std::fs::metadata(root) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(DataError::NotAFolder(root.to_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(DataError::NotFound(root.to_owned())),
        Err(e) => Err(DataError::io(root.display().to_string(), e)),
    }
}

/// Every visible file below `root` (relative), and what could not be entered.
fn walk(root: &Path) -> (Vec<PathBuf>, Vec<Skipped>) {
    let mut files = Vec::new();
    let mut skipped = Vec::new();
    let visible = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
    };
    let walker = WalkDir::new(root).follow_links(true).max_depth(MAX_DEPTH);
    for entry in walker.into_iter().filter_entry(visible) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {
                if entry.depth() == MAX_DEPTH {
                    let reason = format!("nested deeper than {MAX_DEPTH} folders");
                    skipped.push(Skipped { path: relative(root, entry.path()), reason });
                }
            }
            Ok(entry) => files.push(relative(root, entry.path())),
            Err(error) => {
                let reason = if error.loop_ancestor().is_some() {
                    "a link that leads back to a folder above it".to_owned()
                } else {
                    error.io_error().map_or_else(|| error.to_string(), ToString::to_string)
                };
                let path = error.path().map_or_else(PathBuf::new, |p| relative(root, p));
                skipped.push(Skipped { path, reason });
            }
        }
    }
    (files, skipped)
}

/// Decides whether one file is a picture; its size if so.
fn look(root: &Path, path: PathBuf) -> Result<(PathBuf, u64), Skipped> {
    let full = root.join(&path);
    let skip = |reason: String| Skipped { path: path.clone(), reason };
    let meta = std::fs::metadata(&full).map_err(|e| skip(e.to_string()))?;
    if !meta.is_file() {
        return Err(skip("not a regular file".to_owned()));
    }
    if meta.len() == 0 {
        return Err(skip("empty file".to_owned()));
    }
    if !has_picture_extension(&path) {
        let mut head = [0u8; 16];
        let got = File::open(&full)
            .and_then(|mut f| read_head(&mut f, &mut head))
            .map_err(|e| skip(e.to_string()))?;
        if !has_picture_magic(head.get(..got).unwrap_or_default()) {
            return Err(skip("not a picture (neither its extension nor its first bytes)".to_owned()));
        }
    }
    Ok((path, meta.len()))
}

fn read_head(file: &mut File, head: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = head.get_mut(got..).filter(|r| !r.is_empty()) {
        match file.read(rest)? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

fn relative(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_owned()
}

/// Whether the name ends as pictures do.
pub(super) fn has_picture_extension(path: &Path) -> bool {
    const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"];
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(e)))
}

/// Whether the first bytes are those of a format that is read.
pub(super) fn has_picture_magic(head: &[u8]) -> bool {
    head.starts_with(&[0xff, 0xd8, 0xff])
        || head.starts_with(b"\x89PNG\r\n\x1a\n")
        || head.starts_with(b"GIF87a")
        || head.starts_with(b"GIF89a")
        || head.starts_with(b"BM")
        || head.starts_with(b"II*\0")
        || head.starts_with(b"MM\0*")
        || (head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP"))
}

/// The relative name with `/` between its parts, on every system.
pub(super) fn portable_name(path: &Path) -> String {
    let parts: Vec<_> = path.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

/// Lower-case hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, bytes: &[u8]) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    const JPEG: &[u8] = &[0xff, 0xd8, 0xff, 0xe0, 0, 0, 0, 0];

    #[test]
    fn finds_pictures_by_extension_then_magic_sorted_and_nested() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "b/two.JPG", JPEG);
        write(dir.path(), "a/deep/er/one.png", b"anything");
        write(dir.path(), "no-extension", JPEG);
        write(dir.path(), "notes.txt", b"hello");
        write(dir.path(), "empty.jpg", b"");
        write(dir.path(), ".hidden/x.jpg", JPEG);
        write(dir.path(), ".DS_Store", b"x");
        let scan = scan(dir.path()).unwrap();
        let names: Vec<_> = scan.pictures.iter().map(|p| portable_name(p)).collect();
        assert_eq!(names, ["a/deep/er/one.png", "b/two.JPG", "no-extension"]);
        let skipped: Vec<_> = scan.skipped.iter().map(|s| portable_name(&s.path)).collect();
        assert_eq!(skipped, ["empty.jpg", "notes.txt"]);
        assert_eq!(scan.fingerprint.len(), 64);
    }

    #[test]
    fn fingerprint_follows_names_and_sizes() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.jpg", JPEG);
        let one = scan(dir.path()).unwrap().fingerprint;
        assert_eq!(one, scan(dir.path()).unwrap().fingerprint);
        write(dir.path(), "a.jpg", &[JPEG, JPEG].concat());
        assert_ne!(one, scan(dir.path()).unwrap().fingerprint);
    }

    #[cfg(unix)]
    #[test]
    fn loops_of_links_end_and_dangling_links_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a/one.jpg", JPEG);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere.jpg", dir.path().join("gone.jpg")).unwrap();
        let scan = scan(dir.path()).unwrap();
        assert_eq!(scan.pictures.len(), 1);
        assert_eq!(scan.skipped.len(), 2, "{:?}", scan.skipped);
    }

    #[test]
    fn errors_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(scan(&dir.path().join("missing")), Err(DataError::NotFound(_))));
        write(dir.path(), "file", b"x");
        assert!(matches!(scan(&dir.path().join("file")), Err(DataError::NotAFolder(_))));
        assert!(matches!(scan(dir.path()), Err(DataError::NoPictures { skipped: 1, .. })));
    }
}
