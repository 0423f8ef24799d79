//! The range of a tensor: what was seen of its values, and which part of it eight bits should cover.

/// Bins of a histogram: eight for each of the levels that come out of it.
const BINS: usize = 2048;

/// How the covered range is chosen from the values seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Calibration {
    /// From the smallest to the largest.
    MinMax,
    /// That share of the values, the rest cut from both ends.
    Percentile(f64),
    /// The range whose rounding and clipping together make the least mean squared error.
    LeastSquares,
}

impl std::fmt::Display for Calibration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MinMax => f.write_str("min-max"),
            Self::Percentile(share) => write!(f, "percentile {}", 100.0 * share),
            Self::LeastSquares => f.write_str("least squares"),
        }
    }
}

/// The values of a tensor that calibration saw.
#[derive(Debug, Clone)]
pub struct Seen {
    low: f32,
    high: f32,
    counts: Vec<u64>,
}

impl Default for Seen {
    fn default() -> Self {
        // Zero is always within: it is what convolutions pad with.
        Self { low: 0.0, high: 0.0, counts: Vec::new() }
    }
}

impl Seen {
    /// First pass: widens the range. Values that are no numbers are left out.
    pub fn widen(&mut self, values: &[f32]) {
        for &value in values.iter().filter(|value| value.is_finite()) {
            self.low = self.low.min(value);
            self.high = self.high.max(value);
        }
    }

    /// Second pass: counts values of the range that the first found.
    pub fn count(&mut self, values: &[f32]) {
        self.counts.resize(BINS, 0);
        let scale = BINS as f32 / (self.high - self.low).max(f32::MIN_POSITIVE);
        for &value in values {
            // What is no number becomes bin 0, what lies outside the nearest end.
            let bin = ((value - self.low) * scale) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
    }

    /// What a quantised tensor of these values covers.
    #[must_use]
    pub fn choose(&self, calibration: Calibration) -> Levels {
        let (low, high) = match calibration {
            Calibration::MinMax => (self.low, self.high),
            Calibration::Percentile(share) => self.percentile(share),
            Calibration::LeastSquares => self.least_squares(),
        };
        Levels::covering(low, high)
    }

    fn centre(&self, bin: usize) -> f64 {
        let width = (f64::from(self.high) - f64::from(self.low)) / BINS as f64;
        f64::from(self.low) + (bin as f64 + 0.5) * width
    }

    fn percentile(&self, share: f64) -> (f32, f32) {
        let total: u64 = self.counts.iter().sum();
        let cut = ((1.0 - share) * total as f64) as u64;
        // The first bin from an end behind which more than the cut lies.
        let inside = |mut left: u64| {
            move |(_, count): &(usize, &u64)| {
                left += **count;
                left > cut
            }
        };
        let centre = |(bin, _): (usize, &u64)| self.centre(bin) as f32;
        let counts = || self.counts.iter().enumerate();
        let low = counts().find(inside(0)).map_or(self.low, centre);
        let high = counts().rev().find(inside(0)).map_or(self.high, centre);
        // An end that lies at zero stays there exactly: a ReLU's zeros are most of its values.
        let low = if self.low == 0.0 { 0.0 } else { low };
        (low, high)
    }

    fn least_squares(&self) -> (f32, f32) {
        let mut best = (f64::INFINITY, (self.low, self.high));
        for percent in (20..=100).rev() {
            let part = percent as f32 / 100.0;
            let (low, high) = (self.low * part, self.high * part);
            let levels = Levels::covering(low, high);
            let error = |(bin, &count): (usize, &u64)| {
                let value = self.centre(bin);
                count as f64 * (value - levels.round(value)).powi(2)
            };
            let error: f64 = self.counts.iter().enumerate().map(error).sum();
            if error < best.0 {
                best = (error, (low, high));
            }
        }
        best.1
    }
}

/// The 256 levels of a tensor: value = scale · (code − zero), code 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    /// Step from one level to the next.
    pub scale: f32,
    /// The code of zero.
    pub zero: u8,
}

impl Levels {
    /// The levels from `low` to `high`, zero exactly among them.
    #[must_use]
    pub fn covering(low: f32, high: f32) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = ((high - low) / 255.0).max(1e-20);
        Self { scale, zero: (-low / scale).round().clamp(0.0, 255.0) as u8 }
    }

    fn round(&self, value: f64) -> f64 {
        let (scale, zero) = (f64::from(self.scale), f64::from(self.zero));
        ((value / scale).round_ties_even() + zero).clamp(0.0, 255.0).mul_add(scale, -zero * scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(values: &[f32]) -> Seen {
        let mut seen = Seen::default();
        seen.widen(values);
        seen.count(values);
        seen
    }

    #[test]
    fn zero_is_a_level_and_the_ends_are_covered() {
        let levels = seen(&[-1.0, 3.0, f32::NAN]).choose(Calibration::MinMax);
        assert_eq!(levels.zero, 64);
        assert!((levels.round(3.0) - 3.0).abs() < 0.01 && (levels.round(-1.0) + 1.0).abs() < 0.01);
        assert_eq!(levels.round(0.0), 0.0);
        assert_eq!(seen(&[0.5, 2.0]).choose(Calibration::MinMax).zero, 0);
        let none = Seen::default().choose(Calibration::LeastSquares);
        assert!(none.scale > 0.0 && none.zero == 0);
    }

    #[test]
    fn an_outlier_is_clipped_where_that_costs_less() {
        let mut values: Vec<f32> = (0..100_000).map(|i| (i % 1000) as f32 / 1000.0).collect();
        values.push(4.0);
        let seen = seen(&values);
        let high = |calibration| seen.choose(calibration).scale * 255.0;
        assert!((high(Calibration::MinMax) - 4.0).abs() < 1e-3);
        assert!((high(Calibration::Percentile(0.9999)) - 1.0).abs() < 0.02);
        let least = high(Calibration::LeastSquares);
        assert!((0.9..3.9).contains(&least), "{least}");
    }
}
