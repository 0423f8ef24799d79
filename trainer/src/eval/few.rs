//! The linear probe when few labels are there: subsets with equally many of every class, several of each size.

use candle_core::Tensor;
use rayon::prelude::*;

use super::error::EvalError;
use super::features::Features;
use super::probe::Model;
use crate::data::random::{Purpose, permutation, stream};

/// Folds that choose the weight decay, at most.
const FOLDS: usize = 3;
/// The weight decay where there is one label a class and nothing to choose by.
const DECAY_OF_ONE: f64 = 0.1;
/// With this many labels one fold says enough.
const ONE_FOLD_FROM: usize = 1000;

/// How few labels are tried.
#[derive(Clone, Debug, PartialEq)]
pub struct FewOptions {
    /// Shares of the train labels.
    pub shares: Vec<f64>,
    /// Subsets of each size.
    pub subsets: u64,
    /// Weight decays to try, strongest first.
    pub weight_decays: Vec<f64>,
    /// L-BFGS iterations per fit, at most.
    pub iterations: usize,
}

impl Default for FewOptions {
    fn default() -> Self {
        Self {
            shares: vec![0.1, 0.01],
            subsets: 5,
            weight_decays: vec![1.0, 1e-1, 1e-2, 1e-3],
            iterations: 60,
        }
    }
}

/// What the probes of one size found.
#[derive(Clone, Debug, PartialEq)]
pub struct FewLabels {
    /// Labels that each probe had.
    pub labels: usize,
    /// Predictions for every test row, subset by subset.
    pub predictions: Vec<Vec<usize>>,
}

/// Fits a probe on each subset of `share` of the labels and predicts every row of `test`.
///
/// Every class gives equally many rows, at least one (fewer where it has no more). Columns are standardised by all
/// train rows, which needs no label. The weight decay is chosen by cross-validation within the subset; with one label a
/// class it is 0.1.
///
/// # Errors
/// When the shapes do not fit.
pub fn few_label_probe(
    train: &Features,
    labels: &[usize],
    test: &Features,
    classes: usize,
    share: f64,
    options: &FewOptions,
) -> Result<FewLabels, EvalError> {
    if train.rows() != labels.len() || train.dim() != test.dim() || test.rows() == 0 {
        return Err(EvalError::Shape("train rows, labels and test rows do not fit together".to_owned()));
    }
    let (mean, std) = train.moments();
    let mut asked = test.clone();
    asked.standardise(&mean, &std);
    let asked = asked.into_tensor()?;
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); classes];
    for (i, &label) in labels.iter().enumerate() {
        if let Some(members) = of_class.get_mut(label) {
            members.push(i);
        }
    }
    let each = ((share * labels.len() as f64 / classes.max(1) as f64).round() as usize).max(1);
    let one = |seed: u64| {
        let subset = draw(&of_class, each, seed);
        let rows: Vec<usize> = subset.iter().map(|s| s.row).collect();
        let mut features = train.select(&rows);
        features.standardise(&mean, &std);
        let subset = Subset { features, members: subset, classes };
        let decay = subset.choose_decay(each, options)?;
        let all: Vec<usize> = (0..subset.members.len()).collect();
        let (rows, labels) = subset.rows(&all)?;
        let model = Model::zero(train.dim(), classes).fit(&rows, &labels, decay, options.iterations)?.0;
        model.predict(&asked).map(|predicted| (all.len(), predicted))
    };
    let found: Vec<(usize, Vec<usize>)> =
        (0..options.subsets).into_par_iter().map(one).collect::<Result<_, _>>()?;
    let labels = found.first().map_or(0, |f| f.0);
    Ok(FewLabels { labels, predictions: found.into_iter().map(|f| f.1).collect() })
}

/// A chosen train row: where it lies, its class, its rank within the class.
struct Chosen {
    row: usize,
    label: usize,
    rank: usize,
}

