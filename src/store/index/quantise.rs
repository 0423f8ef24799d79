//! Int8 codes of vectors, with a bound on what rounding can change.

/// A vector as 8-bit codes: `x[i] ≈ codes[i] / scale`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scale {
    /// What one code stands for: the reciprocal of the scale.
    pub step: f32,
    /// L2 norm of what rounding took away, rounded up.
    pub error: f32,
    /// L2 norm of what the codes stand for, rounded up.
    pub norm: f32,
}

/// What arithmetic in f32 may add to a score, for vectors of norm 1: a generous bound.
pub const SLACK: f32 = 2e-5;

/// Rounds `values` to codes of -127 to 127, scaled to the largest of them.
pub fn quantise(values: &[f32], codes: &mut [i8]) -> Scale {
    // 1.5 · 2^23: adding and taking it away rounds to the nearest whole number without a library call.
    const ROUND: f32 = 12_582_912.0;
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    if largest < f32::MIN_POSITIVE * 256.0 {
        codes.fill(0);
        return Scale { step: 0.0, error: largest * (values.len() as f32).sqrt(), norm: 0.0 };
    }
    let (scale, step) = (127.0 / largest, largest / 127.0);
    let (mut lost, mut kept) = ([0f32; 16], [0f32; 16]);
    let chunks = values.chunks(16).zip(codes.chunks_mut(16));
    for (values, codes) in chunks {
        for (((&value, code), lost), kept) in values.iter().zip(codes).zip(&mut lost).zip(&mut kept) {
            let whole = ((value * scale + ROUND) - ROUND).clamp(-127.0, 127.0);
            let stands_for = whole * step;
            *lost += (value - stands_for) * (value - stands_for);
            *kept += stands_for * stands_for;
            *code = whole as i8;
        }
    }
    let norm = |squares: [f32; 16]| squares.iter().sum::<f32>().sqrt() * 1.001 + 1e-7;
    Scale { step, error: norm(lost), norm: norm(kept) }
}

/// The most by which the product of a query and a row, computed from their codes, can differ from their own.
///
/// ⟨q, x⟩ − ⟨q̂, x̂⟩ = ⟨q, x − x̂⟩ + ⟨q − q̂, x̂⟩, and Cauchy–Schwarz bounds both. The query has norm 1.
pub fn score_error(query: Scale, row: Scale) -> f32 {
    row.error + query.error * row.norm + SLACK
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use latentd_model::Embedding;
    use proptest::prelude::*;

    fn codes_of(vector: &[f32]) -> (Vec<i8>, Scale) {
        let mut codes = vec![0i8; vector.len()];
        let scale = quantise(vector, &mut codes);
        (codes, scale)
    }

    proptest! {
        #[test]
        fn the_bound_holds(
            a in prop::collection::vec(-1f32..1.0, 33),
            b in prop::collection::vec(prop_oneof![8 => -1e-3f32..1e-3, 1 => -1f32..1.0], 33),
        ) {
            let (Ok(a), Ok(b)) = (Embedding::from_unnormalised(a), Embedding::from_unnormalised(b)) else {
                return Ok(());
            };
            let ((a_codes, a_scale), (b_codes, b_scale)) = (codes_of(a.as_slice()), codes_of(b.as_slice()));
            let dot: i32 = a_codes.iter().zip(&b_codes).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
            let rough = dot as f32 * a_scale.step * b_scale.step;
            prop_assert!((rough - a.cosine(&b)).abs() <= score_error(a_scale, b_scale));
            prop_assert!(a_scale.error < 0.03, "{}", a_scale.error);
        }
    }

    #[test]
    fn zeros_have_codes_too() {
        let (codes, scale) = codes_of(&[0.0; 5]);
        assert_eq!((codes, scale.step, scale.error, scale.norm), (vec![0; 5], 0.0, 0.0, 0.0));
    }
}
