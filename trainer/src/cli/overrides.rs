//! The flags of `train` that override a configuration.

use crate::config::RunConfig;
use crate::nn::config::{Arch, Norm};
use crate::nn::kernels::precision::Precision;
use crate::plan::Fixed;

/// Values that override the configuration file.
#[derive(Debug, clap::Args)]
pub struct Overrides {
    /// Passes over the pictures.
    #[arg(long)]
    epochs: Option<usize>,
    /// Pictures in a step.
    #[arg(long)]
    batch: Option<usize>,
    /// Parts that a step's batch is cut into to need less memory.
    #[arg(long)]
    accumulate: Option<usize>,
    /// Height and width of a view in pixels.
    #[arg(long)]
    image_size: Option<usize>,
    /// Which ResNet.
    #[arg(long)]
    arch: Option<Arch>,
    /// Channel multiplier of the ResNet.
    #[arg(long)]
    width: Option<f64>,
    /// Learning rate for a batch of 256.
    #[arg(long)]
    base_learning_rate: Option<f64>,
    /// Epochs of linear warm-up.
    #[arg(long)]
    warmup_epochs: Option<f64>,
    /// τ at the first step.
    #[arg(long)]
    tau_base: Option<f64>,
    /// Features of the hidden layers of projector and predictor.
    #[arg(long)]
    hidden: Option<usize>,
    /// Features of projections.
    #[arg(long)]
    projection: Option<usize>,
    /// Epochs without a better verdict after which the run stops; 0: never.
    #[arg(long)]
    patience: Option<f64>,
    /// Goes on after a collapse, only saying so.
    #[arg(long)]
    ignore_collapse: bool,
    /// Leaves the predictor out: with --tau-base 0 this collapses, for seeing that it is noticed.
    #[arg(long)]
    no_predictor: bool,
    /// How exactly convolutions and linear layers multiply (PyTorch's float32 matmul precision).
    #[arg(long)]
    precision: Option<Precision>,
    /// What normalises: batch, or gn-ws (group norm and weight standardisation) for small batches.
    #[arg(long)]
    norm: Option<Norm>,
    /// Computes a block's inner maps again in the backward pass: less memory, a third more time.
    #[arg(long)]
    recompute: bool,
    /// Everything random follows from it.
    #[arg(long)]
    seed: Option<u64>,
}

impl Overrides {
    /// Puts them into a configuration.
    pub fn apply(&self, config: &mut RunConfig) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                *to = value.clone();
            }
        }
        set(&mut config.epochs, &self.epochs);
        set(&mut config.batch, &self.batch);
        set(&mut config.accumulate, &self.accumulate);
        set(&mut config.patience, &self.patience);
        config.ignore_collapse |= self.ignore_collapse;
        config.heads.predictor &= !self.no_predictor;
        set(&mut config.image_size, &self.image_size);
        set(&mut config.arch, &self.arch);
        set(&mut config.width, &self.width);
        set(&mut config.base_learning_rate, &self.base_learning_rate);
        set(&mut config.warmup_epochs, &self.warmup_epochs);
        set(&mut config.tau_base, &self.tau_base);
        set(&mut config.heads.hidden, &self.hidden);
        set(&mut config.heads.projection, &self.projection);
        set(&mut config.precision, &self.precision);
        set(&mut config.norm, &self.norm);
        config.recompute |= self.recompute;
        set(&mut config.seed, &self.seed);
    }

    /// So many epochs, unless the person said otherwise.
    pub fn default_epochs(&mut self, epochs: Option<usize>) {
        self.epochs = self.epochs.or(epochs);
    }

    /// Which values were given by hand.
    pub fn fixed(&self) -> Fixed {
        Fixed {
            epochs: self.epochs.is_some(),
            batch: self.batch.is_some(),
            base_learning_rate: self.base_learning_rate.is_some(),
            warmup_epochs: self.warmup_epochs.is_some(),
            tau_base: self.tau_base.is_some(),
        }
    }
}
