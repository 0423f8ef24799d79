//! The comparison of two encoders: how far the neighbours of the same pictures change between them.

mod page;

use std::path::PathBuf;

use crate::artefact::Artefact;
use crate::contract::Contract;
use crate::gallery::{Gallery, GalleryError, Subject, Vectors, embed_pictures};
use crate::neighbours::{Near, nearest_others};
pub use page::page;

/// What a comparison found. Rows are places in `pictures`.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The encoder before.
    pub old: Side,
    /// The encoder after.
    pub new: Side,
    /// Neighbours that were compared of each picture.
    pub k: usize,
    /// The pictures compared.
    pub pictures: Vec<PathBuf>,
    /// The pictures that could not be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
    /// How many pictures there were to choose from; more than were compared when only a sample was.
    pub offered: usize,
    /// The mean over the pictures of the share of neighbours that both encoders name, 0 to 1.
    pub mean_overlap: f64,
    /// What two encoders that have nothing in common would reach: k of the other pictures, drawn by chance.
    pub overlap_by_chance: f64,
    /// The share of pictures whose nearest neighbour is the same.
    pub same_nearest: f64,
    /// Every picture's change, the greatest first; of equal ones in the order of the pictures.
    pub changes: Vec<PictureChange>,
}

/// One of the two encoders.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    /// `<name>-v<N>`.
    pub name: String,
    /// The contract of its vectors.
    pub contract: Contract,
}

impl Side {
    fn of(artefact: &Artefact) -> Self {
        Self { name: artefact.manifest().full_name(), contract: artefact.contract() }
    }
}

/// What became of one picture's neighbours.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureChange {
    /// The picture.
    pub row: u32,
    /// The share of its neighbours that both encoders name, 0 to 1.
    pub overlap: f64,
    /// Its neighbours with the old encoder, the nearest first.
    pub before: Vec<Near>,
    /// Its neighbours with the new one.
    pub after: Vec<Near>,
}

/// Why two encoders could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Lists of no neighbours are all alike.
    #[error("k is {0}, but must be 1 to {max}", max = Comparison::MAX_K)]
    K(usize),
    /// Too few pictures to have neighbours.
    #[error("{readable} of {offered} pictures can be read, but comparing {k} neighbours takes at least {}", k + 2)]
    TooFew {
        /// Pictures that could be read.
        readable: usize,
        /// Pictures that were given.
        offered: usize,
        /// Neighbours asked for.
        k: usize,
    },
    /// The pictures could not be embedded.
    #[error(transparent)]
    Gallery(#[from] GalleryError),
}

impl Comparison {
    /// Most neighbours that are compared.
    pub const MAX_K: usize = 1000;
}

/// Embeds `pictures` with both encoders and compares the `k` nearest others of each.
///
/// Exact, on all cores, and bounded: of more pictures than [`crate::gallery::MAX_PICTURES`] an evenly spaced
/// sample is compared. `progress` is told how many pictures are embedded.
///
/// # Errors
/// See [`CompareError`]. Pictures that cannot be read are left out and named.
pub fn compare(
    old: &Artefact,
    new: &Artefact,
    pictures: &[PathBuf],
    k: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Comparison, CompareError> {
    if k == 0 || k > Comparison::MAX_K {
        return Err(CompareError::K(k));
    }
    let gallery = embed_pictures(&[old.into(), new.into()], pictures, progress)?;
    of_gallery(Side::of(old), Side::of(new), gallery, k)
}

/// As [`compare`], of an artefact and one that is not written yet.
///
/// # Errors
/// See [`CompareError`].
pub fn compare_subject(
    old: &Artefact,
    subject: Subject<'_>,
    new: Side,
    pictures: &[PathBuf],
    k: usize,
) -> Result<Comparison, CompareError> {
    let gallery = embed_pictures(&[old.into(), subject], pictures, &|_| ())?;
    of_gallery(Side::of(old), new, gallery, k)
}

fn of_gallery(old: Side, new: Side, gallery: Gallery, k: usize) -> Result<Comparison, CompareError> {
    let Gallery { vectors, pictures, unreadable, offered } = gallery;
    let [before, after] = vectors.as_slice() else {
        return Err(CompareError::Gallery(GalleryError::Panicked));
    };
    if pictures.len() < k + 2 {
        return Err(CompareError::TooFew { readable: pictures.len(), offered, k });
    }
    let changes = changes(before, after, k);
    let count = changes.len() as f64;
    let same = |change: &&PictureChange| {
        change.before.first().map(|near| near.row) == change.after.first().map(|near| near.row)
    };
    Ok(Comparison {
        old,
        new,
        k,
        mean_overlap: changes.iter().map(|change| change.overlap).sum::<f64>() / count,
        overlap_by_chance: k as f64 / (count - 1.0),
        same_nearest: changes.iter().filter(same).count() as f64 / count,
        pictures,
        unreadable,
        offered,
        changes,
    })
}

/// The mean overlap of two encoders' vectors of the same pictures.
pub(crate) fn mean_overlap(before: &Vectors, after: &Vectors, k: usize) -> f64 {
    let changes = changes(before, after, k);
    changes.iter().map(|change| change.overlap).sum::<f64>() / changes.len().max(1) as f64
}

fn changes(before: &Vectors, after: &Vectors, k: usize) -> Vec<PictureChange> {
    let pairs = nearest_others(before, k).into_iter().zip(nearest_others(after, k));
    let change = |(row, (before, after)): (usize, (Vec<Near>, Vec<Near>))| {
        let overlap = overlap(&before, &after);
        PictureChange { row: row as u32, overlap, before, after }
    };
    let mut changes: Vec<_> = pairs.enumerate().map(change).collect();
    changes.sort_by(|a, b| a.overlap.total_cmp(&b.overlap));
    changes
}

/// The share of rows that are in both lists, which are of one length.
fn overlap(before: &[Near], after: &[Near]) -> f64 {
    let rows = |list: &[Near]| list.iter().map(|near| near.row).collect::<std::collections::HashSet<_>>();
    let common = rows(before).intersection(&rows(after)).count();
    common as f64 / before.len().max(1) as f64
}

#[cfg(test)]
mod tests;