fn draw(of_class: &[Vec<usize>], each: usize, seed: u64) -> Vec<Chosen> {
    let mut chosen = Vec::new();
    let mut order = Vec::new();
    for (label, members) in of_class.iter().enumerate() {
        permutation(&mut stream(seed, Purpose::Split, 3, label as u64), members.len(), &mut order);
        let taken = order.iter().take(each).enumerate();
        chosen.extend(taken.map(|(rank, &i)| Chosen { row: members[i as usize], label, rank }));
    }
    chosen
}

struct Subset {
    features: Features,
    members: Vec<Chosen>,
    classes: usize,
}

impl Subset {
    fn rows(&self, places: &[usize]) -> Result<(Tensor, Vec<usize>), EvalError> {
        let labels = places.iter().map(|&p| self.members[p].label).collect();
        Ok((self.features.select(places).into_tensor()?, labels))
    }

    /// The decay with the most hits over the folds, the stronger of equals.
    fn choose_decay(&self, each: usize, options: &FewOptions) -> Result<f64, EvalError> {
        let folds = FOLDS.min(each);
        if folds < 2 {
            return Ok(DECAY_OF_ONE);
        }
        let tried = if self.members.len() >= ONE_FOLD_FROM { 1 } else { folds };
        let mut hits = vec![0; options.weight_decays.len()];
        for fold in 0..tried {
            let (asked, learned): (Vec<usize>, Vec<usize>) =
                (0..self.members.len()).partition(|p| self.members[*p].rank % folds == fold);
            let (rows, labels) = self.rows(&learned)?;
            let (asked, truth) = self.rows(&asked)?;
            let mut model = Model::zero(self.features.dim(), self.classes);
            for (hits, &decay) in hits.iter_mut().zip(&options.weight_decays) {
                // Each decay goes on where the stronger one before it ended.
                model = model.fit(&rows, &labels, decay, options.iterations)?.0;
                *hits += model.predict(&asked)?.iter().zip(&truth).filter(|(a, b)| a == b).count();
            }
        }
        let most = hits.iter().max().copied().unwrap_or(0);
        let best = hits.iter().zip(&options.weight_decays).find(|(h, _)| **h == most);
        Ok(best.map_or(DECAY_OF_ONE, |b| *b.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::unit;

    /// Four clouds in 6 columns; the classes are of unequal size.
    fn clouds(rows: usize, seed: u64) -> (Features, Vec<usize>) {
        let mut rng = stream(seed, Purpose::Split, 9, 0);
        let (mut data, mut labels) = (Vec::new(), Vec::new());
        for i in 0..rows {
            let label = [0, 0, 0, 1, 1, 2, 3][i % 7];
            let noise = |rng: &mut _| (0..6).map(|_| unit(rng)).sum::<f64>() - 3.0;
            data.extend((0..6).map(|d| (noise(&mut rng) + if d == label { 3.0 } else { 0.0 }) as f32));
            labels.push(label);
        }
        (Features::new(6, data).unwrap(), labels)
    }

    #[test]
    fn more_labels_are_better_and_subsets_are_balanced_and_repeatable() {
        let ((train, labels), (test, asked)) = (clouds(2800, 1), clouds(700, 2));
        let accuracy = |share: f64| {
            let found = few_label_probe(&train, &labels, &test, 4, share, &FewOptions::default()).unwrap();
            assert_eq!(found.predictions.len(), 5);
            let hit = |p: &Vec<usize>| p.iter().zip(&asked).filter(|(a, b)| a == b).count() as f64 / 700.0;
            (found.labels, found.predictions.iter().map(hit).sum::<f64>() / 5.0)
        };
        let (few, low) = accuracy(0.002);
        let (many, high) = accuracy(0.1);
        assert_eq!((few, many), (4, 280));
        assert!(high > 0.9 && low < high - 0.05 && low > 0.3, "{low} {high}");
        assert_eq!(accuracy(0.1).1, high);
        let of_class = [vec![1, 2, 3], vec![7], vec![]];
        let drawn = draw(&of_class, 2, 1);
        assert_eq!(drawn.iter().map(|c| c.label).collect::<Vec<_>>(), [0, 0, 1]);
        assert!(few_label_probe(&train, &labels[1..], &test, 4, 0.1, &FewOptions::default()).is_err());
    }
}
