//! LARS (You et al. 2017) with BYOL's exclusions (Grill et al. 2020, section 3.3).
//!
//! For a weight w with gradient g: g' = g + λ·w; g'' = g' · η·‖w‖/‖g'‖; v ← μ·v + g''; w ← w − lr·v.
//! Biases and the scales and shifts of norms are neither decayed nor adapted.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout as TensorLayout, Result, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::ema::values_mut;
use crate::nn::layout::{Layout, Role};

/// Settings of LARS.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LarsConfig {
    /// λ, decay of weights.
    pub weight_decay: f64,
    /// μ, momentum.
    pub momentum: f64,
    /// η, the trust coefficient.
    pub trust: f64,
}

impl Default for LarsConfig {
    fn default() -> Self {
        Self { weight_decay: 1.5e-6, momentum: 0.9, trust: 1e-3 }
    }
}

/// The optimiser of one flat vector of trained arrays.
#[derive(Debug)]
pub struct Lars {
    config: LarsConfig,
    layout: Layout,
    velocity: Mutex<Vec<f32>>,
}

/// Values that one thread sums or updates at a time; fixed, so that sums do not depend on threads.
const CHUNK: usize = 1 << 14;

impl Lars {
    /// An optimiser at rest.
    pub fn new(config: LarsConfig, layout: &Layout) -> Self {
        Self { config, layout: layout.clone(), velocity: Mutex::new(vec![0f32; layout.len()]) }
    }

    /// The velocity, for a checkpoint.
    pub fn velocity(&self) -> Vec<f32> {
        self.velocity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes up a checkpoint's velocity.
    ///
    /// # Panics
    /// If it is not as long as the layout.
    pub fn set_velocity(&self, velocity: Vec<f32>) {
        assert_eq!(velocity.len(), self.layout.len());
        *self.velocity.lock().unwrap_or_else(PoisonError::into_inner) = velocity;
    }

    /// One update of `params` in place.
    pub fn step(&self, params: &Tensor, gradient: &[f32], learning_rate: f64) -> Result<()> {
        params.inplace_op1(&Step { lars: self, gradient, learning_rate: learning_rate as f32 })
    }

    fn update(&self, params: &mut [f32], gradient: &[f32], learning_rate: f32) {
        let mut velocity = self.velocity.lock().unwrap_or_else(PoisonError::into_inner);
        let momentum = self.config.momentum as f32;
        for segment in self.layout.segments() {
            let w = &mut params[segment.range.clone()];
            let g = &gradient[segment.range.clone()];
            let v = &mut velocity[segment.range.clone()];
            let (decay, scale) = match segment.role {
                Role::Weight => (self.config.weight_decay as f32, self.trust(w, g)),
                _ => (0.0, 1.0),
            };
            let chunks = w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(v.par_chunks_mut(CHUNK));
            chunks.for_each(|((w, g), v)| {
                for ((w, g), v) in w.iter_mut().zip(g).zip(v) {
                    *v = momentum * *v + scale * (g + decay * *w);
                    *w -= learning_rate * *v;
                }
            });
        }
    }

    /// η·‖w‖/‖g + λ·w‖, or 1 where either norm is 0.
    fn trust(&self, w: &[f32], g: &[f32]) -> f32 {
        let decay = self.config.weight_decay as f32;
        let sums: Vec<[f64; 2]> = w
            .par_chunks(CHUNK)
            .zip(g.par_chunks(CHUNK))
            .map(|(w, g)| {
                w.iter().zip(g).fold([0f64; 2], |[a, b], (w, g)| {
                    let g = f64::from(g + decay * w);
                    [a + f64::from(*w) * f64::from(*w), b + g * g]
                })
            })
            .collect();
        let [w, g] = sums.iter().fold([0f64; 2], |[a, b], [c, d]| [a + c, b + d]);
        if w > 0.0 && g > 0.0 { (self.config.trust * (w / g).sqrt()) as f32 } else { 1.0 }
    }
}

struct Step<'a> {
    lars: &'a Lars,
    gradient: &'a [f32],
    learning_rate: f32,
}

impl InplaceOp1 for Step<'_> {
    fn name(&self) -> &'static str {
        "lars"
    }

    fn cpu_fwd(&self, params: &mut CpuStorage, layout: &TensorLayout) -> Result<()> {
        self.lars.update(values_mut(params, layout)?, self.gradient, self.learning_rate);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;
    use crate::nn::weights::{WeightTensor, Weights};

    #[test]
    fn two_steps_follow_the_formula_and_spare_biases() {
        let mut weights = Weights::default();
        weights.0.insert("a.bias".into(), WeightTensor { shape: vec![1], data: vec![1.0] });
        weights.0.insert("a.weight".into(), WeightTensor { shape: vec![2, 1], data: vec![3.0, 4.0] });
        let layout = Layout::of(&weights, |_| true);
        let config = LarsConfig { weight_decay: 0.1, momentum: 0.5, trust: 0.01 };
        let lars = Lars::new(config, &layout);
        let w = Tensor::from_vec(layout.flatten(&weights).unwrap(), 3, &Device::Cpu).unwrap();
        let g = [2f32, 0.7, -0.4];
        // Decayed gradient (1, 0), norm 1; the weight's norm is 5, so the step is 0.05.
        lars.step(&w, &g, 2.0).unwrap();
        let found = w.to_vec1::<f32>().unwrap();
        for (f, e) in found.iter().zip([-3.0, 2.9, 4.0]) {
            assert!((f - e).abs() < 1e-6, "{found:?}");
        }
        lars.step(&w, &[0.0; 3], 2.0).unwrap();
        // The bias coasts by momentum alone: v = 0.5 · 2.
        assert!((w.to_vec1::<f32>().unwrap()[0] - -5.0).abs() < 1e-6);
    }
}
