//! What the paper's ablations, DeepMind's schedules and this project's own runs say about a schedule.

/// As long as the paper trains.
pub const MOST_EPOCHS: usize = 1000;
/// Steps that a run should have before its batches grow: those of the bundled encoder.
pub const WANTED_STEPS: usize = 4000;
/// Batch norms of fewer pictures are too noisy, see Grill et al. 2020, figure 3a.
const LEAST_BATCH: f64 = 64.0;
/// The paper's.
const MOST_BATCH: f64 = 4096.0;

/// (pictures seen in all, base learning rate): the bundled encoder's ten epochs of CIFAR-10, and DeepMind's schedules
/// of 40, 300 and 1000 epochs of ImageNet (configs/byol.py beside the paper's code).
const BASE_LEARNING_RATE: [(f64, f64); 4] = [(0.5e6, 3.0), (51e6, 0.45), (384e6, 0.3), (1.281e9, 0.2)];

/// (steps, 1 − τ_base): DeepMind's fastest target, the bundled encoder's, and DeepMind's for 100 and 1000 epochs.
const DISTANCE: [(f64, f64); 4] = [(1e3, 0.03), (3.9e3, 0.02), (31e3, 0.01), (312e3, 0.004)];

/// The learning rate for a batch of 256 of a run that sees so many pictures.
#[must_use]
pub fn base_learning_rate(seen: f64) -> f64 {
    rounded(interpolated(&BASE_LEARNING_RATE, seen))
}

/// τ at the first step of a run of so many steps.
#[must_use]
pub fn tau_base(steps: f64) -> f64 {
    1.0 - rounded(interpolated(&DISTANCE, steps))
}

/// The largest batch that leaves an epoch of so many pictures some steps, a power of two.
#[must_use]
pub fn largest_batch(pictures: usize) -> usize {
    let most = (pictures / 8).clamp(pictures.min(16), MOST_BATCH as usize).max(1);
    1 << most.ilog2()
}

/// The batch of a run that sees so many pictures: a power of two, at most `most`.
#[must_use]
pub fn batch(seen: f64, most: usize) -> usize {
    let wanted = (seen / WANTED_STEPS as f64).clamp(LEAST_BATCH, MOST_BATCH);
    (1usize << wanted.log2().round() as u32).min(most)
}

/// Epochs of warm-up.
#[must_use]
pub fn warmup_epochs(epochs: usize) -> f64 {
    (epochs as f64 / 20.0).min(10.0)
}

/// Between the points of a table, both axes logarithmic; beyond its ends, the end.
fn interpolated(table: &[(f64, f64)], x: f64) -> f64 {
    let after = table.partition_point(|(at, _)| *at < x);
    match (after.checked_sub(1).and_then(|i| table.get(i)), table.get(after)) {
        (Some((x0, y0)), Some((x1, y1))) => {
            let share = (x / x0).ln() / (x1 / x0).ln();
            (y0.ln() + share * (y1 / y0).ln()).exp()
        }
        (Some((_, y)), None) | (None, Some((_, y))) => *y,
        (None, None) => f64::NAN,
    }
}

/// To two digits, for a person to read.
fn rounded(value: f64) -> f64 {
    let unit = 10f64.powf(value.log10().floor() - 1.0);
    (value / unit).round() * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_met_at_their_points_and_held_at_their_ends() {
        for (seen, rate) in BASE_LEARNING_RATE {
            assert!((base_learning_rate(seen) - rate).abs() < 1e-9, "{seen}");
        }
        assert_eq!(base_learning_rate(1.0), 3.0);
        assert!((base_learning_rate(1e12) - 0.2).abs() < 1e-9);
        assert!((tau_base(10.0) - 0.97).abs() < 1e-9 && (tau_base(1e9) - 0.996).abs() < 1e-9);
        let between = base_learning_rate(5e6);
        assert!((0.45..3.0).contains(&between), "{between}");
    }

    #[test]
    fn batches_are_powers_of_two_that_leave_steps() {
        for pictures in [1, 2, 8, 15, 48, 1000, 50_000, 10_000_000] {
            let most = largest_batch(pictures);
            assert!(most.is_power_of_two() && most <= pictures, "{pictures}: {most}");
            assert!(batch(1e5, most) <= most && batch(1e12, most) <= 4096);
        }
        assert_eq!((largest_batch(48), largest_batch(3068), largest_batch(1_281_167)), (16, 256, 4096));
        assert_eq!(batch(0.5e6, 4096), 128);
    }
}
