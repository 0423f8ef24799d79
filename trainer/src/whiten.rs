//! Whitening: the last, linear step from representation to embedding, fitted without labels.
//!
//! Representations of a ReLU network share a large common part and spread along few directions, so
//! that all cosines are close to 1 and those few directions decide them. Taking the mean away and
//! scaling every direction to the same variance, both measured on the pictures trained on, lets all
//! directions count: Jégou and Chum, "Negative evidences and co-occurences in image retrieval: the
//! benefit of PCA and whitening", ECCV 2012. Any whitening matrix gives the same cosines, as all
//! differ by a rotation; the inverse of the covariance's Cholesky factor is the cheapest.
//!
//! Of long representations only the leading directions of the covariance are kept: what is left out varies least, and
//! few pictures cannot tell more directions than there are pictures.

use latentd_model::{Embedding, EmbeddingError};

use crate::nn::weights::{WeightTensor, Weights};
use crate::subspace::{leading, project};

/// Added to the variance of every direction, as a share of the mean variance: directions that the
/// pictures hardly use are not blown up to noise.
const SHRINKAGE: f64 = 0.01;
const MEAN: &str = "whiten.mean";
const MATRIX: &str = "whiten.matrix";

/// `z = (x − mean) · matrix` for L2-normalised representations x, of as many dimensions or fewer.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    /// `[dim]`.
    pub mean: Vec<f32>,
    /// `[dim, output_dim]`, row-major.
    pub matrix: Vec<f32>,
}

/// Representations that cannot be whitened.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum WhitenError {
    /// Too few to measure a covariance on.
    #[error("whitening to {dim} dimensions needs at least {} pictures, there are {pictures}: name a larger folder, keep fewer dimensions, or switch whitening off", 2 * .dim)]
    TooFew {
        /// Dimensions asked for.
        dim: usize,
        /// Pictures given.
        pictures: usize,
    },
    /// No or more dimensions than there are.
    #[error("{dims} dimensions cannot be kept of a representation of {dim}")]
    Dims {
        /// Dimensions asked for.
        dims: usize,
        /// Dimensions of a representation.
        dim: usize,
    },
    /// All the same.
    #[error("the representations are all the same: the encoder has collapsed")]
    Collapsed,
}

impl Whitening {
    /// Measures mean and covariance on representations, and keeps all their dimensions.
    pub fn fit(representations: &[Embedding]) -> Result<Self, WhitenError> {
        Self::fit_leading(representations, representations.first().map_or(0, Embedding::dim))
    }

    /// The same, keeping the `dims` directions along which representations vary most.
    pub fn fit_leading(representations: &[Embedding], dims: usize) -> Result<Self, WhitenError> {
        let dim = representations.first().map_or(0, Embedding::dim);
        if representations.len() < 2 * dims.max(1) {
            return Err(WhitenError::TooFew { dim: dims, pictures: representations.len() });
        }
        if dims == 0 || dims > dim {
            return Err(WhitenError::Dims { dims, dim });
        }
        let count = representations.len() as f64;
        let mut mean = vec![0f64; dim];
        for x in representations {
            mean.iter_mut().zip(x.as_slice()).for_each(|(m, x)| *m += f64::from(*x) / count);
        }
        let mut covariance = covariance(representations, &mean);
        let trace: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
        if trace <= 1e-9 {
            return Err(WhitenError::Collapsed);
        }
        (0..dim).for_each(|i| covariance[i * dim + i] += SHRINKAGE * trace / dim as f64);
        let matrix = if dims == dim {
            transposed(&inverse_cholesky(covariance, dim).ok_or(WhitenError::Collapsed)?, dim)
        } else {
            // Whitening what the leading directions hold: of equal cosines for every basis of them.
            let basis = leading(&covariance, dim, dims).ok_or(WhitenError::Collapsed)?;
            let inner = inverse_cholesky(project(&covariance, &basis, dim), dims);
            multiply(&basis, &transposed(&inner.ok_or(WhitenError::Collapsed)?, dims), dims)
        };
        let narrow = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect();
        Ok(Self { mean: narrow(mean), matrix: narrow(matrix) })
    }

    /// Dimensions of a whitened embedding.
    pub fn output_dim(&self) -> usize {
        self.matrix.len() / self.mean.len()
    }

