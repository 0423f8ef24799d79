//! A distribution of embeddings, as a Gaussian: their mean and covariance, and how far others are from it.
//!
//! The distance is Fréchet's between two Gaussians (Dowson & Landau, "The Fréchet distance between multivariate normal
//! distributions", 1982), squared, as image generation is judged by since Heusel et al., "GANs trained by a two
//! time-scale update rule converge to a local Nash equilibrium", 2017 (FID):
//!
//! `d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½`
//!
//! A distance of single vectors (Mahalanobis') would say nothing here: whitened and normalised embeddings are all about
//! as far from their mean as any other point of the sphere.

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::eigen::symmetric_eigenvalues;
use crate::spread::gram;

/// Longest embeddings whose covariance is kept: 8 MiB of it.
pub const MAX_DIM: usize = 2048;

/// Variance of a direction, as a share of the mean variance, below which it counts as none.
const NO_VARIANCE: f64 = 1e-9;

const MEAN: &str = "mean";
const FACTOR: &str = "covariance.cholesky";

/// Mean and covariance of embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// `[dim]`.
    mean: Vec<f32>,
    /// The covariance's Cholesky factor `L`, `Σ = L·Lᵀ`: row `i` has `i + 1` numbers, one row after the other.
    factor: Vec<f32>,
}

/// Why bytes or vectors are no distribution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DistributionError {
    /// Longer vectors than are measured.
    #[error("embeddings of {0} numbers are too long for a covariance: at most {MAX_DIM}")]
    Dim(usize),
    /// Fewer than two vectors.
    #[error("fewer than two vectors have no covariance")]
    TooFew,
    /// A file that is none, or of another encoder.
    #[error("no distribution of vectors of {dim} numbers: {reason}")]
    File {
        /// Numbers of a vector.
        dim: usize,
        /// What is wrong.
        reason: String,
    },
}

impl Distribution {
    /// That of vectors of `dim` numbers, all in one slice, on all cores.
    ///
    /// # Errors
    /// Too few or too long vectors.
    pub fn of(vectors: &[f32], dim: usize) -> Result<Self, DistributionError> {
        if dim == 0 || dim > MAX_DIM {
            return Err(DistributionError::Dim(dim));
        }
        if vectors.len() < 2 * dim {
            return Err(DistributionError::TooFew);
        }
        let mean = mean(vectors, dim);
        let factor = cholesky(covariance(vectors, &mean), dim);
        let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Ok(Self { mean: narrow(mean), factor: narrow(factor) })
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    /// The squared Fréchet distance to the distribution of these vectors. `None` of fewer than two, or of others than of
    /// [`Self::dim`] numbers.
    ///
    /// It grows as vectors get fewer, whatever they are: compare only with that of as many.
    #[must_use]
    pub fn distance(&self, vectors: &[f32]) -> Option<f64> {
        let dim = self.dim();
        let rows = vectors.len().checked_div(dim).filter(|&rows| rows >= 2 && rows * dim == vectors.len())?;
        let theirs = mean(vectors, dim);
        let apart: f64 = self.mean.iter().zip(&theirs).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
        // With X their centred rows and L this factor, tr (Σ₁ Σ₂)^½ is the sum of the singular values of X·L/√(n − 1):
        // Σ₁ Σ₂ has the eigenvalues of Lᵀ Σ₂ L.
        let share = 1.0 / ((rows - 1) as f64).sqrt();
        let mut turned = vec![0f32; vectors.len()];
        let mut spread = 0.0;
        for (row, out) in vectors.chunks_exact(dim).zip(turned.chunks_exact_mut(dim)) {
            let mut rest = self.factor.as_slice();
            for (j, (&value, mean)) in row.iter().zip(&theirs).enumerate() {
                let value = (f64::from(value) - mean) * share;
                spread += value * value;
                let (factor, next) = rest.split_at(j + 1);
                out.iter_mut().zip(factor).for_each(|(out, &l)| *out += value as f32 * l);
                rest = next;
            }
        }
        let (mut gram, side) = gram(&turned, dim);
        let common: f64 = symmetric_eigenvalues(&mut gram, side).into_iter().map(|v| v.max(0.0).sqrt()).sum();
        let own: f64 = self.factor.iter().map(|&l| f64::from(l).powi(2)).sum();
        Some((apart + own + spread - 2.0 * common).max(0.0))
    }

    /// As a safetensors file.
    ///
    /// # Errors
    /// Never in practice: only for shapes that do not fit their numbers.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DistributionError> {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let (mean, factor) = (bytes(&self.mean), bytes(&self.factor));
        let view = |data, length| TensorView::new(Dtype::F32, vec![length], data);
        let write = || {
            let tensors = BTreeMap::from([
                (MEAN, view(&mean, self.mean.len())?),
                (FACTOR, view(&factor, self.factor.len())?),
            ]);
            safetensors::serialize(tensors, None)
        };
        write().map_err(|error| DistributionError::File { dim: self.dim(), reason: error.to_string() })
    }

