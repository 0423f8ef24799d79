//! Limited-memory BFGS for smooth functions of some thousand variables.

use std::collections::VecDeque;

/// Correction pairs that are remembered.
const MEMORY: usize = 10;
/// Evaluations that one line search may take.
const LINE_TRIES: usize = 25;

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// Iterations at most.
    pub iterations: usize,
    /// Stops when the largest component of the gradient is below.
    pub gradient: f64,
    /// Stops when an iteration lowers the value by less than this share of it.
    pub decrease: f64,
}

/// Where the search ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Minimum {
    /// The point.
    pub point: Vec<f64>,
    /// The function's value there.
    pub value: f64,
    /// Iterations taken.
    pub iterations: usize,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Minimises `f`, which gives value and gradient, from `start` (Nocedal & Wright, "Numerical Optimization", chapter 7,
/// with the bisecting weak-Wolfe line search of Lewis & Overton, 2013).
///
/// # Errors
/// Whatever `f` fails with.
pub fn minimise<E>(
    start: Vec<f64>,
    stop: Stop,
    mut f: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>), E>,
) -> Result<Minimum, E> {
    let mut point = start;
    let (mut value, mut gradient) = f(&point)?;
    let mut pairs: VecDeque<Pair> = VecDeque::with_capacity(MEMORY + 1);
    for iteration in 0..stop.iterations {
        if gradient.iter().fold(0.0f64, |m, g| m.max(g.abs())) < stop.gradient {
            return Ok(Minimum { point, value, iterations: iteration });
        }
        let mut direction = descent(&gradient, &pairs);
        if dot(&direction, &gradient) >= 0.0 {
            pairs.clear();
            direction = gradient.iter().map(|g| -g).collect();
        }
        let Some(step) = line_search(&point, value, &gradient, &direction, pairs.is_empty(), &mut f)? else {
            return Ok(Minimum { point, value, iterations: iteration });
        };
        let difference = |new: &[f64], old: &[f64]| new.iter().zip(old).map(|(a, b)| a - b).collect();
        let pair = Pair::new(difference(&step.point, &point), difference(&step.gradient, &gradient));
        let gained = value - step.value;
        (point, value, gradient) = (step.point, step.value, step.gradient);
        if pair.curvature > 0.0 {
            pairs.push_back(pair);
            if pairs.len() > MEMORY {
                pairs.pop_front();
            }
        }
        if gained <= stop.decrease * value.abs() {
            return Ok(Minimum { point, value, iterations: iteration + 1 });
        }
    }
    Ok(Minimum { point, value, iterations: stop.iterations })
}

/// A step taken and how the gradient changed over it.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    curvature: f64,
}

impl Pair {
    fn new(step: Vec<f64>, change: Vec<f64>) -> Self {
        let curvature = dot(&step, &change);
        Self { step, change, curvature }
    }
}

/// The two-loop recursion.
fn descent(gradient: &[f64], pairs: &VecDeque<Pair>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let alpha = dot(&pair.step, &q) / pair.curvature;
        q.iter_mut().zip(&pair.change).for_each(|(x, c)| *x -= alpha * c);
        alphas.push(alpha);
    }
    if let Some(last) = pairs.back() {
        let scale = last.curvature / dot(&last.change, &last.change);
        q.iter_mut().for_each(|x| *x *= scale);
    }
    for (pair, alpha) in pairs.iter().zip(alphas.into_iter().rev()) {
        let beta = dot(&pair.change, &q) / pair.curvature;
        q.iter_mut().zip(&pair.step).for_each(|(x, s)| *x += (alpha - beta) * s);
    }
    q
}

struct Step {
    point: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// A step that lowers the value enough and flattens the slope; `None` when rounding leaves nothing to gain.
fn line_search<E>(
    point: &[f64],
    value: f64,
    gradient: &[f64],
    direction: &[f64],
    first: bool,
    f: &mut impl FnMut(&[f64]) -> Result<(f64, Vec<f64>), E>,
) -> Result<Option<Step>, E> {
    let slope = dot(gradient, direction);
    let (mut low, mut high) = (0.0, f64::INFINITY);
    // Without a memory the direction has no natural length.
    let mut length = if first { (1.0 / dot(gradient, gradient).sqrt()).min(1.0) } else { 1.0 };
    let mut lowest: Option<Step> = None;
    for _ in 0..LINE_TRIES {
        let there: Vec<f64> = point.iter().zip(direction).map(|(p, d)| p + length * d).collect();
        let (new_value, new_gradient) = f(&there)?;
        let new_slope = dot(&new_gradient, direction);
        let enough = new_value <= value + 1e-4 * length * slope;
        let step = Step { point: there, value: new_value, gradient: new_gradient };
        if !enough {
            high = length;
        } else if new_slope < 0.9 * slope {
            low = length;
            lowest = Some(step);
        } else {
            return Ok(Some(step));
        }
        length = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * low };
    }
    Ok(lowest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const EXACT: Stop = Stop { iterations: 500, gradient: 1e-10, decrease: 0.0 };

    #[test]
    fn finds_the_minimum_of_an_ill_conditioned_bowl() {
        let f = |x: &[f64]| -> Result<(f64, Vec<f64>), Infallible> {
            let scale = |i: usize| 10f64.powi(i as i32 % 5);
            let value = x.iter().enumerate().map(|(i, v)| scale(i) * (v - i as f64).powi(2)).sum();
            Ok((value, x.iter().enumerate().map(|(i, v)| 2.0 * scale(i) * (v - i as f64)).collect()))
        };
        let found = minimise(vec![0.0; 30], EXACT, f).unwrap();
        for (i, v) in found.point.iter().enumerate() {
            assert!((v - i as f64).abs() < 1e-8);
        }
        assert!(found.iterations < 150, "{}", found.iterations);
    }

    #[test]
    fn follows_the_rosenbrock_valley() {
        let f = |x: &[f64]| -> Result<(f64, Vec<f64>), Infallible> {
            let (a, b) = (x[0], x[1]);
            let value = (1.0 - a).powi(2) + 100.0 * (b - a * a).powi(2);
            Ok((value, vec![-2.0 * (1.0 - a) - 400.0 * a * (b - a * a), 200.0 * (b - a * a)]))
        };
        let found = minimise(vec![-1.2, 1.0], EXACT, f).unwrap();
        assert!((found.point[0] - 1.0).abs() < 1e-7 && (found.point[1] - 1.0).abs() < 1e-7, "{found:?}");
    }

    #[test]
    fn stops_at_its_bounds_and_passes_errors_on() {
        let flat = |x: &[f64]| -> Result<(f64, Vec<f64>), Infallible> { Ok((1.0, vec![0.0; x.len()])) };
        assert_eq!(minimise(vec![3.0], EXACT, flat).unwrap().iterations, 0);
        assert_eq!(minimise(vec![3.0], EXACT, |_| Err::<(f64, Vec<f64>), _>("no")), Err("no"));
    }
}
