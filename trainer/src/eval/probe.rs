//! The linear probe: multinomial logistic regression on frozen features.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::error::EvalError;
use super::features::Features;
use super::knn::argmax;
use super::lbfgs::{Stop, minimise};
use crate::data::random::{Purpose, permutation, stream};

/// How a probe is fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeOptions {
    /// Weight decays to try, strongest first: `decay / 2 * |weights|²` is added to the mean cross-entropy.
    pub weight_decays: Vec<f64>,
    /// Share of the train rows that chooses among them.
    pub held_out: f64,
    /// L-BFGS iterations per fit, at most.
    pub iterations: usize,
    /// Chooses the held-out rows.
    pub seed: u64,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { weight_decays: vec![1e-1, 1e-2, 1e-3, 1e-4, 1e-5], held_out: 0.1, iterations: 100, seed: 0 }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearProbe {
    /// Class predicted for every test row.
    pub predictions: Vec<usize>,
    /// The weight decay that was chosen.
    pub weight_decay: f64,
    /// Held-out accuracy of every weight decay tried, in order.
    pub tried: Vec<(f64, f64)>,
    /// Whether the last fit met its tolerance within its iterations.
    pub converged: bool,
}

/// Fits on `train`, standardised column by column, and predicts `test`.
///
/// A seeded tenth of the train rows chooses the weight decay; the chosen one is fitted again on all of them. No test
/// row is looked at before the prediction.
///
/// # Errors
/// When the shapes do not fit or there are too few rows to hold any out.
pub fn linear_probe(
    mut train: Features,
    labels: &[usize],
    mut test: Features,
    classes: usize,
    options: &ProbeOptions,
) -> Result<LinearProbe, EvalError> {
    check(&train, labels, &test, classes, options)?;
    let (mean, std) = train.moments();
    train.standardise(&mean, &std);
    test.standardise(&mean, &std);
    // One copy in an order that puts the held-out rows last: both parts are then slices of one matrix.
    let mut order = Vec::new();
    permutation(&mut stream(options.seed, Purpose::Split, 1, 0), train.rows(), &mut order);
    let order: Vec<usize> = order.into_iter().map(|i| i as usize).collect();
    let labels: Vec<usize> = order.iter().filter_map(|&i| labels.get(i).copied()).collect();
    let rows = train.rows();
    let held_out = ((rows as f64 * options.held_out) as usize).clamp(1, rows - 1);
    let all = train.select(&order).into_tensor()?;
    drop(train);
    let (fit_rows, fit_labels) = (all.narrow(0, 0, rows - held_out)?, &labels[..rows - held_out]);
    let (ask_rows, ask_labels) = (all.narrow(0, rows - held_out, held_out)?, &labels[rows - held_out..]);
    let mut model = Model::zero(test.dim(), classes);
    let mut tried = Vec::new();
    let mut best: Option<(f64, f64, Model)> = None;
    let mut misses = 0;
    for &decay in &options.weight_decays {
        model = model.fit(&fit_rows, fit_labels, decay, options.iterations)?.0;
        let predicted = model.predict(&ask_rows)?;
        let right = predicted.iter().zip(ask_labels).filter(|(a, b)| a == b).count();
        let accuracy = right as f64 / held_out as f64;
        tried.push((decay, accuracy));
        if best.as_ref().is_none_or(|b| accuracy > b.1) {
            best = Some((decay, accuracy, model.clone()));
            misses = 0;
        } else {
            misses += 1;
        }
        // Weaker decays only overfit further from here.
        if misses == 2 {
            break;
        }
    }
    let Some((weight_decay, _, start)) = best else {
        return Err(EvalError::Shape("give at least one weight decay to try".to_owned()));
    };
    let (model, converged) = start.fit(&all, &labels, weight_decay, options.iterations)?;
    let predictions = model.predict(&test.into_tensor()?)?;
    Ok(LinearProbe { predictions, weight_decay, tried, converged })
}