    /// Reads what [`Self::to_bytes`] wrote, of vectors of `dim` numbers.
    ///
    /// # Errors
    /// What else it is.
    pub fn parse(bytes: &[u8], dim: usize) -> Result<Self, DistributionError> {
        let wrong = |reason: String| DistributionError::File { dim, reason };
        if dim == 0 || dim > MAX_DIM {
            return Err(DistributionError::Dim(dim));
        }
        let file = SafeTensors::deserialize(bytes).map_err(|error| wrong(error.to_string()))?;
        let read = |name: &str, length: usize| {
            let tensor = file.tensor(name).map_err(|error| wrong(error.to_string()))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [length] {
                return Err(wrong(format!("{name} is {:?} {:?}", tensor.dtype(), tensor.shape())));
            }
            let numbers = tensor.data().chunks_exact(4).map(|four| {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(four);
                f32::from_le_bytes(bytes)
            });
            let numbers: Vec<f32> = numbers.collect();
            // Embeddings have norm 1, so no part of their mean or covariance's factor is above it.
            let within = numbers.iter().all(|number| number.abs() <= 2.0);
            if within { Ok(numbers) } else { Err(wrong(format!("{name} holds what no embeddings have"))) }
        };
        Ok(Self { mean: read(MEAN, dim)?, factor: read(FACTOR, dim * (dim + 1) / 2)? })
    }
}

