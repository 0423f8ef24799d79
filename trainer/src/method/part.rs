//! A part of a network with its values: trained arrays as one candle variable, running statistics.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Result, Tensor, Var};
use rayon::prelude::*;

use crate::nn::buffer::Pool;
use crate::nn::differentiable::{Call, Differentiable, with_values};
use crate::nn::unit::Mode;
use crate::nn::weights::{Weights, WeightsError};
use crate::optim::lars::Lars;

/// A network's part and its values.
pub struct Part<N: Differentiable> {
    net: Arc<N>,
    params: Var,
    statistics: Arc<Mutex<Vec<f32>>>,
    /// Sum of the gradients of the calls that went backward.
    gradients: Arc<Mutex<Vec<f32>>>,
}

/// Why a part could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The weights are of another network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl<N: Differentiable> Part<N> {
    /// A part with its arrays out of `weights`, which may hold more.
    pub fn new(net: &Arc<N>, weights: &Weights) -> std::result::Result<Self, PartError> {
        let flat = net.params().flatten(weights)?;
        let params = Var::from_vec(flat, net.params().len(), &Device::Cpu)?;
        let statistics = Arc::new(Mutex::new(net.statistics().flatten(weights)?));
        Ok(Self { net: net.clone(), params, statistics, gradients: Arc::default() })
    }

    /// Its shapes and passes.
    pub fn net(&self) -> &Arc<N> {
        &self.net
    }

    /// The trained arrays, flat.
    pub fn params(&self) -> &Var {
        &self.params
    }

    /// Rows in, rows out, as one operation of candle's graph if `record`, else outside it.
    pub fn forward(&self, input: &Tensor, mode: Mode, pool: &Arc<Pool>, record: bool) -> Result<Tensor> {
        let call = Call::new(&self.net, &self.statistics, &self.gradients, mode, pool, record);
        if record {
            input.apply_op2(self.params.as_tensor(), call)
        } else {
            input.apply_op2_no_bwd(self.params.as_tensor(), &call)
        }
    }

    /// Forgets the gradients of earlier calls.
    pub fn clear_gradients(&self) {
        let mut gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        gradients.resize(self.net.params().len(), 0.0);
        gradients.par_chunks_mut(1 << 16).for_each(|chunk| chunk.fill(0.0));
    }

    /// Updates the trained arrays by the gradients of the calls since they were cleared.
    pub fn update(&self, optimiser: &Lars, learning_rate: f64) -> Result<()> {
        let gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        optimiser.step(self.params.as_tensor(), &gradients, learning_rate)
    }

    /// Adds its arrays to `into`.
    pub fn save(&self, into: &mut Weights) -> Result<()> {
        with_values(self.params.as_tensor(), |flat| self.net.params().unflatten(flat, into))?;
        let statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        self.net.statistics().unflatten(&statistics, into);
        Ok(())
    }
}
