//! k nearest neighbours by cosine, and what they vote.

use candle_core::{Device, Tensor};
use latentd_model::Embedding;
use rayon::prelude::*;

use super::error::EvalError;
use super::features::Features;

/// Bytes of similarities that are held at a time.
const BLOCK_BYTES: usize = 64 << 20;

/// One neighbour of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Row of the train matrix.
    pub index: u32,
    /// Cosine similarity.
    pub similarity: f32,
}

/// How neighbours are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Vote {
    /// Each counts one; of equals, the class of the lowest index wins.
    Majority,
    /// Each counts `exp(similarity / temperature)` (Wu et al., "Unsupervised Feature Learning via Non-Parametric
    /// Instance Discrimination", 2018).
    Weighted {
        /// 0.07 in the paper.
        temperature: f64,
    },
}

/// How a scalar product of two rows becomes a similarity: `(dot * unit * unit + shift + shift) * scale * scale`, with
/// one row's terms and the other's.
#[derive(Clone, Copy)]
struct Terms {
    unit: f32,
    shift: f32,
    scale: f32,
}

/// The terms of every row.
pub(super) struct Similarity {
    train: Vec<Terms>,
    test: Vec<Terms>,
}

impl Similarity {
    /// The cosine.
    pub(super) fn cosine(train: &Features, test: &Features) -> Self {
        let term = |row: &[f32]| Terms { unit: inverse_norm(squares(row)) as f32, shift: 0.0, scale: 1.0 };
        let terms = |f: &Features| f.par_iter().map(term).collect();
        Self { train: terms(train), test: terms(test) }
    }

    /// The cosine of normalised rows from which the mean of the normalised train rows is subtracted, from the same
    /// scalar products: `(a - m)(b - m) = ab + (m·m / 2 - a·m) + (m·m / 2 - b·m)`.
    pub(super) fn centred_cosine(train: &Features, test: &Features) -> Self {
        let mean = mean_direction(train);
        let half = mean.iter().map(|m| m * m).sum::<f64>() / 2.0;
        let term = |row: &[f32]| {
            let square = squares(row);
            let unit = inverse_norm(square);
            let along: f64 = row.iter().zip(&mean).map(|(&v, m)| f64::from(v) * m).sum();
            let shift = half - along * unit;
            let scale = inverse_norm(square * unit * unit + 2.0 * shift);
            Terms { unit: unit as f32, shift: shift as f32, scale: scale as f32 }
        };
        let terms = |f: &Features| f.par_iter().map(term).collect();
        Self { train: terms(train), test: terms(test) }
    }
}

/// Mean of the normalised rows.
fn mean_direction(features: &Features) -> Vec<f64> {
    let mut mean = vec![0.0f64; features.dim()];
    for row in features.iter() {
        let weight = inverse_norm(squares(row)) / features.rows() as f64;
        mean.iter_mut().zip(row).for_each(|(m, &v)| *m += weight * f64::from(v));
    }
    mean
}