fn mean(vectors: &[f32], dim: usize) -> Vec<f64> {
    let mut mean = vec![0f64; dim];
    for row in vectors.chunks_exact(dim) {
        mean.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let rows = (vectors.len() / dim) as f64;
    mean.iter_mut().for_each(|sum| *sum /= rows);
    mean
}

/// The lower half of the covariance, packed by rows. A row is one thread's, so the sums are those of any number of them.
fn covariance(vectors: &[f32], mean: &[f64]) -> Vec<f64> {
    let dim = mean.len();
    let mut packed = vec![0f64; dim * (dim + 1) / 2];
    let mut rows = Vec::with_capacity(dim);
    let mut rest = packed.as_mut_slice();
    for i in 0..dim {
        let (row, next) = rest.split_at_mut(i + 1);
        rows.push((i, row));
        rest = next;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(dim);
    let freedom = (vectors.len() / dim - 1) as f64;
    std::thread::scope(|scope| {
        // Row after row in turn, since later ones are longer.
        let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
        rows.into_iter().enumerate().for_each(|(n, row)| shares[n % threads].push(row));
        for share in shares {
            scope.spawn(move || {
                for (i, out) in share {
                    for x in vectors.chunks_exact(dim) {
                        let a = f64::from(x[i]) - mean[i];
                        for ((out, &x), mean) in out.iter_mut().zip(x).zip(mean) {
                            *out += a * (f64::from(x) - mean);
                        }
                    }
                    out.iter_mut().for_each(|sum| *sum /= freedom);
                }
            });
        }
    });
    packed
}

/// `L` with `a = L·Lᵀ` of a positive semidefinite matrix, both the lower half packed by rows. Directions without variance
/// get a column of zeros.
fn cholesky(mut a: Vec<f64>, dim: usize) -> Vec<f64> {
    let at = |i: usize| i * (i + 1) / 2;
    let trace: f64 = (0..dim).map(|i| a[at(i) + i]).sum();
    let least = NO_VARIANCE * trace / dim as f64;
    for i in 0..dim {
        let (before, rest) = a.split_at_mut(at(i));
        let row = &mut rest[..=i];
        for j in 0..i {
            let other = &before[at(j)..=at(j) + j];
            let dot: f64 = row[..j].iter().zip(other).map(|(x, y)| x * y).sum();
            row[j] = if other[j] > 0.0 { (row[j] - dot) / other[j] } else { 0.0 };
        }
        let left = row[i] - row[..i].iter().map(|l| l * l).sum::<f64>();
        row[i] = if left > least { left.sqrt() } else { 0.0 };
    }
    a
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Vectors whose numbers are about normal, each with its mean and standard deviation, not normalised.
    fn normal(rows: usize, shape: &[(f64, f64)], seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bell = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        (0..rows)
            .flat_map(|_| shape.iter().map(|(m, s)| (m + s * bell()) as f32).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn of_independent_directions_it_is_the_textbooks() {
        // Independent numbers: d² = Σ (μ₁ − μ₂)² + (σ₁ − σ₂)².
        let (one, two) = ([(0.0, 0.3), (0.1, 0.2), (0.0, 0.1)], [(0.2, 0.3), (0.1, 0.5), (-0.1, 0.1)]);
        let ours = Distribution::of(&normal(40_000, &one, 1), 3).unwrap();
        let found = ours.distance(&normal(40_000, &two, 2)).unwrap();
        assert!((found - (0.04 + 0.09 + 0.01)).abs() < 0.004, "{found}");
        // As few vectors as directions, through the other product.
        let wide: Vec<_> = (0..200).map(|i| (0.0, 0.02 + 0.0002 * f64::from(i))).collect();
        let ours = Distribution::of(&normal(4000, &wide, 3), 200).unwrap();
        let few = normal(150, &wide, 4);
        let mut twice = few.clone();
        twice.extend(&few);
        let (few, twice) = (ours.distance(&few).unwrap(), ours.distance(&twice).unwrap());
        // Twice the same vectors: the same mean, and a covariance that is 298/299 of it.
        assert!((few - twice).abs() < 0.02 * few, "{few} {twice}");
    }

    #[test]
    fn turning_both_changes_nothing() {
        // Correlated: a rotation of independent directions by 30 degrees.
        let turn = |vectors: Vec<f32>| -> Vec<f32> {
            let (s, c) = (0.5f32, 0.75f32.sqrt());
            vectors.chunks_exact(2).flat_map(|v| [c * v[0] - s * v[1], s * v[0] + c * v[1]]).collect()
        };
        let (one, two) =
            (normal(5000, &[(0.0, 0.4), (0.0, 0.1)], 5), normal(5000, &[(0.0, 0.1), (0.1, 0.1)], 6));
        let plain = Distribution::of(&one, 2).unwrap().distance(&two).unwrap();
        let turned = Distribution::of(&turn(one), 2).unwrap().distance(&turn(two)).unwrap();
        assert!((plain - turned).abs() < 1e-4 && (plain - 0.1).abs() < 0.01, "{plain} {turned}");
    }

    #[test]
    fn directions_without_variance_are_none_and_not_the_end() {
        let flat = normal(500, &[(0.5, 0.2), (0.5, 0.0), (0.0, 0.0)], 7);
        let ours = Distribution::of(&flat, 3).unwrap();
        assert!(ours.distance(&flat).unwrap() < 1e-5);
        let away: Vec<f32> =
            flat.iter().enumerate().map(|(i, v)| if i % 3 == 2 { 0.3 } else { *v }).collect();
        assert!((ours.distance(&away).unwrap() - 0.09).abs() < 1e-4);
        assert_eq!(ours.distance(&flat[..3]), None);
        assert_eq!(ours.distance(&flat[..5]), None);
    }

    #[test]
    fn bytes_and_back() {
        let ours = Distribution::of(&normal(50, &[(0.0, 0.1); 7], 8), 7).unwrap();
        let bytes = ours.to_bytes().unwrap();
        assert_eq!(Distribution::parse(&bytes, 7).unwrap(), ours);
        assert!(Distribution::parse(&bytes, 8).unwrap_err().to_string().contains("mean is F32 [7]"));
        for cut in 0..bytes.len() {
            assert!(Distribution::parse(&bytes[..cut], 7).is_err());
        }
        let mut wild = ours.clone();
        wild.factor[0] = f32::NAN;
        assert!(Distribution::parse(&wild.to_bytes().unwrap(), 7).is_err());
        assert_eq!(Distribution::of(&[0.0; 3000], 3000), Err(DistributionError::Dim(3000)));
        assert_eq!(Distribution::of(&[0.0; 3], 3), Err(DistributionError::TooFew));
    }
}
