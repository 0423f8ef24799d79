//! Weight standardisation: every output channel's weights at mean 0 and variance 1.
//!
//! Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight
//! Standardization". Beside group norm it takes batch norm's place in BYOL (Richemond et al. 2020).

use rayon::prelude::*;

/// Added to the variance under the root.
pub const EPSILON: f32 = 1e-5;
/// Output channels that a task takes.
const COLUMNS: usize = 64;

/// Standardised weights and what their backward pass needs.
pub struct Standardised {
    /// As the weights: `[fan-in, channels out]`.
    pub weights: Vec<f32>,
    /// 1 / √(variance + ε) of each channel out.
    inverse_std: Vec<f32>,
}

/// Mean 0 and variance 1 over the fan-in of every channel out; `w` is `[fan-in, channels]`.
pub fn forward(w: &[f32], channels: usize) -> Standardised {
    let fan_in = (w.len() / channels) as f64;
    let columns: Vec<(f64, f64)> = sums(channels, |c| {
        let mut sum = 0f64;
        let mut square = 0f64;
        for v in w[c..].iter().step_by(channels) {
            sum += f64::from(*v);
            square += f64::from(*v) * f64::from(*v);
        }
        let mean = sum / fan_in;
        (mean, 1.0 / ((square / fan_in - mean * mean).max(0.0) + f64::from(EPSILON)).sqrt())
    });
    let (mean, inverse_std): (Vec<f32>, Vec<f32>) =
        columns.into_iter().map(|(mean, inverse)| (mean as f32, inverse as f32)).unzip();
    let mut weights = w.to_vec();
    weights.par_chunks_mut(channels).with_min_len(64).for_each(|row| {
        row.iter_mut().zip(&mean).zip(&inverse_std).for_each(|((w, m), s)| *w = (*w - m) * s);
    });
    Standardised { weights, inverse_std }
}

impl Standardised {
    /// Adds to `dw` what the gradient of the standardised weights is for the weights themselves:
    /// `(g − mean(g) − ŵ · mean(g · ŵ)) / σ`.
    pub fn backward(&self, gradient: &[f32], dw: &mut [f32]) {
        let channels = self.inverse_std.len();
        let fan_in = (dw.len() / channels) as f64;
        let means: Vec<(f64, f64)> = sums(channels, |c| {
            let column = gradient[c..].iter().step_by(channels);
            let own = self.weights[c..].iter().step_by(channels);
            column.zip(own).fold((0f64, 0f64), |(sum, dot), (g, w)| {
                (sum + f64::from(*g) / fan_in, dot + f64::from(*g) * f64::from(*w) / fan_in)
            })
        });
        let rows = dw.par_chunks_mut(channels).zip(gradient.par_chunks(channels));
        rows.zip(self.weights.par_chunks(channels)).with_min_len(64).for_each(|((dw, g), w)| {
            for (c, d) in dw.iter_mut().enumerate() {
                let (mean, dot) = (means[c].0 as f32, means[c].1 as f32);
                *d += (g[c] - mean - w[c] * dot) * self.inverse_std[c];
            }
        });
    }
}

/// `sum(c)` for every channel, a block of neighbouring ones in one task.
fn sums<T: Send>(channels: usize, sum: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    (0..channels).into_par_iter().with_min_len(COLUMNS.min(channels.div_ceil(2))).map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: [f32; 8] = [0.3, -2.0, 1.5, 0.25, -0.5, 4.0, 0.75, -1.0];

    fn loss(w: &[f64], gradient: &[f32]) -> f64 {
        let mut total = 0.0;
        for c in 0..2 {
            let column: Vec<f64> = w[c..].iter().step_by(2).copied().collect();
            let mean = column.iter().sum::<f64>() / 4.0;
            let variance = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 4.0;
            for (i, v) in column.iter().enumerate() {
                total += f64::from(gradient[2 * i + c]) * (v - mean) / (variance + f64::from(EPSILON)).sqrt();
            }
        }
        total
    }

    #[test]
    fn channels_have_mean_0_and_variance_1() {
        let w = forward(&W, 2).weights;
        for c in 0..2 {
            let column = || w[c..].iter().step_by(2);
            assert!(column().sum::<f32>().abs() < 1e-5);
            assert!((column().map(|v| v * v).sum::<f32>() / 4.0 - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn the_gradient_matches_finite_differences() {
        let gradient = [0.5f32, -1.0, 2.0, 0.1, -0.7, 0.3, 1.1, 0.9];
        let mut dw = [1f32; 8];
        forward(&W, 2).backward(&gradient, &mut dw);
        for i in 0..8 {
            let at = |d: f64| {
                let mut w = W.map(f64::from);
                w[i] += d;
                loss(&w, &gradient)
            };
            let expected = 1.0 + (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((f64::from(dw[i]) - expected).abs() < 1e-4, "{i}: {} {expected}", dw[i]);
        }
    }
}
