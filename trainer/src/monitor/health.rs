//! What can be said about an encoder without labels, from two views of each of some pictures.

use latentd_model::Embedding;

use crate::eval::{EvalError, Features, neighbours, spread};
use crate::report::MetricRow;
use crate::whiten::Whitening;

/// Vectors of two views of the same pictures, one row a picture.
#[derive(Clone, Debug)]
pub struct ViewPairs {
    /// Of the first views, L2-normalised.
    pub view1: Features,
    /// Of the second views.
    pub view2: Features,
}

/// The figures of one verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Health {
    /// Spread of the representations, 1 on the whole sphere, 0 in one point: see [`spread`].
    pub representation_std: f64,
    /// Spread of the projections, which the loss compares.
    pub projection_std: f64,
    /// Dimensions that the representations use: RankMe (Garrido et al. 2023).
    pub effective_rank: f64,
    /// Mean squared distance of the two views of a picture (Wang & Isola 2020), 0 to 4; less is more alike.
    pub alignment: f64,
    /// ln of the mean of exp(−2·d²) over pairs of pictures (Wang & Isola 2020): 0 in one point, about −4 on the sphere.
    pub uniformity: f64,
    /// Share of first views whose nearest second view is of the same picture, by whitened representations, which is
    /// what an exported encoder gives; by plain ones where there are too few vectors to whiten.
    pub view_retrieval: f64,
}

impl ViewPairs {
    /// Normalises the rows of both.
    ///
    /// # Errors
    /// Unequal numbers of rows, or values that are no numbers.
    pub fn new(dim: usize, view1: Vec<f32>, view2: Vec<f32>) -> Result<Self, EvalError> {
        if view1.len() != view2.len() || view1.iter().chain(&view2).any(|v| !v.is_finite()) {
            return Err(EvalError::Shape(
                "the vectors of the two views are unequal or no numbers".to_owned(),
            ));
        }
        let normalised = |mut rows: Vec<f32>| {
            rows.chunks_exact_mut(dim).for_each(normalise);
            Features::new(dim, rows)
        };
        Ok(Self { view1: normalised(view1)?, view2: normalised(view2)? })
    }

    /// The same after a whitening fitted on all of them; `None` where there are too few, or all are the same.
    fn whitened(&self) -> Option<Self> {
        let embeddings = |rows: &Features| -> Option<Vec<Embedding>> {
            rows.iter().map(|row| Embedding::from_unnormalised(row.to_vec()).ok()).collect()
        };
        let (view1, view2) = (embeddings(&self.view1)?, embeddings(&self.view2)?);
        let whitening = Whitening::fit(&[&view1[..], &view2[..]].concat()).ok()?;
        let apply = |rows: &[Embedding]| -> Option<Features> {
            let rows: Option<Vec<_>> = rows.iter().map(|row| whitening.apply(row).ok()).collect();
            Features::from_embeddings(&rows?).ok()
        };
        Some(Self { view1: apply(&view1)?, view2: apply(&view2)? })
    }
}

impl Health {
    /// The figures of representations and projections.
    ///
    /// # Errors
    /// When there is no picture.
    pub fn measure(representations: &ViewPairs, projections: &ViewPairs) -> Result<Self, EvalError> {
        let ViewPairs { view1, view2 } = representations;
        let all = |pairs: &ViewPairs| {
            Features::new(pairs.view1.dim(), [pairs.view1.as_slice(), pairs.view2.as_slice()].concat())
        };
        let found = spread(&all(representations)?, usize::MAX)?;
        let whitened = representations.whitened();
        let ViewPairs { view1: query, view2: among } = whitened.as_ref().unwrap_or(representations);
        let nearest = neighbours(among, query, 1)?;
        let own = |(i, found): (usize, &Vec<_>)| {
            found.first().is_some_and(|n: &crate::eval::Neighbour| n.index as usize == i)
        };
        let rows = view1.rows() as f64;
        let right = nearest.iter().enumerate().filter(|pair| own(*pair)).count();
        let distances: f64 = view1.iter().zip(view2.iter()).map(|(a, b)| square_distance(a, b)).sum();
        // Exact in a few digits, so that a figure read back from metrics.jsonl is the figure that was judged.
        let round = |v: f64| (v * 1e6).round() / 1e6;
        Ok(Self {
            representation_std: round(found.std),
            projection_std: round(spread(&all(projections)?, usize::MAX)?.std),
            effective_rank: round(found.effective_rank),
            alignment: round(distances / rows),
            uniformity: round((uniformity(view1) + uniformity(view2)) / 2.0),
            view_retrieval: round(right as f64 / rows),
        })
    }

    /// A row of metrics.jsonl.
    #[must_use]
    pub fn row(&self, step: u64, epoch: f64) -> MetricRow {
        MetricRow {
            kind: VERDICT.to_owned(),
            step,
            epoch,
            representation_std: Some(self.representation_std),
            projection_std: Some(self.projection_std),
            effective_rank: Some(self.effective_rank),
            alignment: Some(self.alignment),
            uniformity: Some(self.uniformity),
            view_retrieval: Some(self.view_retrieval),
            ..MetricRow::default()
        }
    }

