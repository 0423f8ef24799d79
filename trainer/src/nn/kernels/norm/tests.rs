//! Normalisation against the formula in f64.
#![allow(clippy::unwrap_used, clippy::needless_range_loop)]
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const G: Geometry = Geometry { images: 6, height: 3, width: 2, channels: 5, pad: 0 };
const VIEWS: usize = 2;

struct Case {
    z: Vec<f32>,
    residual: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    dy: Vec<f32>,
}

fn case() -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut draw =
        |n: usize, lo: f32, hi: f32| (0..n).map(|_| rng.random_range(lo..hi)).collect::<Vec<f32>>();
    Case {
        z: draw(G.len(), 2.0, 5.0),
        residual: draw(G.len(), -1.0, 1.0),
        gamma: draw(5, 0.5, 1.5),
        beta: draw(5, -0.5, 0.5),
        dy: draw(G.len(), -1.0, 1.0),
    }
}

/// The formula in f64: Σ dy · relu(norm(z) + residual).
fn loss(c: &Case, z: &[f64], gamma: &[f64]) -> f64 {
    let per_view = G.images / VIEWS * G.pixels();
    let mut total = 0.0;
    for view in 0..VIEWS {
        for ch in 0..G.channels {
            let index = |p: usize| (view * per_view + p) * G.channels + ch;
            let mean = (0..per_view).map(|p| z[index(p)]).sum::<f64>() / per_view as f64;
            let var = (0..per_view).map(|p| (z[index(p)] - mean).powi(2)).sum::<f64>() / per_view as f64;
            for p in 0..per_view {
                let i = index(p);
                let y = gamma[ch] * (z[i] - mean) / (var + f64::from(EPSILON)).sqrt()
                    + f64::from(c.beta[ch])
                    + f64::from(c.residual[i]);
                total += f64::from(c.dy[i]) * y.max(0.0);
            }
        }
    }
    total
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn gradients_match_finite_differences_in_f64() {
    let mut c = case();
    let yg = G.with_pad(1);
    let z = Maps { at: G, data: &c.z };
    let m = moments(z, VIEWS);
    let (scale, shift) = m.affine(&c.gamma, &c.beta);
    let mut y = vec![0f32; yg.len()];
    apply(z, (&scale, &shift), Some(Maps { at: G, data: &c.residual }), true, yg, &mut y);
    let mut dz = vec![0f32; yg.len()];
    let mut dy = c.dy.clone();
    let grads = backward(z, &m, &c.gamma, Some(Maps { at: yg, data: &y }), (G, &mut dy), (yg, &mut dz));

    let (z, gamma) = (wide(&c.z), wide(&c.gamma));
    let h = 1e-6;
    let slope = |plus: f64, minus: f64| (plus - minus) / (2.0 * h);
    for i in 0..G.len() {
        let shifted = |d: f64| {
            let mut z = z.clone();
            z[i] += d;
            loss(&c, &z, &gamma)
        };
        let (n, rest) = (i / (6 * 5), i % (6 * 5));
        let (y, x, ch) = (rest / 10, rest / 5 % 2, rest % 5);
        let found = dz[row_start(yg, n, y) + x * 5 + ch];
        let expected = slope(shifted(h), shifted(-h));
        assert!((f64::from(found) - expected).abs() < 1e-4, "dz[{i}] {found} {expected}");
    }
    for ch in 0..5 {
        let shifted = |d: f64| {
            let mut g = gamma.clone();
            g[ch] += d;
            loss(&c, &z, &g)
        };
        let expected = slope(shifted(h), shifted(-h));
        assert!((f64::from(grads.gamma[ch]) - expected).abs() < 1e-3, "dγ[{ch}]");
    }
    let beta = c.beta.clone();
    for ch in 0..5 {
        let mut shifted = |d: f32| {
            c.beta[ch] = beta[ch] + d;
            loss(&c, &z, &gamma)
        };
        let expected = (shifted(1e-3) - shifted(-1e-3)) / 2e-3;
        c.beta[ch] = beta[ch];
        assert!((f64::from(grads.beta[ch]) - expected).abs() < 2e-2, "dβ[{ch}] {expected}");
    }
}

#[test]
fn views_have_their_own_statistics() {
    let c = case();
    let both = moments(Maps { at: G, data: &c.z }, 2);
    let half = Geometry { images: 3, ..G };
    let second = moments(Maps { at: half, data: &c.z[G.len() / 2..] }, 1);
    assert_eq!(both.mean[5..], second.mean[..]);
    assert_eq!(both.variance[5..], second.variance[..]);
}

#[test]
fn variance_survives_a_mean_far_from_zero() {
    let g = Geometry { images: 500, height: 1, width: 1, channels: 1, pad: 0 };
    let data: Vec<f32> = (0..500).map(|i| 1000.0 + if i % 2 == 0 { 0.5 } else { -0.5 }).collect();
    let m = moments(Maps { at: g, data: &data }, 1);
    assert!((m.variance[0] - 0.25).abs() < 1e-3, "{}", m.variance[0]);
}
