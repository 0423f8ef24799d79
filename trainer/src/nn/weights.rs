//! Named weights of a network as plain arrays: what checkpoints hold and the exporter reads.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::{EncoderConfig, Norm};

/// One array: its shape, outermost first, and its values in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightTensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Values, row-major; as many as the product of `shape`.
    pub data: Vec<f32>,
}

impl WeightTensor {
    /// An array filled with one value.
    pub fn full(shape: &[usize], value: f32) -> Self {
        Self { shape: shape.to_vec(), data: vec![value; shape.iter().product()] }
    }
}

/// Arrays by name, in name order.
///
/// Convolutions are `[kernel_h, kernel_w, channels_in, channels_out]`, linear layers
/// `[features_in, features_out]`, everything of a norm `[channels]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weights(pub BTreeMap<String, WeightTensor>);

/// A weight that is missing or has another shape than the configuration asks for.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// No array of that name.
    #[error("the weights hold no `{0}`: they belong to another architecture")]
    Missing(String),
    /// An array of another shape.
    #[error("`{name}` has shape {found:?} and the configuration asks for {expected:?}")]
    Shape {
        /// Which array.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape asked for.
        expected: Vec<usize>,
    },
}

impl Weights {
    /// The array of that name, checked to have that shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&WeightTensor, WeightsError> {
        let tensor = self.0.get(name).ok_or_else(|| WeightsError::Missing(name.into()))?;
        if tensor.shape != shape {
            return Err(WeightsError::Shape {
                name: name.into(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(tensor)
    }

    /// How many numbers it holds in trained arrays (not running statistics, not a fitted whitening).
    pub fn parameters(&self) -> usize {
        let trainable =
            self.0.iter().filter(|(name, _)| !name.contains("running_") && !name.starts_with("whiten."));
        trainable.map(|(_, t)| t.data.len()).sum()
    }

    /// Fresh weights of an encoder: He-normal convolutions (fan-out, as He et al. 2015 and
    /// torchvision), norms at scale 1 and shift 0.
    pub fn random(config: &EncoderConfig, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut weights = Self::default();
        let (kernel, _) = config.stem_convolution();
        let channels = config.stem_channels();
        weights.add_convolution("stem.conv", kernel, 3, channels, &mut rng);
        weights.add_norm("stem.norm", channels, config.norm);
        for block in config.blocks() {
            for (i, kernel, _, cin, cout) in block.convolutions() {
                weights.add_convolution(&format!("{}.conv{i}", block.name), kernel, cin, cout, &mut rng);
                weights.add_norm(&format!("{}.norm{i}", block.name), cout, config.norm);
            }
            if block.has_projection() {
                let name = format!("{}.shortcut", block.name);
                weights.add_convolution(&format!("{name}.conv"), 1, block.cin, block.cout, &mut rng);
                weights.add_norm(&format!("{name}.norm"), block.cout, config.norm);
            }
        }
        weights
    }

    fn add_convolution(&mut self, name: &str, kernel: usize, cin: usize, cout: usize, rng: &mut ChaCha8Rng) {
        let std = (2.0 / (kernel * kernel * cout) as f32).sqrt();
        let shape = [kernel, kernel, cin, cout];
        let data = (0..shape.iter().product()).map(|_| std * standard_normal(rng)).collect();
        self.0.insert(format!("{name}.weight"), WeightTensor { shape: shape.to_vec(), data });
    }

    /// A linear layer without bias, uniform within ±1/√fan-in as PyTorch's default.
    pub(crate) fn add_linear(&mut self, name: &str, input: usize, output: usize, rng: &mut ChaCha8Rng) {
        let bound = 1.0 / (input as f32).sqrt();
        let data = (0..input * output).map(|_| rng.random_range(-bound..bound)).collect();
        self.0.insert(format!("{name}.weight"), WeightTensor { shape: vec![input, output], data });
    }

    /// Scale and shift, and in batch norm the running statistics.
    pub(crate) fn add_norm(&mut self, name: &str, channels: usize, norm: Norm) {
        let parts = [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)];
        let count = if norm == Norm::Batch { 4 } else { 2 };
        for (part, value) in parts.into_iter().take(count) {
            self.0.insert(format!("{name}.{part}"), WeightTensor::full(&[channels], value));
        }
    }
}

/// A draw from N(0, 1) by Box and Muller's transform.
fn standard_normal(rng: &mut ChaCha8Rng) -> f32 {
    let u1: f64 = 1.0 - rng.random::<f64>();
    let u2: f64 = rng.random();
    ((-2.0 * u1.ln()).sqrt() * (std::f64::consts::TAU * u2).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::config::Arch;

    #[test]
    fn a_resnet18_has_the_known_number_of_parameters() {
        // torchvision's resnet18 without its classifier: 11,176,512.
        let weights = Weights::random(&EncoderConfig::new(Arch::Resnet18, 1.0, 224), 1);
        assert_eq!(weights.parameters(), 11_176_512);
        let weights = Weights::random(&EncoderConfig::new(Arch::Resnet50, 1.0, 224), 1);
        assert_eq!(weights.parameters(), 23_508_032);
    }

    #[test]
    fn the_same_seed_gives_the_same_weights_of_the_right_spread() {
        let config = EncoderConfig::new(Arch::Resnet18, 0.5, 32);
        let weights = Weights::random(&config, 7);
        assert_eq!(weights, Weights::random(&config, 7));
        assert_ne!(weights, Weights::random(&config, 8));
        let w = &weights.0["stage4.block1.conv2.weight"];
        let var = w.data.iter().map(|x| f64::from(x * x)).sum::<f64>() / w.data.len() as f64;
        let expected = 2.0 / (9.0 * 256.0);
        assert!((var / expected - 1.0).abs() < 0.02, "{var} {expected}");
    }
}