    /// The whitened embedding of a representation.
    pub fn apply(&self, representation: &Embedding) -> Result<Embedding, EmbeddingError> {
        let dims = self.output_dim();
        let mut z = vec![0f32; dims];
        for ((x, mean), row) in
            representation.as_slice().iter().zip(&self.mean).zip(self.matrix.chunks_exact(dims))
        {
            z.iter_mut().zip(row).for_each(|(z, w)| *z += (x - mean) * w);
        }
        Embedding::from_unnormalised(z)
    }

    /// Adds it to an encoder's weights, as the exporter reads it.
    pub fn save(&self, into: &mut Weights) {
        let (dim, dims) = (self.mean.len(), self.output_dim());
        into.0.insert(MEAN.into(), WeightTensor { shape: vec![dim], data: self.mean.clone() });
        into.0.insert(MATRIX.into(), WeightTensor { shape: vec![dim, dims], data: self.matrix.clone() });
    }

    /// The whitening among an encoder's weights, if there is one.
    pub fn of(weights: &Weights, dim: usize) -> Option<Self> {
        let mean = weights.get(MEAN, &[dim]).ok()?.data.clone();
        let dims = *weights.0.get(MATRIX)?.shape.last()?;
        let matrix = weights.get(MATRIX, &[dim, dims]).ok()?.data.clone();
        Some(Self { mean, matrix })
    }
}

/// Covariance of rows about their mean.
fn covariance(rows: &[Embedding], mean: &[f64]) -> Vec<f64> {
    use rayon::prelude::*;
    let dim = mean.len();
    let mut all = vec![0f64; dim * dim];
    all.par_chunks_mut(dim).enumerate().for_each(|(i, out)| {
        for x in rows {
            let x = x.as_slice();
            let a = f64::from(x[i]) - mean[i];
            for ((o, x), m) in out[..=i].iter_mut().zip(x).zip(mean) {
                *o += a * (f64::from(*x) - m);
            }
        }
        out[..=i].iter_mut().for_each(|o| *o /= rows.len() as f64);
    });
    // The lower half is the upper one's mirror.
    for i in 0..dim {
        for j in 0..i {
            all[j * dim + i] = all[i * dim + j];
        }
    }
    all
}

/// The transpose of a square matrix: row vectors are multiplied from the right.
fn transposed(a: &[f64], n: usize) -> Vec<f64> {
    (0..n * n).map(|i| a[i % n * n + i / n]).collect()
}

/// `a · b` for `b` `[n, n]`.
fn multiply(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0f64; a.len()];
    for (out, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(n)) {
        for (a, b) in a.iter().zip(b.chunks_exact(n)) {
            out.iter_mut().zip(b).for_each(|(o, b)| *o += a * b);
        }
    }
    out
}

