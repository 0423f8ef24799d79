//! The reference: what an encoder's embeddings look like together on pictures like those it was trained on, and how far
//! from that a window of such pictures is by chance. Kept in the artefact, so that a server can tell drift from chance.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::distribution::{Distribution, DistributionError};
use crate::gallery::{GalleryError, Subject, embed_pictures, evenly_spaced};

/// The file of an artefact that holds the distribution.
pub const REFERENCE_FILE: &str = "reference.safetensors";

/// Pictures that it is measured on, at most.
pub const MAX_PICTURES: usize = 20_000;

/// One picture in so many is held out: not in the distribution, but in the windows that are compared with it.
const HELD_OUT: usize = 5;

/// Embeddings of a window, at most.
const WINDOW: usize = 512;

/// Fewest that make one.
const MIN_WINDOW: usize = 64;

/// Fewest pictures that a reference is measured on.
const LEAST: usize = 2 * MIN_WINDOW * HELD_OUT;

/// Most memory for a window, which long vectors reach first.
const MAX_BYTES: usize = 8 << 20;

/// Where random choices begin, the same each time.
const SEED: u64 = 0x006c_6174_656e_7464;

/// Windows that are drawn of the pictures held out.
const DRAWS: usize = 32;

/// Embeddings of `dim` numbers that a server looks at together, where nothing says otherwise.
#[must_use]
pub fn window(dim: usize) -> usize {
    (MAX_BYTES / (4 * dim.max(1))).clamp(16, WINDOW)
}

/// What a manifest says of the reference; the distribution itself is in [`REFERENCE_FILE`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Pictures in the distribution.
    pub pictures: u64,
    /// Pictures held out of it, of which windows were drawn.
    pub held_out: u64,
    /// Embeddings of a window. Distances of windows of other sizes cannot be compared.
    pub window: usize,
    /// Mean squared Fréchet distance of windows of held-out pictures from the distribution.
    pub distance_mean: f64,
    /// The distance that one window in twenty of them exceeds.
    pub distance_p95: f64,
    /// The command that measured it.
    pub command: String,
}

impl Reference {
    /// Largest window that is taken.
    const MAX_WINDOW: usize = 4096;

    /// Whether the fields are within their bounds.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn validate(&self) -> Result<(), String> {
        if !(2..=Self::MAX_WINDOW).contains(&self.window) {
            return Err(format!(
                "reference.window is {}, but must be 2 to {}",
                self.window,
                Self::MAX_WINDOW
            ));
        }
        for (name, value) in [("mean", self.distance_mean), ("p95", self.distance_p95)] {
            // Nothing on the sphere is further than 2 away, plus what both spread.
            if !(value > 0.0 && value <= 8.0) {
                return Err(format!(
                    "reference.distance_{name} is {value}, but must be above 0 and at most 8"
                ));
            }
        }
        Ok(())
    }
}

/// A reference with its distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What the manifest says.
    pub reference: Reference,
    /// What the file holds.
    pub distribution: Distribution,
}

/// Why there is no reference.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// Too few pictures to hold windows out of.
    #[error("a reference needs at least {LEAST} pictures that can be read, there are {0}")]
    TooFew(usize),
    /// Too few pictures to compare with it.
    #[error("distances from this reference are of {window} pictures, there are {pictures}")]
    NoWindow {
        /// Embeddings of a window.
        window: usize,
        /// Pictures that could be read.
        pictures: usize,
    },
    /// All alike.
    #[error("the embeddings are all the same: the encoder has collapsed, or the pictures are all one")]
    Collapsed,
    /// The vectors' distribution.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// The pictures could not be embedded.
    #[error(transparent)]
    Gallery(#[from] GalleryError),
}

/// Measures an encoder on pictures, of which an evenly spaced sample of [`MAX_PICTURES`] is taken. `progress` is told how
/// many are done. The same for the same pictures in the same order.
///
/// # Errors
/// See [`ReferenceError`].
pub fn measure(
    subject: Subject<'_>,
    pictures: &[PathBuf],
    command: &str,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Measured, ReferenceError> {
    let chosen = evenly_spaced(pictures, MAX_PICTURES);
    let gallery = embed_pictures(&[subject], &chosen, progress)?;
    let embedded = gallery.vectors.first().map_or(&[][..], |vectors| vectors.as_slice());
    of_embeddings(embedded, subject.dim(), command)
}

/// The same of embeddings, all in one slice.
///
/// # Errors
/// As [`measure`].
pub fn of_embeddings(embeddings: &[f32], dim: usize, command: &str) -> Result<Measured, ReferenceError> {
    let rows = embeddings.len() / dim.max(1);
    let (mut kept, mut held_out) = (Vec::with_capacity(embeddings.len()), Vec::new());
    // At random: an order of pictures that repeats itself would hold out all of one kind.
    let mut order: Vec<usize> = (0..rows).collect();
    let mut out = vec![false; rows];
    draw(&mut order, rows / HELD_OUT, &mut { SEED }).iter().for_each(|&index| out[index] = true);
    for (row, out) in embeddings.chunks_exact(dim.max(1)).zip(out) {
        if out { held_out.push(row) } else { kept.extend_from_slice(row) }
    }
    // Half of them at the most, so that windows differ.
    let window = window(dim).min(held_out.len() / 2);
    if window < MIN_WINDOW {
        return Err(ReferenceError::TooFew(rows));
    }
    let distribution = Distribution::of(&kept, dim)?;
    let mut distances: Vec<f64> =
        windows(&held_out, window).into_iter().filter_map(|window| distribution.distance(&window)).collect();
    distances.sort_by(f64::total_cmp);
    let mean = distances.iter().sum::<f64>() / distances.len().max(1) as f64;
    let p95 = distances.get(distances.len() * 95 / 100).copied().unwrap_or(mean);
    let reference = Reference {
        pictures: (kept.len() / dim) as u64,
        held_out: held_out.len() as u64,
        window,
        distance_mean: mean,
        distance_p95: p95,
        command: command.to_owned(),
    };
    reference.validate().map_err(|_| ReferenceError::Collapsed)?;
    Ok(Measured { reference, distribution })
}

/// How far pictures are from a reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// Pictures that windows were drawn of.
    pub pictures: usize,
    /// Mean squared Fréchet distance of windows of them.
    pub distance: f64,
}

