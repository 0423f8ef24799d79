//! Health of the representation: what the last embeddings look like together, so that drift and collapse show.

use latentd_model::Embedding;
use latentd_model::reference::{self, Measured as Known};
use latentd_model::spread::{Spread, spread};
use metrics::Gauge;
use parking_lot::Mutex;

use crate::telemetry::Metrics;

/// Fewest embeddings that say anything.
const FEWEST: usize = 16;

/// A sliding window over the embeddings of one encoder.
pub struct Health {
    window: Mutex<Window>,
    dim: usize,
    /// Embeddings looked at, at most.
    rows: usize,
    /// What embeddings of the pictures trained on look like, where the artefact tells.
    known: Option<Known>,
    gauges: Gauges,
}

struct Gauges {
    window: Gauge,
    std: Gauge,
    effective_rank: Gauge,
    mean_norm: Gauge,
    distance: Gauge,
}

#[derive(Default)]
struct Window {
    /// At most [`Health::rows`] vectors, one after the other.
    numbers: Vec<f32>,
    /// Which of them the next one takes the place of.
    next: usize,
    /// Whether any came since the last measurement.
    fresh: bool,
}

/// What the window looks like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Embeddings in the window.
    pub embeddings: usize,
    /// How they spread.
    pub spread: Spread,
    /// The norm of their mean: near 1 where all are alike, near 0 where they point everywhere.
    pub mean_norm: f64,
    /// Squared Fréchet distance from the artefact's reference, once the window is as large as that one's.
    pub distance: Option<f64>,
}

impl Health {
    /// An empty window for vectors of `dim` numbers, to be compared with what is `known` of the encoder.
    #[must_use]
    pub fn new(dim: usize, known: Option<Known>, metrics: &Metrics) -> Self {
        // A distance depends on the size of its window, so that of the reference is taken.
        let rows = known.as_ref().map_or_else(|| reference::window(dim), |known| known.reference.window);
        let expected = known.as_ref().map_or(f64::NAN, |known| known.reference.distance_mean);
        metrics.gauge("latentd_embedding_distance_reference").set(expected);
        let gauges = Gauges {
            window: metrics.gauge("latentd_embedding_window"),
            std: metrics.gauge("latentd_embedding_std"),
            effective_rank: metrics.gauge("latentd_embedding_effective_rank"),
            mean_norm: metrics.gauge("latentd_embedding_mean_norm"),
            distance: metrics.gauge("latentd_embedding_distance"),
        };
        // No number until there is one.
        gauges.distance.set(f64::NAN);
        Self { window: Mutex::default(), dim, rows, known, gauges }
    }

    /// Takes an embedding in, in place of the oldest.
    pub fn note(&self, embedding: &Embedding) {
        if embedding.dim() != self.dim {
            return;
        }
        let mut window = self.window.lock();
        let Window { numbers, next, fresh } = &mut *window;
        let at = *next * self.dim;
        if at < numbers.len() {
            numbers[at..at + self.dim].copy_from_slice(embedding.as_slice());
        } else {
            numbers.extend_from_slice(embedding.as_slice());
        }
        *next = (*next + 1) % self.rows;
        *fresh = true;
    }

    /// Measures the window and sets the gauges, unless nothing came since the last time or too little ever did.
    /// Takes milliseconds for short vectors and tenths of a second for long ones: not for an async thread.
    pub fn measure(&self) -> Option<Measured> {
        let numbers = {
            let mut window = self.window.lock();
            let fresh = std::mem::take(&mut window.fresh);
            if !fresh || window.numbers.len() < FEWEST.min(self.rows) * self.dim {
                return None;
            }
            window.numbers.clone()
        };
        let spread = spread(&numbers, self.dim)?;
        let embeddings = numbers.len() / self.dim;
        let mean = |column: usize| {
            let values = numbers[column..].iter().step_by(self.dim);
            values.map(|&value| f64::from(value)).sum::<f64>() / embeddings as f64
        };
        let mean_norm = (0..self.dim).map(|column| mean(column).powi(2)).sum::<f64>().sqrt();
        self.gauges.window.set(embeddings as f64);
        self.gauges.std.set(spread.std);
        self.gauges.effective_rank.set(spread.effective_rank);
        self.gauges.mean_norm.set(mean_norm);
        let known = self.known.as_ref().filter(|_| embeddings == self.rows);
        let distance = known.and_then(|known| known.distribution.distance(&numbers));
        self.gauges.distance.set(distance.unwrap_or(f64::NAN));
        Some(Measured { embeddings, spread, mean_norm, distance })
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const WINDOW: usize = 512;

    #[test]
    fn a_collapse_shows_once_it_fills_the_window() {
        let metrics = Metrics::new().unwrap();
        let health = Health::new(32, None, &metrics);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut random = || {
            let bell = |rng: &mut ChaCha8Rng| (0..8).map(|_| rng.random::<f32>()).sum::<f32>() - 4.0;
            Embedding::from_unnormalised((0..32).map(|_| bell(&mut rng)).collect()).unwrap()
        };
        health.note(&random());
        assert_eq!(health.measure(), None);
        for _ in 0..2 * WINDOW {
            health.note(&random());
        }
        let spread = health.measure().unwrap();
        assert_eq!(spread.embeddings, WINDOW);
        assert!(spread.spread.std > 0.95 && spread.spread.effective_rank > 30.0, "{spread:?}");
        assert!(spread.mean_norm < 0.1 && spread.distance.is_none(), "{spread:?}");
        // Nothing came since.
        assert_eq!(health.measure(), None);
        let one = random();
        for _ in 0..WINDOW {
            health.note(&one);
        }
        let collapsed = health.measure().unwrap();
        assert!(collapsed.spread.std < 1e-3 && collapsed.spread.effective_rank < 1.01, "{collapsed:?}");
        assert!(collapsed.mean_norm > 0.999, "{collapsed:?}");
        assert!(metrics.render().contains("latentd_embedding_window 512"), "{}", metrics.render());
        assert!(metrics.render().contains("latentd_embedding_distance NaN"), "{}", metrics.render());
    }

    #[test]
    fn drift_shows_beside_what_the_artefact_tells() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let mut embedding = |axis: usize| {
            let mut numbers: Vec<f32> = (0..8).map(|_| rng.random::<f32>() - 0.5).collect();
            numbers[axis] += 1.0;
            Embedding::from_unnormalised(numbers).unwrap()
        };
        let trained: Vec<f32> = (0..1000).flat_map(|_| embedding(2).as_slice().to_vec()).collect();
        let known = reference::of_embeddings(&trained, 8, "a test").unwrap();
        let (window, expected) = (known.reference.window, known.reference.distance_mean);
        assert_eq!(window, 100);
        let metrics = Metrics::new().unwrap();
        let health = Health::new(8, Some(known), &metrics);
        let mut look = |axis: usize, count: usize| {
            (0..count).for_each(|_| health.note(&embedding(axis)));
            health.measure().unwrap().distance
        };
        assert_eq!(look(2, window - 1), None, "of fewer embeddings it would be larger");
        let same = look(2, 1).unwrap() / expected;
        assert!((0.5..2.0).contains(&same), "{same}");
        let drifting = look(3, window / 4).unwrap() / expected;
        let other = look(3, window).unwrap() / expected;
        assert!(drifting > 3.0 && other > 2.0 * drifting, "{drifting} {other}");
        assert!(metrics.render().contains(&format!("latentd_embedding_distance_reference {expected}")));
    }
}