/// L⁻¹ for a = L·Lᵀ, both lower triangular; `None` when a is not positive definite.
pub(crate) fn inverse_cholesky(mut a: Vec<f64>, dim: usize) -> Option<Vec<f64>> {
    for j in 0..dim {
        let (before, rest) = a.split_at_mut((j + 1) * dim);
        let row = &mut before[j * dim..];
        let pivot = row[j] - row[..j].iter().map(|l| l * l).sum::<f64>();
        if pivot <= 0.0 {
            return None;
        }
        row[j] = pivot.sqrt();
        for below in rest.chunks_exact_mut(dim) {
            let dot: f64 = below[..j].iter().zip(&row[..j]).map(|(a, b)| a * b).sum();
            below[j] = (below[j] - dot) / row[j];
        }
    }
    let mut inverse = vec![0f64; dim * dim];
    for i in 0..dim {
        let (done, now) = inverse.split_at_mut(i * dim);
        let now = &mut now[..dim];
        now[i] = 1.0;
        for k in 0..i {
            let l = a[i * dim + k];
            now[..=k].iter_mut().zip(&done[k * dim..]).for_each(|(n, d)| *n -= l * d);
        }
        now[..=i].iter_mut().for_each(|n| *n /= a[i * dim + i]);
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Points spread far along one direction and little along the others, away from the origin.
    fn cigar() -> Vec<Embedding> {
        let mut state = 1u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let point = |a: f32, b: f32, c: f32| {
            Embedding::from_unnormalised(vec![1.0 + 0.5 * a, 1.0 - 0.4 * a + 0.02 * b, 1.0 + 0.05 * c])
        };
        (0..4000).map(|_| point(draw(), draw(), draw()).unwrap()).collect()
    }

    #[test]
    fn whitened_points_have_no_preferred_direction() {
        let points = cigar();
        let whitening = Whitening::fit(&points).unwrap();
        let dim = 3;
        let z: Vec<Vec<f32>> = points
            .iter()
            .map(|x| {
                let centred: Vec<f32> =
                    x.as_slice().iter().zip(&whitening.mean).map(|(x, m)| x - m).collect();
                (0..dim).map(|j| (0..dim).map(|i| centred[i] * whitening.matrix[i * dim + j]).sum()).collect()
            })
            .collect();
        for i in 0..dim {
            let mean = z.iter().map(|z| f64::from(z[i])).sum::<f64>() / z.len() as f64;
            assert!(mean.abs() < 1e-3, "{mean}");
            for j in 0..i {
                let cross = z.iter().map(|z| f64::from(z[i] * z[j])).sum::<f64>() / z.len() as f64;
                assert!(cross.abs() < 0.25, "{i} {j} {cross}");
            }
        }
        let spread = |v: Vec<Embedding>| {
            let all: Vec<f32> = v.iter().flat_map(|e| e.as_slice().to_vec()).collect();
            crate::method::byol::representation_std(&all, v.len())
        };
        let whitened = points.iter().map(|x| whitening.apply(x).unwrap()).collect();
        assert!(spread(points.clone()) < 0.5 && spread(whitened) > 0.9);
    }

    #[test]
    fn the_leading_directions_are_those_of_the_spread() {
        let points = cigar();
        let whitening = Whitening::fit_leading(&points, 2).unwrap();
        assert_eq!((whitening.output_dim(), whitening.matrix.len()), (2, 6));
        let z: Vec<[f64; 2]> = points
            .iter()
            .map(|x| {
                let of = |j: usize| {
                    let term = |(i, x): (usize, &f32)| (x - whitening.mean[i]) * whitening.matrix[i * 2 + j];
                    x.as_slice().iter().enumerate().map(term).sum::<f32>().into()
                };
                [of(0), of(1)]
            })
            .collect();
        let moment = |i: usize, j: usize| z.iter().map(|z| z[i] * z[j]).sum::<f64>() / z.len() as f64;
        // The two long axes of the cigar, each with nearly all of its variance, and no correlation.
        assert!(moment(0, 0) > 0.7 && moment(0, 0) < 1.01, "{}", moment(0, 0));
        assert!(moment(1, 1) > 0.4 && moment(0, 1).abs() < 0.02, "{} {}", moment(1, 1), moment(0, 1));
        assert_eq!(whitening.apply(&points[0]).unwrap().dim(), 2);
        assert!(matches!(Whitening::fit_leading(&points, 4), Err(WhitenError::Dims { dims: 4, dim: 3 })));
        assert!(matches!(Whitening::fit_leading(&points, 0), Err(WhitenError::Dims { .. })));
    }

    #[test]
    fn the_inverse_factor_inverts() {
        let a = vec![4.0, 2.0, 0.6, 2.0, 5.0, 1.0, 0.6, 1.0, 3.0];
        let l = inverse_cholesky(a.clone(), 3).unwrap();
        for i in 0..3 {
            for j in 0..3 {
                let at = |m: &[f64], r: usize, c: usize| m[r * 3 + c];
                let value: f64 = (0..3)
                    .flat_map(|k| (0..3).map(move |n| (k, n)))
                    .map(|(k, n)| at(&l, i, k) * at(&a, k, n) * at(&l, j, n))
                    .sum();
                assert!((value - f64::from(u8::from(i == j))).abs() < 1e-9);
            }
        }
        assert!(inverse_cholesky(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }

    #[test]
    fn too_few_or_collapsed_representations_are_refused() {
        assert!(matches!(Whitening::fit(&cigar()[..5]), Err(WhitenError::TooFew { dim: 3, pictures: 5 })));
        let same = vec![cigar()[0].clone(); 100];
        assert_eq!(Whitening::fit(&same), Err(WhitenError::Collapsed));
    }

    #[test]
    fn it_travels_with_the_weights() {
        let whitening = Whitening::fit(&cigar()).unwrap();
        let mut weights = Weights::default();
        whitening.save(&mut weights);
        assert_eq!(Whitening::of(&weights, 3), Some(whitening));
        let narrow = Whitening::fit_leading(&cigar(), 2).unwrap();
        narrow.save(&mut weights);
        assert_eq!(Whitening::of(&weights, 3), Some(narrow));
        assert_eq!(Whitening::of(&Weights::default(), 3), None);
        assert_eq!(weights.parameters(), 0, "fitted, not trained");
    }
}