fn check(
    train: &Features,
    labels: &[usize],
    test: &Features,
    classes: usize,
    options: &ProbeOptions,
) -> Result<(), EvalError> {
    let problem = if train.rows() != labels.len() {
        "every train row needs one label"
    } else if train.dim() != test.dim() || test.rows() == 0 {
        "train and test rows must have one length, and there must be test rows"
    } else if train.rows() < 10 {
        "a linear probe needs at least ten train rows"
    } else if labels.iter().any(|&l| l >= classes) {
        "a label is not below the number of classes"
    } else if !(0.0..1.0).contains(&options.held_out) {
        "the held-out share must lie between 0 and 1"
    } else {
        return Ok(());
    };
    Err(EvalError::Shape(problem.to_owned()))
}

/// Weights `[dim, classes]` followed by one bias per class.
#[derive(Clone, Debug)]
pub(super) struct Model {
    dim: usize,
    classes: usize,
    parameters: Vec<f64>,
}

impl Model {
    pub(super) fn zero(dim: usize, classes: usize) -> Self {
        Self { dim, classes, parameters: vec![0.0; (dim + 1) * classes] }
    }

    /// Continues from here to the minimum for `decay`; also says whether it was reached.
    pub(super) fn fit(
        &self,
        rows: &Tensor,
        labels: &[usize],
        decay: f64,
        iterations: usize,
    ) -> Result<(Self, bool), EvalError> {
        let stop = Stop { iterations, gradient: 1e-6, decrease: 1e-6 };
        let columns = rows.t()?;
        let found = minimise(self.parameters.clone(), stop, |p| {
            let model = Self { parameters: p.to_vec(), ..*self };
            model.loss(rows, &columns, labels, decay)
        })?;
        Ok((Self { parameters: found.point, ..*self }, found.iterations < iterations))
    }

    fn logits(&self, rows: &Tensor) -> Result<Vec<f32>, EvalError> {
        let weights: Vec<f32> = self.weights().iter().map(|&w| w as f32).collect();
        let weights = Tensor::from_vec(weights, (self.dim, self.classes), &Device::Cpu)?;
        Ok(rows.matmul(&weights)?.flatten_all()?.to_vec1()?)
    }

    fn weights(&self) -> &[f64] {
        &self.parameters[..self.dim * self.classes]
    }

    fn biases(&self) -> &[f64] {
        &self.parameters[self.dim * self.classes..]
    }

    /// Mean cross-entropy plus decay, and its gradient.
    fn loss(
        &self,
        rows: &Tensor,
        columns: &Tensor,
        labels: &[usize],
        decay: f64,
    ) -> Result<(f64, Vec<f64>), EvalError> {
        let mut residuals = self.logits(rows)?;
        let n = labels.len() as f64;
        let biases = self.biases();
        let losses: Vec<f64> = residuals
            .par_chunks_exact_mut(self.classes)
            .zip(labels)
            .map(|(row, &label)| softmax_residual(row, biases, label, n))
            .collect();
        let value = losses.iter().sum::<f64>() / n;
        let mut gradient = vec![0.0f64; self.parameters.len()];
        let (to_weights, to_biases) = gradient.split_at_mut(self.dim * self.classes);
        for row in residuals.chunks_exact(self.classes) {
            to_biases.iter_mut().zip(row).for_each(|(g, &r)| *g += f64::from(r));
        }
        let residuals = Tensor::from_vec(residuals, (labels.len(), self.classes), &Device::Cpu)?;
        let product: Vec<f32> = columns.matmul(&residuals)?.flatten_all()?.to_vec1()?;
        let mut penalty = 0.0;
        for ((g, &p), w) in to_weights.iter_mut().zip(&product).zip(self.weights()) {
            *g = f64::from(p) + decay * w;
            penalty += w * w;
        }
        Ok((value + decay / 2.0 * penalty, gradient))
    }

    pub(super) fn predict(&self, rows: &Tensor) -> Result<Vec<usize>, EvalError> {
        let logits = self.logits(rows)?;
        let best = |row: &[f32]| {
            let scores: Vec<f64> = row.iter().zip(self.biases()).map(|(&l, b)| f64::from(l) + b).collect();
            argmax(&scores)
        };
        Ok(logits.chunks_exact(self.classes).map(best).collect())
    }
}

