//! Probe: a vector in 8-bit codes, ready to be compared with one row after another.
//!
//! Rows are kept raised by 128, so that VNNI's product of unsigned by signed bytes needs no correction of each
//! row: Σ q·(x + 128) = Σ q·x + 128·Σ q, and the last term is the probe's own.

use super::super::kernels::Level;
use super::super::lines::Rows;
use super::super::quantise::quantise;

/// What is kept of a vector beside its codes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measure {
    /// What one code stands for.
    pub step: f32,
    /// Half the squared distance to the centre.
    pub half: f32,
}

/// The vector that others are compared with.
pub struct Probe {
    dim: usize,
    level: Level,
    signed: Rows<i8>,
    raise: i32,
    measure: Measure,
}

impl Probe {
    /// Of no vector yet.
    pub fn new(dim: usize, level: Level) -> Self {
        Self { dim, level, signed: Rows::of(&vec![0; dim]), raise: 0, measure: Measure::default() }
    }

    /// Of a vector given as raised codes, with or without padding.
    pub fn aim(&mut self, raised: &[u8], measure: Measure) {
        // Without their padding, which is zero in both and must stay so.
        let (signed, raised) = (&mut self.signed.row_mut(0)[..self.dim], &raised[..self.dim]);
        signed.iter_mut().zip(raised).for_each(|(signed, &raised)| *signed = (raised ^ 0x80) as i8);
        self.finish(measure);
    }

    /// Of a vector from which the centre is to be taken.
    pub fn aim_at(&mut self, vector: &[f32], centre: &[f32]) {
        let mut codes = vec![0; vector.len()];
        let measure = encode(vector, centre, &mut codes);
        self.aim(&codes, measure);
    }

    fn finish(&mut self, measure: Measure) {
        self.measure = measure;
        self.raise = 128 * self.signed.row(0).iter().map(|&code| i32::from(code)).sum::<i32>();
    }

    /// Minus half the squared distance to a row: 0 at the best.
    #[inline]
    pub fn similarity(&self, raised: &[u8], measure: Measure) -> f32 {
        let dot = self.level.dot_raised(self.signed.row(0), raised) - self.raise;
        dot as f32 * (self.measure.step * measure.step) - self.measure.half - measure.half
    }
}

/// Codes a vector less the centre, raised by 128.
pub fn encode(vector: &[f32], centre: &[f32], raised: &mut [u8]) -> Measure {
    let residual: Vec<f32> = vector.iter().zip(centre).map(|(value, centre)| value - centre).collect();
    let mut codes = vec![0i8; residual.len()];
    let step = quantise(&residual, &mut codes).step;
    raised.iter_mut().zip(&codes).for_each(|(raised, &code)| *raised = code as u8 ^ 0x80);
    Measure { step, half: residual.iter().map(|value| value * value).sum::<f32>() / 2.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn similarity_is_half_the_squared_distance(
            a in prop::collection::vec(-1f32..1.0, 1..200),
            shift in -0.5f32..0.5,
        ) {
            let b: Vec<f32> = a.iter().rev().map(|value| value * 0.7 - 0.1).collect();
            let centre: Vec<f32> = a.iter().map(|value| value * 0.3 + shift).collect();
            let exact = -a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / 2.0;
            for level in Level::available() {
                let mut probe = Probe::new(a.len(), level);
                probe.aim_at(&a, &centre);
                let mut codes = vec![0; a.len()];
                let measure = encode(&b, &centre, &mut codes);
                let similarity = probe.similarity(Rows::of(&codes).row(0), measure);
                prop_assert!((similarity - exact).abs() < 0.02 * (1.0 + a.len() as f32).sqrt(), "{similarity} {exact}");
                // From codes a probe is the same as from the vector.
                let mut codes_of_a = vec![0; a.len()];
                let measure_of_a = encode(&a, &centre, &mut codes_of_a);
                probe.aim(Rows::of(&codes_of_a).row(0), measure_of_a);
                prop_assert_eq!(probe.similarity(Rows::of(&codes).row(0), measure), similarity);
            }
        }
    }
}
