//! The golden check: a few pictures and the vectors they must give.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::decode::DecodeLimits;
use crate::embedding::{Embedding, EmbeddingError};
use crate::encoder::Encoder;
use crate::pixels::Pixels;
use crate::preprocess::{LoadError, Preprocess};

/// A picture file and the embedding that it must give.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenPicture {
    /// File name, without folders.
    pub name: String,
    /// The undecoded file.
    pub bytes: Vec<u8>,
    /// The embedding of it.
    pub expected: Embedding,
}

/// The golden pictures of an artefact, folder `golden/`: usually 8 pictures and `expected.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    /// The pictures, in the order of `expected.json`.
    pub pictures: Vec<GoldenPicture>,
}

/// The outcome of a golden check that passed.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenReport {
    /// File name and cosine to the expected embedding, in the order of the pictures.
    pub cosines: Vec<(String, f32)>,
    /// The smallest of them.
    pub worst: f32,
}

/// Why a golden check failed.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// There is no picture to check with.
    #[error("the artefact has no golden pictures")]
    NoPictures,
    /// The folder could not be read or written.
    #[error("golden: {path}: {reason}")]
    Files {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A picture did not become the encoder's pixels.
    #[error("golden picture {name}: {source}")]
    Load {
        /// File name.
        name: String,
        /// Why.
        source: LoadError,
    },
    /// An expected vector is none.
    #[error("golden picture {name}: {source}")]
    Expected {
        /// File name.
        name: String,
        /// Why.
        source: EmbeddingError,
    },
    /// The encoder failed.
    #[error("the encoder failed on the golden pictures: {0}")]
    Embed(String),
    /// The encoder gave another number of vectors than pictures, or of another length.
    #[error("the encoder gave {actual} where {expected} was expected")]
    Shape {
        /// What had to come.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A vector is too far from the expected one.
    #[error(
        "golden picture {name} has cosine {cosine:.6} to its expected vector, below {min_cosine}: decode, resize or the runtime differs from the one that made this artefact"
    )]
    Differs {
        /// File name.
        name: String,
        /// What was found.
        cosine: f32,
        /// What is asked for.
        min_cosine: f32,
    },
}

impl Golden {
    /// The cosine that every golden picture must reach.
    pub const MIN_COSINE: f32 = 0.9999;

    /// The most pictures that a folder may hold.
    pub const MAX_PICTURES: usize = 64;

    /// Reads `golden/` of an artefact.
    ///
    /// # Errors
    /// Files that are missing or malformed.
    pub fn read(dir: &Path) -> Result<Self, GoldenError> {
        let list = dir.join(EXPECTED_FILE);
        let text = read_bounded(&list, MAX_LIST_BYTES)?;
        let rows: Vec<ExpectedRow> = serde_json::from_slice(&text).map_err(|e| wrong(&list, &e))?;
        if rows.len() > Self::MAX_PICTURES {
            return Err(wrong(&list, &format!("more than {} pictures", Self::MAX_PICTURES)));
        }
        let max_bytes = DecodeLimits::default().max_bytes as u64;
        let pictures = rows.into_iter().map(|row| {
            check_file_name(&row.picture).map_err(|reason| wrong(&list, &reason))?;
            let bytes = read_bounded(&dir.join(&row.picture), max_bytes)?;
            let expected = Embedding::from_normalised(row.embedding)
                .map_err(|source| GoldenError::Expected { name: row.picture.clone(), source })?;
            Ok(GoldenPicture { name: row.picture, bytes, expected })
        });
        Ok(Self { pictures: pictures.collect::<Result<_, GoldenError>>()? })
    }

    /// The files of `golden/`, by file name: the pictures and `expected.json`.
    ///
    /// # Errors
    /// File names that are not plain or occur twice, and pictures beyond [`Self::MAX_PICTURES`].
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>, GoldenError> {
        let list = Path::new(EXPECTED_FILE);
        let mut seen = BTreeSet::from([EXPECTED_FILE]);
        for picture in &self.pictures {
            check_file_name(&picture.name).map_err(|reason| wrong(list, &reason))?;
            if !seen.insert(&picture.name) {
                return Err(wrong(list, &format!("{} occurs twice", picture.name)));
            }
        }
        if self.pictures.is_empty() {
            return Err(GoldenError::NoPictures);
        }
        if self.pictures.len() > Self::MAX_PICTURES {
            return Err(wrong(list, &format!("more than {} pictures", Self::MAX_PICTURES)));
        }
        let row = |p: &GoldenPicture| ExpectedRow {
            picture: p.name.clone(),
            embedding: p.expected.as_slice().to_vec(),
        };
        let rows: Vec<ExpectedRow> = self.pictures.iter().map(row).collect();
        let mut text = serde_json::to_vec(&rows).map_err(|e| wrong(list, &e))?;
        text.push(b'\n');
        let pictures = self.pictures.iter().map(|p| (p.name.clone(), p.bytes.clone()));
        Ok(pictures.chain([(EXPECTED_FILE.to_owned(), text)]).collect())
    }

