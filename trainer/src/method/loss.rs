//! BYOL's loss (Grill et al. 2020, eq. 2).

use candle_core::{Result, Tensor};

/// Rows scaled to length 1; a row of zeros stays zeros.
fn normalise(x: &Tensor) -> Result<Tensor> {
    let norm = (x.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?;
    x.broadcast_div(&norm)
}

/// Mean over rows of ‖q̂ − ẑ‖² = 2 − 2·cos(q, z), for `[rows, features]` each.
pub fn regression(prediction: &Tensor, projection: &Tensor) -> Result<Tensor> {
    let cosine = (normalise(prediction)? * normalise(projection)?)?.sum(1)?;
    2.0 - (cosine.mean_all()? * 2.0)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;

    const Q: [[f64; 3]; 2] = [[0.3, -1.2, 0.8], [2.0, 0.1, -0.4]];
    const Z: [[f64; 3]; 2] = [[-0.5, 0.4, 1.1], [0.9, 0.2, 0.7]];

    /// The formula in f64.
    fn formula(q: &[[f64; 3]; 2]) -> f64 {
        let dot = |a: &[f64; 3], b: &[f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = |a, b| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        (0..2).map(|i| 2.0 - 2.0 * cosine(&q[i], &Z[i])).sum::<f64>() / 2.0
    }

    #[test]
    fn value_and_gradient_match_the_formula_in_f64() {
        let q = Var::new(&Q, &Device::Cpu).unwrap();
        let z = Tensor::new(&Z, &Device::Cpu).unwrap();
        let loss = regression(&q, &z).unwrap();
        assert!((loss.to_scalar::<f64>().unwrap() - formula(&Q)).abs() < 1e-9);
        let grads = loss.backward().unwrap();
        let grad = grads.get(&q).unwrap().to_vec2::<f64>().unwrap();
        for (i, row) in grad.iter().enumerate() {
            for (j, found) in row.iter().enumerate() {
                let shifted = |d: f64| {
                    let mut q = Q;
                    q[i][j] += d;
                    formula(&q)
                };
                let slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6;
                assert!((found - slope).abs() < 1e-7, "[{i}][{j}] {found} {slope}");
            }
        }
    }

    #[test]
    fn the_same_direction_costs_nothing_and_the_opposite_four() {
        let q = Tensor::new(&[[1f32, 2.0]], &Device::Cpu).unwrap();
        let loss = |z: &Tensor| regression(&q, z).unwrap().to_scalar::<f32>().unwrap();
        assert!(loss(&(&q * 3.0).unwrap()).abs() < 1e-6);
        assert!((loss(&(&q * -1.0).unwrap()) - 4.0).abs() < 1e-6);
    }
}