    /// The figures of a row of metrics.jsonl, if it holds a verdict.
    #[must_use]
    pub fn of(row: &MetricRow) -> Option<Self> {
        if row.kind != VERDICT {
            return None;
        }
        Some(Self {
            representation_std: row.representation_std?,
            projection_std: row.projection_std?,
            effective_rank: row.effective_rank?,
            alignment: row.alignment?,
            uniformity: row.uniformity?,
            view_retrieval: row.view_retrieval?,
        })
    }
}

/// Kind of the rows of metrics.jsonl that hold a verdict.
pub const VERDICT: &str = "verdict";

fn normalise(row: &mut [f32]) {
    let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    // A row of zeros stays one: it is like nothing.
    let scale = if norm > 1e-12 { 1.0 / norm } else { 0.0 };
    row.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
}

fn square_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// ln of the mean of exp(−2·d²) over all pairs of rows.
fn uniformity(rows: &Features) -> f64 {
    use rayon::prelude::*;
    let all: Vec<&[f32]> = rows.iter().collect();
    // Summed by row and then in order: the same for any number of threads.
    let sums: Vec<f64> = (1..all.len())
        .into_par_iter()
        .map(|i| all[..i].iter().map(|other| (-2.0 * square_distance(all[i], other)).exp()).sum())
        .collect();
    let pairs = (all.len() * all.len().saturating_sub(1) / 2).max(1) as f64;
    (sums.iter().sum::<f64>() / pairs).max(f64::MIN_POSITIVE).ln()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::data::random::{Purpose, stream, unit};

    fn gaussian(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut rng = stream(seed, Purpose::Split, 0, 0);
        (0..rows * dim).map(|_| (0..6).map(|_| unit(&mut rng) as f32).sum::<f32>() - 3.0).collect()
    }

    fn health(a: &[f32], b: &[f32], dim: usize) -> Health {
        let pairs = ViewPairs::new(dim, a.to_vec(), b.to_vec()).unwrap();
        Health::measure(&pairs, &pairs).unwrap()
    }

    #[test]
    fn an_even_sphere_with_equal_views_is_in_perfect_health() {
        let rows = gaussian(2000, 16, 1);
        let found = health(&rows, &rows, 16);
        assert_eq!((found.view_retrieval, found.alignment), (1.0, 0.0));
        assert!((found.representation_std - 1.0).abs() < 0.02, "{found:?}");
        assert!((found.effective_rank - 16.0).abs() < 0.2, "{found:?}");
        // exp(−2·d²) = exp(−4)·exp(4·cos): for cosines of variance 1/dim about −4 + 8/dim.
        assert!((found.uniformity + 3.5).abs() < 0.1, "{found:?}");
    }

    #[test]
    fn independent_views_are_found_by_chance_alone_and_lie_far_apart() {
        let found = health(&gaussian(1000, 16, 1), &gaussian(1000, 16, 2), 16);
        assert!(found.view_retrieval < 0.01, "{found:?}");
        assert!((found.alignment - 2.0).abs() < 0.05, "{found:?}");
    }

    #[test]
    fn a_large_common_part_does_not_hide_the_same_picture() {
        // All vectors share a large part, and what differs most is the view: pictures differ by little beside it.
        let pictures = gaussian(400, 16, 1);
        let view = |seed| -> Vec<f32> {
            let noise = gaussian(400, 16, seed);
            let strong = |i: usize| match i % 16 {
                0 => 10.0,
                1 => 3.0 * noise[i],
                _ => 0.0,
            };
            (0..pictures.len()).map(|i| 0.3 * pictures[i] + 0.05 * noise[i] + strong(i)).collect()
        };
        let pairs = ViewPairs::new(16, view(2), view(3)).unwrap();
        let plain = neighbours(&pairs.view2, &pairs.view1, 1).unwrap();
        let plain =
            plain.iter().enumerate().filter(|(i, n)| n[0].index as usize == *i).count() as f64 / 400.0;
        let found = Health::measure(&pairs, &pairs).unwrap();
        assert!(found.view_retrieval > plain + 0.1, "{} {plain}", found.view_retrieval);
    }

    #[test]
    fn one_point_is_collapse_in_every_figure() {
        let rows = [0.5f32, 0.5, 0.1, 0.7].repeat(100);
        let found = health(&rows, &rows, 4);
        assert!(found.representation_std < 1e-3 && found.effective_rank < 1.01, "{found:?}");
        assert!((found.view_retrieval - 0.01).abs() < 1e-9 && found.uniformity.abs() < 1e-6, "{found:?}");
        assert!(ViewPairs::new(4, rows.clone(), rows[4..].to_vec()).is_err());
        assert!(ViewPairs::new(1, vec![f32::NAN], vec![0.0]).is_err());
    }

    #[test]
    fn a_verdict_survives_the_way_through_metrics_jsonl() {
        let found = health(&gaussian(100, 16, 1), &gaussian(100, 16, 2), 16);
        let text = serde_json::to_string(&found.row(7, 0.5)).unwrap();
        let (rows, _) = crate::report::parse_metrics(&text);
        assert_eq!(Health::of(&rows[0]), Some(found));
        assert_eq!((rows[0].step, rows[0].epoch), (7, 0.5));
        let step = MetricRow { kind: "step".to_owned(), ..rows[0].clone() };
        assert_eq!(Health::of(&step), None);
    }
}