    /// The same pictures with the vectors that another encoder, or another way to it, gives them.
    ///
    /// # Errors
    /// See [`GoldenError`].
    pub fn embedded_again(
        &self,
        preprocess: &Preprocess,
        encoder: &mut Encoder,
    ) -> Result<Self, GoldenError> {
        let again = |picture: &GoldenPicture| {
            let name = || picture.name.clone();
            let pixels = preprocess
                .load(&picture.bytes, &DecodeLimits::default())
                .map_err(|source| GoldenError::Load { name: name(), source })?;
            let mut found =
                encoder.embed(&[pixels]).map_err(|error| GoldenError::Embed(error.to_string()))?;
            let expected = found.pop().ok_or_else(|| GoldenError::Embed(name()))?;
            Ok(GoldenPicture { expected, ..picture.clone() })
        };
        Ok(Self { pictures: self.pictures.iter().map(again).collect::<Result<_, GoldenError>>()? })
    }

    /// Runs every picture through decode, `preprocess` and `embed`, and compares.
    ///
    /// # Errors
    /// The first thing that went wrong; see [`GoldenError`].
    pub fn check<E: std::fmt::Display>(
        &self,
        mut embed: impl FnMut(&[Pixels]) -> Result<Vec<Embedding>, E>,
        preprocess: &Preprocess,
        min_cosine: f32,
    ) -> Result<GoldenReport, GoldenError> {
        if self.pictures.is_empty() {
            return Err(GoldenError::NoPictures);
        }
        let limits = DecodeLimits::default();
        let prepare = |p: &GoldenPicture| {
            preprocess
                .load(&p.bytes, &limits)
                .map_err(|source| GoldenError::Load { name: p.name.clone(), source })
        };
        let batch = self.pictures.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
        let found = embed(&batch).map_err(|e| GoldenError::Embed(e.to_string()))?;
        if found.len() != self.pictures.len() {
            return Err(GoldenError::Shape {
                expected: format!("{} vectors", self.pictures.len()),
                actual: format!("{} vectors", found.len()),
            });
        }
        self.compare(&found, min_cosine)
    }

    fn compare(&self, found: &[Embedding], min_cosine: f32) -> Result<GoldenReport, GoldenError> {
        let mut cosines = Vec::with_capacity(found.len());
        let mut worst = f32::INFINITY;
        for (picture, found) in self.pictures.iter().zip(found) {
            if found.dim() != picture.expected.dim() {
                return Err(GoldenError::Shape {
                    expected: format!("a vector of {} numbers", picture.expected.dim()),
                    actual: format!("one of {}", found.dim()),
                });
            }
            let cosine = found.cosine(&picture.expected);
            if cosine < min_cosine {
                let name = picture.name.clone();
                return Err(GoldenError::Differs { name, cosine, min_cosine });
            }
            worst = worst.min(cosine);
            cosines.push((picture.name.clone(), cosine));
        }
        Ok(GoldenReport { cosines, worst })
    }
}

/// The list of pictures and vectors in `golden/`.
const EXPECTED_FILE: &str = "expected.json";
/// 64 vectors of 65,536 numbers, as text.
const MAX_LIST_BYTES: u64 = 64 * 1024 * 1024;

/// A row of `expected.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedRow {
    picture: String,
    embedding: Vec<f32>,
}

fn wrong(path: &Path, reason: &dyn std::fmt::Display) -> GoldenError {
    GoldenError::Files { path: path.display().to_string(), reason: reason.to_string() }
}

fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, GoldenError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| wrong(path, &e))?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| wrong(path, &e))?;
    if bytes.len() as u64 > max {
        return Err(wrong(path, &format!("more than {max} bytes")));
    }
    Ok(bytes)
}

fn check_file_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(format!("{name:?} is no plain file name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