fn squares(row: &[f32]) -> f64 {
    row.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

/// 0 for the zero vector, which is then similar to nothing.
fn inverse_norm(square: f64) -> f64 {
    if square > 1e-20 { 1.0 / square.sqrt() } else { 0.0 }
}

/// The `k` most similar rows of `train` for every row of `test`, nearest first, by cosine; fewer when `train` is
/// smaller. Equal similarities are ordered by index, so the answer is unique.
///
/// # Errors
/// When the rows differ in length or a matrix is empty.
pub fn neighbours(train: &Features, test: &Features, k: usize) -> Result<Vec<Vec<Neighbour>>, EvalError> {
    let mut found = neighbours_by(train, test, k, &[Similarity::cosine(train, test)])?;
    Ok(found.pop().unwrap_or_default())
}

/// [`neighbours`] for several similarities at the price of one matrix product.
pub(super) fn neighbours_by(
    train: &Features,
    test: &Features,
    k: usize,
    similarities: &[Similarity],
) -> Result<Vec<Vec<Vec<Neighbour>>>, EvalError> {
    if train.dim() != test.dim() || train.rows() == 0 || test.rows() == 0 {
        return Err(EvalError::Shape(format!(
            "cannot compare {} vectors of {} with {} vectors of {}",
            test.rows(),
            test.dim(),
            train.rows(),
            train.dim()
        )));
    }
    let k = k.clamp(1, train.rows());
    let columns = Tensor::from_slice(train.as_slice(), (train.rows(), train.dim()), &Device::Cpu)?.t()?;
    let block_rows = (BLOCK_BYTES / 4 / train.rows()).clamp(1, 1024);
    let mut found: Vec<Vec<Vec<Neighbour>>> =
        similarities.iter().map(|_| Vec::with_capacity(test.rows())).collect();
    for (block, rows) in test.as_slice().chunks(block_rows * test.dim()).enumerate() {
        let count = rows.len() / test.dim();
        let queries = Tensor::from_slice(rows, (count, test.dim()), &Device::Cpu)?;
        let dots: Vec<f32> = queries.matmul(&columns)?.flatten_all()?.to_vec1()?;
        for (similarity, out) in similarities.iter().zip(&mut found) {
            let test_terms = similarity.test.get(block * block_rows..).unwrap_or_default();
            let nearest = dots
                .par_chunks_exact(train.rows())
                .zip(test_terms)
                .map(|(dots, test)| top(dots, test, &similarity.train, k));
            out.par_extend(nearest);
        }
    }
    Ok(found)
}

/// The best `k` of one row.
fn top(dots: &[f32], query: &Terms, train: &[Terms], k: usize) -> Vec<Neighbour> {
    let mut best: Vec<Neighbour> = Vec::with_capacity(k + 1);
    let mut worst = f32::NEG_INFINITY;
    for (index, (dot, row)) in dots.iter().zip(train).enumerate() {
        let similarity = (dot * query.unit * row.unit + query.shift + row.shift) * query.scale * row.scale;
        // Strictly better only: of equals the earlier index is there already.
        if similarity > worst || best.len() < k {
            let place = best.partition_point(|n| n.similarity >= similarity);
            best.insert(place, Neighbour { index: index as u32, similarity });
            best.truncate(k);
            if best.len() == k {
                worst = best.last().map_or(f32::NEG_INFINITY, |n| n.similarity);
            }
        }
    }
    best
}

/// The class that each query's neighbours vote for.
#[must_use]
pub fn vote(neighbours: &[Vec<Neighbour>], train_labels: &[usize], classes: usize, rule: Vote) -> Vec<usize> {
    let one = |found: &Vec<Neighbour>| {
        let mut votes = vec![0.0f64; classes];
        for n in found {
            let weight = match rule {
                Vote::Majority => 1.0,
                Vote::Weighted { temperature } => (f64::from(n.similarity) / temperature).exp(),
            };
            if let Some(v) = train_labels.get(n.index as usize).and_then(|&label| votes.get_mut(label)) {
                *v += weight;
            }
        }
        argmax(&votes)
    };
    neighbours.par_iter().map(one).collect()
}

/// Index of the first greatest value.
pub(super) fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

/// Share of the test embeddings whose class a weighted kNN finds.
///
/// # Errors
/// As [`neighbours`]; and when there are not as many labels as embeddings.
pub fn weighted_knn(
    train: &[Embedding],
    train_labels: &[usize],
    test: &[Embedding],
    test_labels: &[usize],
    k: usize,
    temperature: f64,
) -> Result<f64, EvalError> {
    if train.len() != train_labels.len() || test.len() != test_labels.len() {
        return Err(EvalError::Shape("every embedding needs one label".to_owned()));
    }
    let found = neighbours(&Features::from_embeddings(train)?, &Features::from_embeddings(test)?, k)?;
    let classes = train_labels.iter().max().map_or(0, |m| m + 1);
    let predicted = vote(&found, train_labels, classes, Vote::Weighted { temperature });
    let right = predicted.iter().zip(test_labels).filter(|(a, b)| a == b).count();
    Ok(right as f64 / test_labels.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, stream, unit};

    fn random(rows: usize, dim: usize, seed: u64) -> Features {
        let mut rng = stream(seed, Purpose::Split, 0, 0);
        Features::new(dim, (0..rows * dim).map(|_| unit(&mut rng) as f32 - 0.3).collect()).unwrap()
    }

    /// By definition, in f64, sorting everything.
    fn brute(train: &Features, test: &Features, k: usize, centre: &[f64]) -> Vec<Vec<(u32, f64)>> {
        let moved = |row: &[f32]| -> Vec<f64> {
            let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            row.iter().zip(centre).map(|(&v, c)| f64::from(v) / norm - c).collect()
        };
        let cosine = |a: &[f64], b: &[f64]| {
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(p, q)| p * q).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let one = |query: &[f32]| {
            let q = moved(query);
            let mut all: Vec<_> =
                train.iter().enumerate().map(|(i, r)| (i as u32, cosine(&q, &moved(r)))).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            all.truncate(k);
            all
        };
        test.iter().map(one).collect()
    }

    #[test]
    fn equals_the_definition_plain_and_centred() {
        let (train, test) = (random(700, 24, 1), random(90, 24, 2));
        let both = [Similarity::cosine(&train, &test), Similarity::centred_cosine(&train, &test)];
        let found = neighbours_by(&train, &test, 7, &both).unwrap();
        for (found, centre) in found.iter().zip([vec![0.0; 24], mean_direction(&train)]) {
            for (got, want) in found.iter().zip(brute(&train, &test, 7, &centre)) {
                for (n, (index, similarity)) in got.iter().zip(want) {
                    assert_eq!(n.index, index);
                    assert!((f64::from(n.similarity) - similarity).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn equal_similarities_keep_the_lowest_indices_and_k_is_bounded() {
        let train = Features::new(2, [1.0, 1.0].repeat(9)).unwrap();
        let test = Features::new(2, vec![2.0, 2.0, 0.0, 0.0]).unwrap();
        let found = neighbours(&train, &test, 4).unwrap();
        assert_eq!(found[0].iter().map(|n| n.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(found[1][0].similarity, 0.0);
        assert_eq!(neighbours(&train, &test, 100).unwrap()[0].len(), 9);
        assert!(neighbours(&train, &random(1, 3, 0), 1).is_err());
    }

    #[test]
    fn near_neighbours_outvote_many_far_ones_when_weighted() {
        let n = |index, similarity| Neighbour { index, similarity };
        let found = vec![vec![n(0, 0.9), n(1, 0.5), n(2, 0.5)]];
        let labels = [1, 0, 0];
        assert_eq!(vote(&found, &labels, 2, Vote::Majority), [0]);
        assert_eq!(vote(&found, &labels, 2, Vote::Weighted { temperature: 0.07 }), [1]);
    }

    #[test]
    fn separable_embeddings_are_found() {
        let embed = |x: f32, y: f32| Embedding::from_unnormalised(vec![x, y]).unwrap();
        let train = [embed(1.0, 0.1), embed(1.0, -0.1), embed(0.1, 1.0), embed(-0.1, 1.0)];
        let test = [embed(1.0, 0.0), embed(0.0, 1.0), embed(1.0, 0.2)];
        let top1 = weighted_knn(&train, &[0, 0, 1, 1], &test, &[0, 1, 1], 2, 0.07).unwrap();
        assert!((top1 - 2.0 / 3.0).abs() < 1e-12);
        assert!(weighted_knn(&train, &[0], &test, &[0, 1, 1], 2, 0.07).is_err());
    }
}
