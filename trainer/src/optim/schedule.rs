//! Learning rate and τ over a run (Grill et al. 2020, section 3.3).

use std::f64::consts::PI;

/// Linear warm-up to `base`, then half a cosine down to 0 at `total` steps.
pub fn learning_rate(base: f64, step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        return base * (step + 1) as f64 / warmup as f64;
    }
    let left = total.saturating_sub(warmup).max(1) as f64;
    let done = ((step - warmup) as f64 / left).min(1.0);
    base * 0.5 * (1.0 + (PI * done).cos())
}

/// τ = 1 − (1 − τ_base)·(cos(π·step/total) + 1)/2: from `base` to 1.
pub fn tau(base: f64, step: u64, total: u64) -> f64 {
    let done = (step as f64 / total.max(1) as f64).min(1.0);
    1.0 - (1.0 - base) * ((PI * done).cos() + 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_warms_up_and_ends_at_zero() {
        assert_eq!(learning_rate(1.0, 0, 10, 100), 0.1);
        assert_eq!(learning_rate(1.0, 9, 10, 100), 1.0);
        assert_eq!(learning_rate(1.0, 10, 10, 100), 1.0);
        assert!((learning_rate(1.0, 55, 10, 100) - 0.5).abs() < 1e-12);
        assert!(learning_rate(1.0, 100, 10, 100) < 1e-12);
    }

    #[test]
    fn tau_goes_from_its_base_to_one() {
        assert_eq!(tau(0.99, 0, 100), 0.99);
        assert!((tau(0.99, 50, 100) - 0.995).abs() < 1e-12);
        assert_eq!(tau(0.99, 100, 100), 1.0);
    }
}