/// How far pictures are from a reference, in windows drawn of an evenly spaced sample of [`MAX_PICTURES`] of them.
///
/// # Errors
/// Fewer pictures than a window has, or such as cannot be embedded.
pub fn drift(
    subject: Subject<'_>,
    known: &Measured,
    pictures: &[PathBuf],
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Drift, ReferenceError> {
    let chosen = evenly_spaced(pictures, MAX_PICTURES);
    let gallery = embed_pictures(&[subject], &chosen, progress)?;
    let embedded = gallery.vectors.first().map_or(&[][..], |vectors| vectors.as_slice());
    let rows: Vec<&[f32]> = embedded.chunks_exact(subject.dim()).collect();
    let window = known.reference.window;
    if rows.len() < window {
        return Err(ReferenceError::NoWindow { window, pictures: rows.len() });
    }
    let distances: Vec<f64> =
        windows(&rows, window).iter().filter_map(|window| known.distribution.distance(window)).collect();
    let distance = distances.iter().sum::<f64>() / distances.len().max(1) as f64;
    Ok(Drift { pictures: rows.len(), distance })
}

/// Random windows, each without a picture twice.
fn windows(held_out: &[&[f32]], window: usize) -> Vec<Vec<f32>> {
    let mut state = !SEED;
    let mut order: Vec<usize> = (0..held_out.len()).collect();
    let mut drawn = || {
        let chosen = draw(&mut order, window, &mut state);
        chosen.iter().flat_map(|&index| held_out[index].iter().copied()).collect()
    };
    (0..DRAWS).map(|_| drawn()).collect()
}

/// `count` of them at random, each once: the first places of a shuffle (Fisher & Yates).
fn draw<'a>(order: &'a mut [usize], count: usize, state: &mut u64) -> &'a [usize] {
    for place in 0..count {
        let other = place + (split_mix(state) % (order.len() - place) as u64) as usize;
        order.swap(place, other);
    }
    &order[..count]
}

/// Steele et al., "Fast splittable pseudorandom number generators", 2014.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const DIM: usize = 24;

    /// Normalised vectors around one direction, which the others vary about by `spread`.
    fn around(rows: usize, axis: usize, spread: f32, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut all = Vec::with_capacity(rows * DIM);
        for _ in 0..rows {
            let mut row: Vec<f32> = (0..DIM).map(|_| spread * (rng.random::<f32>() - 0.5)).collect();
            row[axis] += 1.0;
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            all.extend(row.iter().map(|v| v / norm));
        }
        all
    }

    #[test]
    fn windows_of_the_same_kind_are_as_near_as_it_says_and_others_are_not() {
        let measured = of_embeddings(&around(6000, 3, 1.0, 1), DIM, "test").unwrap();
        let Reference { pictures, held_out, window, distance_mean, distance_p95, .. } = measured.reference;
        assert_eq!((pictures, held_out, window), (4800, 1200, 512));
        assert!(distance_p95 >= distance_mean && distance_p95 < 1.5 * distance_mean);
        let ratio = |vectors: &[f32]| measured.distribution.distance(vectors).unwrap() / distance_mean;
        let (same, turned) = (ratio(&around(512, 3, 1.0, 2)), ratio(&around(512, 4, 1.0, 2)));
        let (narrower, fewer) = (ratio(&around(512, 3, 0.5, 2)), ratio(&around(64, 3, 1.0, 2)));
        assert!((0.7..1.4).contains(&same), "{same}");
        assert!(turned > 30.0 && narrower > 5.0, "{turned} {narrower}");
        // Why windows have to be of one size.
        assert!(fewer > 3.0, "{fewer}");
    }

    #[test]
    fn few_pictures_make_small_windows_and_fewer_none() {
        let measure = |rows| of_embeddings(&around(rows, 0, 1.0, 1), DIM, "test");
        assert_eq!(measure(1000).unwrap().reference.window, 100);
        assert_eq!(measure(1000).unwrap(), measure(1000).unwrap());
        assert!(matches!(measure(639), Err(ReferenceError::TooFew(639))));
        let alike = [1.0f32, 0.0].repeat(2000);
        assert!(matches!(of_embeddings(&alike, 2, "test"), Err(ReferenceError::Collapsed)));
    }

    #[test]
    fn an_order_that_repeats_itself_does_not_decide_who_is_held_out() {
        let kinds: Vec<_> = (0..5).map(|axis| around(200, axis, 0.5, 1)).collect();
        let all: Vec<f32> = (0..200)
            .flat_map(|i| kinds.iter().flat_map(move |kind| kind[i * DIM..(i + 1) * DIM].to_vec()))
            .collect();
        let measured = of_embeddings(&all, DIM, "test").unwrap();
        // Were all those held out of one kind, they would be as far from the rest as these.
        let one = measured.distribution.distance(&kinds[4][..100 * DIM]).unwrap();
        assert!(one > 5.0 * measured.reference.distance_mean, "{one} {:?}", measured.reference);
    }

    #[test]
    fn memory_of_a_window_is_bounded_for_long_vectors() {
        assert_eq!((window(128), window(65_536), window(0)), (512, 32, 512));
    }
}
