//! A convolution with its batch norm: the unit that ResNets are made of.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::buffer::{Buffer, Pool};
use super::clock::{Phase, time};
use super::config::Norm;
use super::kernels::conv::{self, ConvShape};
use super::kernels::geometry::Geometry;
use super::kernels::norm::{self, Maps, Moments};
use super::kernels::standardise;
use super::layout::Layout;
use super::weights::WeightsError;

/// Weight of a batch in the running statistics, PyTorch's `momentum`.
pub(crate) const RUNNING_MOMENTUM: f32 = 0.1;

/// Whose statistics normalise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The batch's own, for each of so many views.
    Train {
        /// Views that the batch holds one after the other.
        views: usize,
    },
    /// The running ones.
    Eval,
}

/// The flat vectors that a network reads in a forward pass.
pub struct State<'a> {
    /// Trained arrays.
    pub params: &'a [f32],
    /// Running statistics, updated in training mode.
    pub statistics: &'a mut [f32],
    /// Which statistics normalise.
    pub mode: Mode,
    /// Memory for the maps.
    pub pool: &'a Arc<Pool>,
    /// Keeps what the backward pass needs.
    pub record: bool,
}

/// One convolution and norm, with the places of its arrays.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The convolution.
    pub conv: ConvShape,
    weight: Range<usize>,
    gamma: Range<usize>,
    beta: Range<usize>,
    norm: UnitNorm,
}

/// What normalises a unit, with the places of its statistics.
#[derive(Debug, Clone)]
enum UnitNorm {
    Batch {
        mean: Range<usize>,
        variance: Range<usize>,
    },
    /// Group norm over so many channels, with standardised weights.
    Group(usize),
}

/// What a unit's backward pass needs of its forward pass.
pub struct Recorded {
    x: Arc<Buffer>,
    z: Buffer,
    moments: Moments,
    /// The output, where it went through a ReLU.
    y: Option<Arc<Buffer>>,
}

impl Recorded {
    /// The unit's input, without a border.
    pub fn input(&self) -> Geometry {
        self.x.at.with_pad(0)
    }
}

/// What follows a unit's norm.
pub struct Tail<'a> {
    /// Added before the ReLU.
    pub residual: Option<&'a Buffer>,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Zero border of the output: what the next convolution needs.
    pub pad: usize,
}

impl Unit {
    /// The unit whose convolution is `{conv}.weight` and whose norm is `{norm}.…`.
    pub fn new(
        conv: ConvShape,
        norm: Norm,
        [conv_name, norm_name]: [&str; 2],
        [params, statistics]: [&Layout; 2],
    ) -> Result<Self, WeightsError> {
        let norm = match norm {
            Norm::Batch => UnitNorm::Batch {
                mean: statistics.range(&format!("{norm_name}.running_mean"))?,
                variance: statistics.range(&format!("{norm_name}.running_var"))?,
            },
            Norm::GnWs => UnitNorm::Group(Norm::group(conv.cout)),
        };
        Ok(Self {
            conv,
            weight: params.range(&format!("{conv_name}.weight"))?,
            gamma: params.range(&format!("{norm_name}.weight"))?,
            beta: params.range(&format!("{norm_name}.bias"))?,
            norm,
        })
    }

    /// `relu(norm(conv(x)) + residual)`, and what its backward pass needs.
    pub fn forward(&self, state: &mut State, x: &Arc<Buffer>, tail: Tail) -> (Arc<Buffer>, Option<Recorded>) {
        let mut z = state.pool.take(self.conv.output(x.at));
        let weight = &*self.weights(state.params);
        time(Phase::ConvForward, || conv::forward(self.conv, x.at, &x.data, weight, z.at, &mut z.data));
        let moments = time(Phase::NormForward, || self.moments(state, z.maps()));
        let (scale, shift) =
            moments.affine(&state.params[self.gamma.clone()], &state.params[self.beta.clone()]);
        let mut y = state.pool.take(z.at.with_pad(tail.pad));
        let (yg, data) = y.parts_mut();
        let residual = tail.residual.map(Buffer::maps);
        time(Phase::NormForward, || norm::apply(z.maps(), (&scale, &shift), residual, tail.relu, yg, data));
        let y = Arc::new(y);
        let recorded =
            state.record.then(|| Recorded { x: x.clone(), z, moments, y: tail.relu.then(|| y.clone()) });
        (y, recorded)
    }

