//! Pictures: thumbnails and originals, in a folder, since Milvus would hold them in memory.
//!
//! A file's name has the hash of the item's id and that of the picture, so that the item's row says which file is
//! its own. A file is on disk before its row is written, and goes after the row has gone. Processes on several
//! machines share pictures when the folder lies on a file system that they share.

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::rows::Kept;
use crate::store::{ItemId, NewItem, StoreError};

/// A folder of pictures.
#[derive(Debug, Clone)]
pub struct Pictures(PathBuf);

/// Which of the two is kept.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Thumbnail,
    Original,
}

/// What an item brings to be kept.
#[derive(Debug, Clone)]
pub struct Brought {
    pub id: ItemId,
    pub kept: Kept,
    pub thumbnail: Option<Bytes>,
    pub original: Option<Bytes>,
}

impl Brought {
    pub fn by(item: &NewItem) -> Self {
        let (thumbnail, original) =
            (item.thumbnail.as_ref().map(|jpeg| jpeg.0.clone()), item.picture.clone());
        let content_hash = item.content_hash;
        let kept = Kept { content_hash, thumbnail: thumbnail.is_some(), original: original.is_some() };
        Self { id: item.id.clone(), kept, thumbnail, original }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> StoreError {
    if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
        return StoreError::Full { dir: path.to_owned() };
    }
    StoreError::Io { path: path.to_owned(), reason: error.to_string() }
}

impl Pictures {
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    fn path(&self, physical: &str, id: &ItemId, kept: &Kept, kind: Kind) -> PathBuf {
        let id = latentd_model::digest::hex(&Sha256::digest(id.as_str()));
        let suffix = match kind {
            Kind::Thumbnail => "thumbnail.jpg",
            Kind::Original => "original",
        };
        let name = format!("{}-{}.{suffix}", &id[2..], kept.content_hash);
        self.0.join(physical).join(&id[..2]).join(name)
    }

    /// Writes what an item brings; each file is whole and on disk, or not there.
    pub fn write(&self, physical: &str, brought: &Brought) -> Result<(), StoreError> {
        let Brought { id, kept, thumbnail, original } = brought;
        for (bytes, kind) in [(thumbnail, Kind::Thumbnail), (original, Kind::Original)] {
            if let Some(bytes) = bytes {
                let path = self.path(physical, id, kept, kind);
                write_whole(&path, bytes).map_err(|error| failed(&path, &error))?;
            }
        }
        Ok(())
    }

    /// The picture, if it is here.
    pub fn read(
        &self,
        physical: &str,
        id: &ItemId,
        kept: &Kept,
        kind: Kind,
    ) -> Result<Option<Bytes>, StoreError> {
        let path = self.path(physical, id, kept, kind);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path, &error)),
        }
    }

    /// Deletes what was kept of an item but `still`, which it has now.
    pub fn delete(&self, physical: &str, id: &ItemId, kept: &Kept, still: Option<&Kept>) {
        let same = still.filter(|still| still.content_hash == kept.content_hash);
        for (had, has, kind) in [
            (kept.thumbnail, same.is_some_and(|still| still.thumbnail), Kind::Thumbnail),
            (kept.original, same.is_some_and(|still| still.original), Kind::Original),
        ] {
            if had && !has {
                let path = self.path(physical, id, kept, kind);
                if let Err(error) = std::fs::remove_file(&path)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "a picture that is not needed could not be deleted");
                }
            }
        }
    }

    /// Deletes all pictures of a collection.
    pub fn delete_all(&self, physical: &str) {
        let dir = self.0.join(physical);
        if let Err(error) = std::fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %dir.display(), %error, "pictures that are not needed could not be deleted");
        }
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    // Two processes may write the same item.
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let mut file = std::fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&part, path)?;
    std::fs::File::open(dir)?.sync_data()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::{ContentHash, Metadata, Thumbnail};

    #[test]
    fn pictures_come_and_go_with_their_items() {
        let dir = tempfile::tempdir().unwrap();
        let pictures = Pictures::new(dir.path().join("pictures"));
        let id = ItemId::new("../../a/ключ").unwrap();
        let item = NewItem {
            id: id.clone(),
            vector: latentd_model::Embedding::from_unnormalised(vec![1.0]).unwrap(),
            contract: latentd_model::Contract::from_bytes([1; 8]),
            metadata: Metadata::default(),
            content_hash: ContentHash::of(b"x"),
            thumbnail: Some(Thumbnail(Bytes::from_static(b"small"))),
            picture: Some(Bytes::from_static(b"large")),
        };
        let brought = Brought::by(&item);
        let kept = brought.kept;
        pictures.write("p", &brought).unwrap();
        let read = |kind| pictures.read("p", &id, &kept, kind).unwrap();
        assert_eq!(read(Kind::Thumbnail).unwrap(), "small");
        pictures.delete("p", &id, &kept, Some(&Kept { original: false, ..kept }));
        assert!(read(Kind::Thumbnail).is_some() && read(Kind::Original).is_none());
        pictures.delete("p", &id, &kept, Some(&Kept { content_hash: ContentHash::of(b"y"), ..kept }));
        assert!(read(Kind::Thumbnail).is_none());
        pictures.write("p", &brought).unwrap();
        pictures.delete_all("p");
        pictures.delete_all("p");
        assert!(read(Kind::Original).is_none());
        std::fs::write(dir.path().join("file"), "").unwrap();
        let broken = Pictures::new(dir.path().join("file"));
        assert_eq!(broken.write("p", &brought).unwrap_err().code(), "store_io");
    }
}
