//! How much of its space a representation uses: collapse shows here before any label is needed.

use candle_core::{DType, Device, Tensor};

pub use latentd_model::spread::Spread;
use latentd_model::spread::effective_rank;

use super::error::EvalError;
use super::features::Features;

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
    Ok(Spread { std, effective_rank: effective_rank(&mut gram, side) })
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