/// Turns one row of logits into `(softmax - one hot) / n` and gives its cross-entropy.
fn softmax_residual(row: &mut [f32], biases: &[f64], label: usize, n: f64) -> f64 {
    let mut greatest = f64::NEG_INFINITY;
    for (v, b) in row.iter_mut().zip(biases) {
        *v += *b as f32;
        greatest = greatest.max(f64::from(*v));
    }
    let total: f64 = row.iter().map(|&v| (f64::from(v) - greatest).exp()).sum();
    let mut loss = 0.0;
    for (c, v) in row.iter_mut().enumerate() {
        let shifted = f64::from(*v) - greatest;
        let hit = f64::from(u8::from(c == label));
        loss += hit * (total.ln() - shifted);
        *v = ((shifted.exp() / total - hit) / n) as f32;
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::unit;

    /// Three overlapping clouds in the first two of `dim` columns, the rest noise.
    fn clouds(rows: usize, dim: usize, seed: u64) -> (Features, Vec<usize>) {
        let mut rng = stream(seed, Purpose::Split, 7, 0);
        let mut noise = || (0..6).map(|_| unit(&mut rng)).sum::<f64>() - 3.0;
        let mut data = Vec::new();
        let mut labels = Vec::new();
        for i in 0..rows {
            let label = i % 3;
            let centre = [[0.0, 1.5], [1.5, -1.0], [-1.5, -1.0]][label];
            for d in 0..dim {
                data.push((centre.get(d).unwrap_or(&0.0) + noise()) as f32 * (d + 1) as f32);
            }
            labels.push(label);
        }
        (Features::new(dim, data).unwrap(), labels)
    }

    fn accuracy(predicted: &[usize], labels: &[usize]) -> f64 {
        predicted.iter().zip(labels).filter(|(a, b)| a == b).count() as f64 / labels.len() as f64
    }

    #[test]
    fn gradient_is_that_of_finite_differences() {
        let (features, labels) = clouds(60, 4, 1);
        let rows = features.into_tensor().unwrap();
        let columns = rows.t().unwrap();
        let mut model = Model::zero(4, 3);
        for (i, p) in model.parameters.iter_mut().enumerate() {
            *p = ((i * 7 % 5) as f64 - 2.0) * 0.1;
        }
        let at = |m: &Model| m.loss(&rows, &columns, &labels, 0.01).unwrap();
        let gradient = at(&model).1;
        for (i, want) in gradient.iter().enumerate() {
            let moved = |delta: f64| {
                let mut m = model.clone();
                m.parameters[i] += delta;
                at(&m).0
            };
            let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((numeric - want).abs() < 2e-4, "{i}: {numeric} {want}");
        }
    }

    #[test]
    fn learns_overlapping_clouds_and_is_deterministic() {
        let (train, labels) = clouds(3000, 10, 2);
        let (test, test_labels) = clouds(3000, 10, 3);
        let options = ProbeOptions::default();
        let one = linear_probe(train.clone(), &labels, test.clone(), 3, &options).unwrap();
        let top1 = accuracy(&one.predictions, &test_labels);
        // The best possible rule, the nearest centre, reaches about as much.
        assert!(top1 > 0.93, "{top1} {one:?}");
        assert!(one.converged);
        assert!(one.tried.iter().any(|t| t.0 == one.weight_decay));
        assert_eq!(one, linear_probe(train, &labels, test, 3, &options).unwrap());
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (train, labels) = clouds(30, 4, 1);
        let (other, _) = clouds(30, 5, 1);
        let options = ProbeOptions::default();
        assert!(linear_probe(train.clone(), &labels[1..], train.clone(), 3, &options).is_err());
        assert!(linear_probe(train.clone(), &labels, other, 3, &options).is_err());
        assert!(linear_probe(train.clone(), &labels, train.clone(), 2, &options).is_err());
        let none = ProbeOptions { weight_decays: vec![], ..options };
        assert!(linear_probe(train.clone(), &labels, train, 3, &none).is_err());
    }
}