    /// The weights that the convolution multiplies with.
    fn weights<'a>(&self, params: &'a [f32]) -> Cow<'a, [f32]> {
        let own = &params[self.weight.clone()];
        match self.norm {
            UnitNorm::Batch { .. } => Cow::Borrowed(own),
            UnitNorm::Group(_) => Cow::Owned(standardise::forward(own, self.conv.cout).weights),
        }
    }

    /// The statistics that normalise: each image's own, or the batch's, which also move the
    /// running ones, or those.
    fn moments(&self, state: &mut State, z: Maps) -> Moments {
        let (own_mean, own_variance) = match &self.norm {
            UnitNorm::Group(group) => return norm::group_moments(z, *group),
            UnitNorm::Batch { mean, variance } => (mean, variance),
        };
        let Mode::Train { views } = state.mode else {
            return Moments {
                mean: state.statistics[own_mean.clone()].to_vec(),
                variance: state.statistics[own_variance.clone()].to_vec(),
                group: 1,
            };
        };
        let moments = norm::moments(z, views);
        let count = (z.at.images / views * z.at.pixels()) as f32;
        let unbiased = count / (count - 1.0).max(1.0);
        let channels = self.conv.cout;
        for view in 0..views {
            let mean = &moments.mean[view * channels..][..channels];
            let variance = &moments.variance[view * channels..][..channels];
            for (running, new) in state.statistics[own_mean.clone()].iter_mut().zip(mean) {
                *running += RUNNING_MOMENTUM * (new - *running);
            }
            for (running, new) in state.statistics[own_variance.clone()].iter_mut().zip(variance) {
                *running += RUNNING_MOMENTUM * (new * unbiased - *running);
            }
        }
        moments
    }

    /// Through ReLU and norm: masks `dy` in place (it is then the residual's gradient), adds the
    /// norm's and the convolution's gradients to `grads`, gives the gradient of the convolution's output.
    pub fn backward(
        &self,
        params: &[f32],
        recorded: &Recorded,
        dy: &mut Buffer,
        grads: &mut [f32],
        pool: &Arc<Pool>,
    ) -> Buffer {
        let mut dz = pool.take(recorded.z.at.with_pad(self.conv.pad()));
        let y = recorded.y.as_ref().map(|y| y.maps());
        let gamma = &params[self.gamma.clone()];
        let norm = time(Phase::NormBackward, || {
            norm::backward(recorded.z.maps(), &recorded.moments, gamma, y, dy.parts_mut(), dz.parts_mut())
        });
        add(&mut grads[self.gamma.clone()], &norm.gamma);
        add(&mut grads[self.beta.clone()], &norm.beta);
        let (x, dw) = (&recorded.x, &mut grads[self.weight.clone()]);
        time(Phase::ConvWeights, || match self.norm {
            UnitNorm::Batch { .. } => conv::backward_weights(self.conv, x.at, &x.data, dz.at, &dz.data, dw),
            UnitNorm::Group(_) => {
                let mut gradient = vec![0f32; dw.len()];
                conv::backward_weights(self.conv, x.at, &x.data, dz.at, &dz.data, &mut gradient);
                standardise::forward(&params[self.weight.clone()], self.conv.cout).backward(&gradient, dw);
            }
        });
        dz
    }

    /// From the gradient of the convolution's output to that of its input, written or added to `dx`.
    pub fn backward_input(&self, params: &[f32], dz: &Buffer, dx: &mut Buffer, accumulate: bool) {
        let (dxg, data) = dx.parts_mut();
        let weight = &*self.weights(params);
        time(Phase::ConvInput, || {
            conv::backward_input(self.conv, dz.at, &dz.data, weight, dxg, data, accumulate);
        });
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
}
