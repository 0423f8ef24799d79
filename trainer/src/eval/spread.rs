//! How much of its space a representation uses: collapse shows here before any label is needed.

use candle_core::{DType, Device, Tensor};

use super::eigen::symmetric_eigenvalues;
use super::error::EvalError;
use super::features::Features;

/// Spread of a set of L2-normalised vectors.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Spread {
    /// Mean over dimensions of the standard deviation, times √dim: 1 when vectors spread evenly over the sphere, 0 when
    /// all are one (Chen & He, "Exploring Simple Siamese Representation Learning", 2020, section 4.1).
    pub std: f64,
    /// exp of the entropy of the normalised singular values, uncentred: between 1 and dim (Garrido et al.,
    /// "RankMe", 2023).
    pub effective_rank: f64,
}

/// Measures `features`, whose rows are L2-normalised, on at most `limit` evenly spaced rows (RankMe uses 25,600).
///
/// # Errors
/// When there is no row.
pub fn spread(features: &Features, limit: usize) -> Result<Spread, EvalError> {
    if features.rows() == 0 {
        return Err(EvalError::Shape("no vectors to measure the spread of".to_owned()));
    }
    let step = features.rows().div_ceil(limit.max(1));
    let rows: Vec<usize> = (0..features.rows()).step_by(step).collect();
    let chosen = features.select(&rows);
    let (_, deviations) = chosen.moments();
    let dim = chosen.dim();
    let std = deviations.iter().sum::<f64>() / dim as f64 * (dim as f64).sqrt();
    let matrix =
        Tensor::from_slice(chosen.as_slice(), (chosen.rows(), dim), &Device::Cpu)?.to_dtype(DType::F64)?;
    // Both products have the same eigenvalues but for zeros: the smaller one is the cheaper.
    let (gram, side) = if chosen.rows() < dim {
        (matrix.matmul(&matrix.t()?)?, chosen.rows())
    } else {
        (matrix.t()?.matmul(&matrix)?, dim)
    };
    let mut gram: Vec<f64> = gram.flatten_all()?.to_vec1()?;
    let singular: Vec<f64> =
        symmetric_eigenvalues(&mut gram, side).into_iter().map(|v| v.max(0.0).sqrt()).collect();
    Ok(Spread { std, effective_rank: entropy_rank(&singular) })
}

/// exp(−Σ p ln p) with `p` the singular values as shares of their sum, as RankMe smooths them.
fn entropy_rank(singular: &[f64]) -> f64 {
    const EPSILON: f64 = 1e-7;
    let total: f64 = singular.iter().sum();
    if total <= 0.0 {
        return 0.0;
    }
    let entropy: f64 = singular
        .iter()
        .map(|s| {
            let p = s / total + EPSILON;
            -p * p.ln()
        })
        .sum();
    entropy.exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, stream, unit};

    fn sphere(rows: usize, dim: usize, used: usize) -> Features {
        let mut rng = stream(3, Purpose::Split, 0, 0);
        let mut features = Features::default();
        for _ in 0..rows {
            let mut row: Vec<f32> = (0..dim)
                .map(
                    |d| if d < used { (0..8).map(|_| unit(&mut rng) as f32).sum::<f32>() - 4.0 } else { 0.0 },
                )
                .collect();
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm);
            features.push(&row).unwrap();
        }
        features
    }

    #[test]
    fn an_even_sphere_has_std_1_and_full_rank() {
        let s = spread(&sphere(20_000, 32, 32), 25_600).unwrap();
        assert!((s.std - 1.0).abs() < 0.01, "{s:?}");
        assert!((s.effective_rank - 32.0).abs() < 0.2, "{s:?}");
    }

    #[test]
    fn a_flat_subspace_has_its_own_rank() {
        let s = spread(&sphere(5_000, 64, 8), 2_000).unwrap();
        assert!((s.effective_rank - 8.0).abs() < 0.2, "{s:?}");
    }

    #[test]
    fn fewer_vectors_than_dimensions_have_the_rank_of_either_product() {
        let few = sphere(40, 64, 64);
        let padded = Features::new(64, [few.as_slice(), &[0.0; 64 * 60]].concat()).unwrap();
        let rank = |f: &Features| spread(f, 25_600).unwrap().effective_rank;
        assert!((rank(&few) - rank(&padded)).abs() < 0.01, "{} {}", rank(&few), rank(&padded));
    }

    #[test]
    fn one_vector_everywhere_is_collapse() {
        let data = [0.6, 0.8, 0.0, 0.0].repeat(500);
        let s = spread(&Features::new(4, data).unwrap(), 25_600).unwrap();
        assert!(s.std < 1e-3 && (s.effective_rank - 1.0).abs() < 1e-4, "{s:?}");
        assert!(spread(&Features::default(), 10).is_err());
    }
}
