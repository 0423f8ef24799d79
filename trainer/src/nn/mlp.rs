//! BYOL's projector and predictor: linear, batch norm, ReLU, linear.

use std::ops::Range;
use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::buffer::{Buffer, Pool};
use super::config::Norm;
use super::differentiable::Differentiable;
use super::kernels::conv::{self, ConvShape};
use super::kernels::geometry::Geometry;
use super::kernels::precision::Precision;
use super::layout::{Layout, Role};
use super::unit::{Recorded, State, Tail, Unit};
use super::weights::{Weights, WeightsError};

/// Two linear layers with a batch norm and a ReLU between (Grill et al. 2020, section 3.3).
///
/// A linear layer is a 1×1 convolution over maps of one pixel, so it shares those kernels. The
/// first has no bias, because the batch norm behind it takes any constant away again; the second
/// has none, as in DeepMind's code.
#[derive(Debug)]
pub struct Mlp {
    params: Layout,
    statistics: Layout,
    first: Unit,
    second: ConvShape,
    second_weight: Range<usize>,
}

/// What a backward pass needs of the forward pass.
pub struct Tape {
    first: Recorded,
    hidden: Arc<Buffer>,
}

/// Sizes of a two-layer perceptron.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpShape {
    /// Features in.
    pub input: usize,
    /// Features between.
    pub hidden: usize,
    /// Features out.
    pub output: usize,
    /// How exactly its passes multiply.
    pub precision: Precision,
    /// What normalises between its layers.
    pub norm: Norm,
}

impl MlpShape {
    /// Fresh weights under `name`: uniform within ±1/√fan-in.
    pub fn random(&self, name: &str, seed: u64) -> Weights {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut weights = Weights::default();
        weights.add_linear(&format!("{name}.linear1"), self.input, self.hidden, &mut rng);
        weights.add_norm(&format!("{name}.norm"), self.hidden, self.norm);
        weights.add_linear(&format!("{name}.linear2"), self.hidden, self.output, &mut rng);
        weights
    }
}

impl Mlp {
    /// A perceptron whose weights bear `name`.
    pub fn new(shape: MlpShape, name: &str) -> Result<Self, WeightsError> {
        let weights = shape.random(name, 0);
        let params = Layout::of(&weights, |role| role != Role::Statistic);
        let statistics = Layout::of(&weights, |role| role == Role::Statistic);
        let linear = |cin, cout| ConvShape { kernel: 1, stride: 1, cin, cout, precision: shape.precision };
        let first = linear(shape.input, shape.hidden);
        let first = Unit::new(
            first,
            shape.norm,
            [&format!("{name}.linear1"), &format!("{name}.norm")],
            [&params, &statistics],
        )?;
        let second_weight = params.range(&format!("{name}.linear2.weight"))?;
        Ok(Self { params, statistics, first, second: linear(shape.hidden, shape.output), second_weight })
    }
}

/// Rows of features as maps of one pixel.
fn rows(count: usize, features: usize) -> Geometry {
    Geometry { images: count, height: 1, width: 1, channels: features, pad: 0 }
}

impl Differentiable for Mlp {
    type Tape = Tape;

    fn params(&self) -> &Layout {
        &self.params
    }

    fn statistics(&self) -> &Layout {
        &self.statistics
    }

    fn output_dim(&self) -> usize {
        self.second.cout
    }

    fn forward(&self, state: &mut State, input: &[f32]) -> (Vec<f32>, Option<Tape>) {
        let count = input.len() / self.first.conv.cin;
        let mut x = state.pool.take(rows(count, self.first.conv.cin));
        x.data.copy_from_slice(input);
        let tail = Tail { residual: None, relu: true, pad: 0 };
        let (hidden, recorded) = self.first.forward(state, &Arc::new(x), tail);
        let mut out = vec![0f32; count * self.second.cout];
        let weight = &state.params[self.second_weight.clone()];
        conv::forward(self.second, hidden.at, &hidden.data, weight, rows(count, self.second.cout), &mut out);
        (out, recorded.map(|first| Tape { first, hidden }))
    }

    fn backward(
        &self,
        params: &[f32],
        tape: Tape,
        gradient: &[f32],
        grads: &mut [f32],
        pool: &Arc<Pool>,
    ) -> Option<Vec<f32>> {
        let Tape { first, hidden } = tape;
        let at = rows(hidden.at.images, self.second.cout);
        let dw = &mut grads[self.second_weight.clone()];
        conv::backward_weights(self.second, hidden.at, &hidden.data, at, gradient, dw);
        let mut dy = pool.take(hidden.at);
        let weight = &params[self.second_weight.clone()];
        let (dyg, data) = dy.parts_mut();
        conv::backward_input(self.second, at, gradient, weight, dyg, data, false);
        let dz = self.first.backward(params, &first, &mut dy, grads, pool);
        let mut dx = pool.take(first.input());
        self.first.backward_input(params, &dz, &mut dx, false);
        Some(dx.data.clone())
    }
}
