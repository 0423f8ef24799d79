//! The configuration of a run: one typed structure, read from TOML, overridden by flags.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::augment::Views;
use crate::method::byol::HeadConfig;
use crate::nn::config::{Arch, Norm};
use crate::nn::kernels::precision::Precision;
use crate::optim::lars::LarsConfig;

/// Everything that decides what a run does, apart from the pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Everything random follows from it.
    pub seed: u64,
    /// Passes over the pictures.
    pub epochs: usize,
    /// Pictures in a step.
    pub batch: usize,
    /// Parts that a step's batch is cut into to need less memory; the update is by the mean of their
    /// gradients. Batch norms see each part alone, and each part moves the running statistics: parts
    /// of fewer than 256 pictures cost quality (Grill et al. 2020, figure 3a, which accumulates so).
    pub accumulate: usize,
    /// Height and width of a view in pixels.
    pub image_size: usize,
    /// Which ResNet.
    pub arch: Arch,
    /// Channel multiplier of the ResNet.
    pub width: f64,
    /// Learning rate for a batch of 256; scaled linearly with the batch.
    pub base_learning_rate: f64,
    /// Epochs of linear warm-up.
    pub warmup_epochs: f64,
    /// τ at the first step; it rises to 1 by a cosine.
    pub tau_base: f64,
    /// Epochs without a better verdict after which a run stops; 0 lets it go on to its end.
    pub patience: f64,
    /// Goes on after a collapse, only saying so: for showing what one looks like.
    pub ignore_collapse: bool,
    /// Projector and predictor.
    pub heads: HeadConfig,
    /// The optimiser.
    pub lars: LarsConfig,
    /// The two view distributions.
    pub views: Views,
    /// How exactly convolutions and linear layers multiply.
    pub precision: Precision,
    /// What normalises.
    pub norm: Norm,
    /// Computes a block's inner maps again in the backward pass instead of keeping them.
    pub recompute: bool,
}

impl Default for RunConfig {
    /// For a first run on a laptop's CPU: a narrow ResNet-18 on small views.
    fn default() -> Self {
        Self {
            seed: 1,
            epochs: 20,
            batch: 128,
            accumulate: 1,
            image_size: 32,
            arch: Arch::Resnet18,
            width: 0.25,
            base_learning_rate: 2.0,
            warmup_epochs: 1.0,
            tau_base: 0.99,
            patience: 0.0,
            ignore_collapse: false,
            heads: HeadConfig::new(512, 128),
            lars: LarsConfig::default(),
            views: Views::small(),
            precision: Precision::default(),
            norm: Norm::default(),
            recompute: false,
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{path}: {reason}")]
    Parse {
        /// The file.
        path: String,
        /// Where and what.
        reason: String,
    },
    /// A value out of range.
    #[error("{0}")]
    Value(String),
}

impl RunConfig {
    /// Reads a TOML file; what it leaves out has its default.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: name.clone(), source })?;
        toml::from_str(&text).map_err(|e| ConfigError::Parse { path: name, reason: e.to_string() })
    }

    /// The first value that is out of range, with its bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |what: String| Err(ConfigError::Value(what));
        if !(1..=100_000).contains(&self.epochs) {
            return fail(format!("epochs {} is outside 1 to 100000", self.epochs));
        }
        if !(2..=65_536).contains(&self.batch) {
            return fail(format!(
                "batch {} is outside 2 to 65536 (batch norm needs two pictures)",
                self.batch
            ));
        }
        if self.accumulate == 0 || !self.batch.is_multiple_of(self.accumulate) || self.micro_batch() < 2 {
            return fail(format!(
                "a batch of {} cannot be cut into {} equal parts of at least 2 pictures: change accumulate or batch",
                self.batch, self.accumulate
            ));
        }
        if !(0.0..=1.0).contains(&self.tau_base) {
            return fail(format!("tau_base {} is outside 0 to 1", self.tau_base));
        }
        if !(self.base_learning_rate > 0.0 && self.base_learning_rate <= 1000.0) {
            return fail(format!("base_learning_rate {} is outside 0 to 1000", self.base_learning_rate));
        }
        if !(0.0..=self.epochs as f64).contains(&self.warmup_epochs) {
            return fail(format!("warmup_epochs {} is outside 0 to epochs", self.warmup_epochs));
        }
        if !(0.0..=100_000.0).contains(&self.patience) {
            return fail(format!("patience {} is outside 0 to 100000 epochs", self.patience));
        }
        let HeadConfig { hidden, projection, .. } = self.heads;
        if !(8..=65_536).contains(&hidden) || !(8..=65_536).contains(&projection) {
            return fail(format!("heads of {hidden} and {projection} features are outside 8 to 65536"));
        }
        let LarsConfig { weight_decay, momentum, trust } = self.lars;
        if !(0.0..1.0).contains(&momentum) || !(0.0..=1.0).contains(&weight_decay) || trust <= 0.0 {
            return fail("lars: momentum is in [0, 1), weight_decay in [0, 1], trust above 0".into());
        }
        self.encoder([0.5; 3], [0.25; 3]).validate().map_err(ConfigError::Value)?;
        self.views.validate().map_err(ConfigError::Value)
    }

    /// The encoder to train, for pictures of that mean and standard deviation (R, G, B; pixel / 255).
    pub fn encoder(&self, mean: [f32; 3], std: [f32; 3]) -> crate::nn::config::EncoderConfig {
        let plain = crate::nn::config::EncoderConfig::new(self.arch, self.width, self.image_size);
        crate::nn::config::EncoderConfig {
            mean,
            std,
            precision: self.precision,
            norm: self.norm,
            recompute: self.recompute,
            ..plain
        }
    }

    /// Shorter side to which pictures are shrunk once, before views are cut out of them.
    ///
    /// 256 for 224-pixel views, as in the paper's evaluation; twice the view for small ones, whose
    /// crops would otherwise be magnified.
    pub fn shortest_edge(&self) -> u32 {
        let size = self.image_size as u32;
        if size <= 64 { 2 * size } else { (size * 8).div_ceil(7) }
    }

    /// Pictures that are in memory at a time: the batch, or the part of it that is accumulated.
    pub fn micro_batch(&self) -> usize {
        self.batch / self.accumulate.max(1)
    }

    /// Learning rate after scaling with the batch.
    pub fn learning_rate(&self) -> f64 {
        self.base_learning_rate * self.batch as f64 / 256.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_configuration_survives_the_way_through_toml() {
        let config = RunConfig { seed: 9, ..RunConfig::default() };
        config.validate().unwrap();
        let back: RunConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(config, back);
    }

    #[test]
    fn the_shipped_configurations_are_valid() {
        let mut found = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/configs")).unwrap() {
            RunConfig::read(&entry.unwrap().path()).unwrap().validate().unwrap();
            found += 1;
        }
        assert!(found >= 2);
    }

    #[test]
    fn unknown_fields_and_values_out_of_range_are_refused() {
        assert!(toml::from_str::<RunConfig>("lerning_rate = 1").is_err());
        let one = RunConfig { batch: 1, ..RunConfig::default() };
        assert!(one.validate().unwrap_err().to_string().contains("batch 1 is outside"));
        let nan = RunConfig { base_learning_rate: f64::NAN, ..RunConfig::default() };
        assert!(nan.validate().is_err());
        for accumulate in [0, 3, 128] {
            let uneven = RunConfig { accumulate, ..RunConfig::default() };
            assert!(uneven.validate().unwrap_err().to_string().contains("equal parts"), "{accumulate}");
        }
    }
}
