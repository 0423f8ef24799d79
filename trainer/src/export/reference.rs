//! The encoder's forward pass written as plainly as possible in f64, for the tests alone.
//!
//! It shares nothing with the graph but the names of the weights: normalise, convolve, batch norm
//! with running statistics, pool, each as its own loop, so that an error in folding shows.
#![allow(clippy::unwrap_used, clippy::panic)]

use latentd_model::Pixels;

use crate::nn::config::{EncoderConfig, Norm, Stem};
use crate::nn::weights::Weights;

/// One picture's activations, [H, W, C].
struct Map {
    size: usize,
    channels: usize,
    data: Vec<f64>,
}

impl Map {
    fn at(&self, y: isize, x: isize, c: usize) -> Option<f64> {
        let inside = 0..self.size as isize;
        (inside.contains(&y) && inside.contains(&x))
            .then(|| self.data[(y as usize * self.size + x as usize) * self.channels + c])
    }
}

/// The L2-normalised embedding of one picture of the encoder's size.
pub fn embed(config: &EncoderConfig, weights: &Weights, picture: &Pixels) -> Vec<f64> {
    let size = config.image_size;
    assert_eq!((picture.height() as usize, picture.width() as usize), (size, size));
    let normalise = |(i, &byte): (usize, &u8)| {
        (f64::from(byte) / 255.0 - f64::from(config.mean[i % 3])) / f64::from(config.std[i % 3])
    };
    let data = picture.as_bytes().iter().enumerate().map(normalise).collect();
    let mut embedding = represent(config, weights, data);
    let length = embedding.iter().map(|v| v * v).sum::<f64>().sqrt();
    embedding.iter_mut().for_each(|v| *v /= length);
    embedding
}

/// The representation of one normalised picture, [H, W, 3].
pub fn represent(config: &EncoderConfig, weights: &Weights, data: Vec<f64>) -> Vec<f64> {
    let mut weights = weights.clone();
    if config.norm == Norm::GnWs {
        let convolutions = weights.0.values_mut().filter(|w| w.shape.len() == 4);
        convolutions.for_each(|w| standardise(&mut w.data, w.shape[3]));
    }
    let weights = &weights;
    let mut x = Map { size: config.image_size, channels: 3, data };
    let (_, stride) = config.stem_convolution();
    x = relu(norm(weights, "stem.norm", conv(weights, "stem.conv", &x, stride)));
    if config.stem == Stem::Imagenet {
        x = max_pool(&x);
    }
    for block in config.blocks() {
        let convolutions = block.convolutions();
        let last = convolutions.len();
        let mut y = None;
        for (i, _, stride, _, _) in convolutions {
            let input = y.as_ref().unwrap_or(&x);
            let out = conv(weights, &format!("{}.conv{i}", block.name), input, stride);
            let out = norm(weights, &format!("{}.norm{i}", block.name), out);
            y = Some(if i == last { out } else { relu(out) });
        }
        let mut y = y.unwrap();
        if block.has_projection() {
            let name = format!("{}.shortcut", block.name);
            let shortcut = conv(weights, &format!("{name}.conv"), &x, block.stride);
            x = norm(weights, &format!("{name}.norm"), shortcut);
        }
        for (y, x) in y.data.iter_mut().zip(&x.data) {
            *y += x;
        }
        x = relu(y);
    }
    let pixels = x.size * x.size;
    let mean = |c| (0..pixels).map(|p| x.data[p * x.channels + c]).sum::<f64>() / pixels as f64;
    (0..x.channels).map(mean).collect()
}

fn conv(weights: &Weights, name: &str, x: &Map, stride: usize) -> Map {
    let w = &weights.0[&format!("{name}.weight")];
    let [kh, kw, cin, cout] = w.shape[..] else { panic!("{name}: {:?}", w.shape) };
    assert_eq!(cin, x.channels, "{name}");
    let padding = (kh / 2) as isize;
    let size = (x.size + 2 * (kh / 2) - kh) / stride + 1;
    let mut data = vec![0.0; size * size * cout];
    for (p, out) in data.chunks_exact_mut(cout).enumerate() {
        let (oy, ox) = ((p / size * stride) as isize, (p % size * stride) as isize);
        for tap in 0..kh * kw {
            let (y, xx) = (oy + (tap / kw) as isize - padding, ox + (tap % kw) as isize - padding);
            for i in 0..cin {
                let Some(v) = x.at(y, xx, i) else { continue };
                let row = &w.data[(tap * cin + i) * cout..][..cout];
                for (out, &w) in out.iter_mut().zip(row) {
                    *out += v * f64::from(w);
                }
            }
        }
    }
    Map { size, channels: cout, data }
}

fn norm(weights: &Weights, name: &str, mut x: Map) -> Map {
    if !weights.0.contains_key(&format!("{name}.running_mean")) {
        return group_norm(weights, name, x);
    }
    let part = |part: &str| &weights.0[&format!("{name}.{part}")].data;
    let (gamma, beta) = (part("weight"), part("bias"));
    let (mean, var) = (part("running_mean"), part("running_var"));
    for (i, v) in x.data.iter_mut().enumerate() {
        let c = i % x.channels;
        let standard = (*v - f64::from(mean[c])) / (f64::from(var[c]) + 1e-5).sqrt();
        *v = standard * f64::from(gamma[c]) + f64::from(beta[c]);
    }
    x
}

/// Mean 0 and variance 1 for each of so many columns.
fn standardise(w: &mut [f32], columns: usize) {
    for c in 0..columns {
        let column: Vec<f64> = w[c..].iter().step_by(columns).map(|w| f64::from(*w)).collect();
        let mean = column.iter().sum::<f64>() / column.len() as f64;
        let variance = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / column.len() as f64;
        for (to, v) in w[c..].iter_mut().step_by(columns).zip(column) {
            *to = ((v - mean) / (variance + 1e-5).sqrt()) as f32;
        }
    }
}

fn group_norm(weights: &Weights, name: &str, mut x: Map) -> Map {
    let part = |part: &str| &weights.0[&format!("{name}.{part}")].data;
    let (gamma, beta) = (part("weight"), part("bias"));
    let group = Norm::group(x.channels);
    for first in (0..x.channels).step_by(group) {
        let own = |i: &usize| (first..first + group).contains(&(i % x.channels));
        let values: Vec<f64> = (0..x.data.len()).filter(own).map(|i| x.data[i]).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        for i in (0..x.data.len()).filter(own).collect::<Vec<_>>() {
            let c = i % x.channels;
            let standard = (x.data[i] - mean) / (variance + 1e-5).sqrt();
            x.data[i] = standard * f64::from(gamma[c]) + f64::from(beta[c]);
        }
    }
    x
}

fn relu(mut x: Map) -> Map {
    x.data.iter_mut().for_each(|v| *v = v.max(0.0));
    x
}

/// 3×3, stride 2, padding 1.
fn max_pool(x: &Map) -> Map {
    let size = (x.size + 2 - 3) / 2 + 1;
    let mut data = Vec::with_capacity(size * size * x.channels);
    for oy in 0..size {
        for ox in 0..size {
            for c in 0..x.channels {
                let taps = (0..9).filter_map(|t| {
                    let (y, xx) = (2 * oy + t / 3, 2 * ox + t % 3);
                    x.at(y as isize - 1, xx as isize - 1, c)
                });
                data.push(taps.fold(f64::NEG_INFINITY, f64::max));
            }
        }
    }
    Map { size, channels: x.channels, data }
}
