//! Spread: how much of its space a representation uses. Collapse shows here without any label.

use serde::{Deserialize, Serialize};

use crate::eigen::symmetric_eigenvalues;

/// Spread of a set of L2-normalised vectors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean over dimensions of the standard deviation, times √dim: 1 when vectors spread evenly over the sphere, 0 when
    /// all are one (Chen & He, "Exploring Simple Siamese Representation Learning", 2020, section 4.1).
    pub std: f64,
    /// exp of the entropy of the normalised singular values, uncentred: between 1 and dim (Garrido et al.,
    /// "RankMe", 2023).
    pub effective_rank: f64,
}

/// The effective rank of vectors whose Gram matrix is `gram`, `[side, side]` row-major: of the products of all pairs of
/// vectors or of all pairs of dimensions, which have the same eigenvalues but for zeros. Overwrites it.
#[must_use]
pub fn effective_rank(gram: &mut [f64], side: usize) -> f64 {
    const EPSILON: f64 = 1e-7;
    let values = symmetric_eigenvalues(gram, side);
    let singular: Vec<f64> = values.into_iter().map(|value| value.max(0.0).sqrt()).collect();
    let total: f64 = singular.iter().sum();
    if total <= 0.0 {
        return 0.0;
    }
    // exp(−Σ p ln p) with p the singular values as shares of their sum, as RankMe smooths them.
    let share = |value: &f64| value / total + EPSILON;
    let entropy: f64 = singular.iter().map(share).map(|p| -p * p.ln()).sum();
    entropy.exp()
}

/// The products of all pairs of vectors, or of all pairs of dimensions, whichever are fewer: the lower half of a
/// `[side, side]` matrix, and its side. Both have the same eigenvalues but for zeros.
#[must_use]
pub fn gram(vectors: &[f32], dim: usize) -> (Vec<f64>, usize) {
    let rows = vectors.len().checked_div(dim).unwrap_or(0);
    let side = rows.min(dim);
    let mut gram = vec![0.0; side * side];
    if rows < dim {
        for (i, row) in vectors.chunks_exact(dim).enumerate() {
            for (j, other) in vectors.chunks_exact(dim).take(i + 1).enumerate() {
                gram[i * side + j] = row.iter().zip(other).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            }
        }
    } else {
        for row in vectors.chunks_exact(dim) {
            for (i, &x) in row.iter().enumerate() {
                let products = gram[i * side..=i * side + i].iter_mut().zip(row);
                products.for_each(|(sum, &y)| *sum += f64::from(x) * f64::from(y));
            }
        }
    }
    (gram, side)
}

/// The spread of few vectors: all in one slice, each of `dim` numbers. `None` where there is none.
#[must_use]
pub fn spread(vectors: &[f32], dim: usize) -> Option<Spread> {
    let rows = vectors.len().checked_div(dim).filter(|&rows| rows > 0)?;
    let count = rows as f64;
    let mut std = 0.0;
    for column in 0..dim {
        let values = || vectors[column..].iter().step_by(dim).map(|&value| f64::from(value));
        let mean = values().sum::<f64>() / count;
        std += (values().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
    }
    let (mut gram, side) = gram(vectors, dim);
    Some(Spread { std: std / (dim as f64).sqrt(), effective_rank: effective_rank(&mut gram, side) })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Points of a sphere in the first `used` of `dim` dimensions.
    fn sphere(rows: usize, dim: usize, used: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut all = Vec::with_capacity(rows * dim);
        for _ in 0..rows {
            let mut bell = || (0..8).map(|_| rng.random::<f32>()).sum::<f32>() - 4.0;
            let mut row: Vec<f32> = (0..dim).map(|d| if d < used { bell() } else { 0.0 }).collect();
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm);
            all.extend(row);
        }
        all
    }

    #[test]
    fn an_even_sphere_is_full_and_a_flat_one_is_not() {
        let full = spread(&sphere(4000, 32, 32), 32).unwrap();
        assert!((full.std - 1.0).abs() < 0.01 && (full.effective_rank - 32.0).abs() < 0.3, "{full:?}");
        let flat = spread(&sphere(4000, 64, 8), 64).unwrap();
        assert!((flat.effective_rank - 8.0).abs() < 0.2, "{flat:?}");
    }

    #[test]
    fn fewer_vectors_than_dimensions_have_the_rank_of_either_product() {
        let few = sphere(40, 64, 64);
        let padded = [few.as_slice(), &[0.0; 64 * 60]].concat();
        let rank = |vectors: &[f32]| spread(vectors, 64).unwrap().effective_rank;
        assert!((rank(&few) - rank(&padded)).abs() < 0.01, "{} {}", rank(&few), rank(&padded));
    }

    #[test]
    fn one_vector_everywhere_is_collapse() {
        let found = spread(&[0.6, 0.8, 0.0, 0.0].repeat(500), 4).unwrap();
        assert!(found.std < 1e-3 && (found.effective_rank - 1.0).abs() < 1e-4, "{found:?}");
        assert_eq!((spread(&[], 4), spread(&[], 0)), (None, None));
    }
}
