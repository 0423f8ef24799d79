//! Projector and predictor on the device: linear, batch norm, ReLU, linear.

use std::rc::Rc;

use super::device::{Device, Linear, Pass, Product, Result};
use super::layout::DeviceLayout;
use super::memory::Buffer;
use super::sweeps::MapShape;
use super::unit::{Gradients, Map, Norm, NormRecord, State, at, take_map};
use crate::nn::mlp::MlpShape;
use crate::nn::weights::WeightsError;

/// Shapes and places of a perceptron of two layers.
#[derive(Debug)]
pub struct DeviceMlp {
    shape: MlpShape,
    first: usize,
    second: usize,
    norm: Norm,
}

/// What a backward pass needs of the forward pass.
pub struct Tape<D: Device> {
    x: Map<D>,
    norm: NormRecord<D>,
    hidden: Rc<Map<D>>,
}

/// Rows of features, as maps of one pixel.
pub fn rows(count: usize, features: usize) -> MapShape {
    MapShape { images: count, height: 1, width: 1, channels: features }
}

impl DeviceMlp {
    /// The perceptron whose weights bear `name`.
    pub fn new(
        shape: MlpShape,
        name: &str,
        params: &DeviceLayout,
        statistics: &DeviceLayout,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            shape,
            first: params.start(&format!("{name}.linear1.weight"))?,
            second: params.start(&format!("{name}.linear2.weight"))?,
            norm: Norm::new(&format!("{name}.norm"), shape.hidden, params, statistics)?,
        })
    }

    fn layers(&self, rows: usize) -> (Linear, Linear) {
        let MlpShape { input, hidden, output, .. } = self.shape;
        (Linear { rows, inputs: input, outputs: hidden }, Linear { rows, inputs: hidden, outputs: output })
    }

    /// `[rows, input]` to `[rows, output]`, in f32 if `wide`.
    pub fn forward<D: Device>(
        &self,
        state: &State<D>,
        x: Map<D>,
        wide: bool,
    ) -> Result<(Map<D>, Option<Tape<D>>)> {
        let count = x.shape.images;
        let (first, second) = self.layers(count);
        let z = take_map(state.pool, rows(count, first.outputs))?;
        let (w, y) = (state.weight(self.first), z.data.at());
        let product = Product { x: x.data.at(), w, y, wide: false, add: false };
        // SAFETY: the maps have the layer's sizes, the layout has room for its weights.
        unsafe { state.pool.device().multiply(first, Pass::Forward, product)? };
        let (hidden, norm) = self.norm.forward(state, z, None, true)?;
        let shape = rows(count, second.outputs);
        let out = match wide {
            true => Map { shape, data: state.pool.take(4 * count * second.outputs)? },
            false => take_map(state.pool, shape)?,
        };
        let (w, y) = (state.weight(self.second), out.data.at());
        // SAFETY: as above; `out` holds f32 where it is written in f32.
        unsafe {
            let product = Product { x: hidden.data.at(), w, y, wide, add: false };
            state.pool.device().multiply(second, Pass::Forward, product)?;
        }
        Ok((out, norm.map(|norm| Tape { x, norm, hidden })))
    }

    /// From the gradient of the output, as maps are, to that of the input.
    pub fn backward<D: Device>(
        &self,
        state: &State<D>,
        tape: Tape<D>,
        gradient: &Buffer<D>,
        gradients: &Gradients<D>,
    ) -> Result<Map<D>> {
        let Tape { x, norm, hidden } = tape;
        let device = state.pool.device();
        let (first, second) = self.layers(x.shape.images);
        let weights = |layer, x: &Map<D>, start, dy: &Buffer<D>| {
            let w = at(gradients.all, start);
            let product = Product { x: x.data.at(), w, y: dy.at(), wide: true, add: gradients.add };
            // SAFETY: as in the forward pass; gradients are f32.
            unsafe { device.multiply(layer, Pass::Weight, product) }
        };
        let input = |layer, start, dx: &Map<D>, dy: &Buffer<D>| {
            let w = state.weight(start);
            let product = Product { x: dx.data.at(), w, y: dy.at(), wide: false, add: false };
            // SAFETY: as in the forward pass.
            unsafe { device.multiply(layer, Pass::Input, product) }
        };
        weights(second, &hidden, self.second, gradient)?;
        let dy = take_map(state.pool, hidden.shape)?;
        input(second, self.second, &dy, gradient)?;
        self.norm.backward(state.pool, &norm, &dy, None, false, gradients)?;
        weights(first, &x, self.first, &dy.data)?;
        let dx = take_map(state.pool, x.shape)?;
        input(first, self.first, &dx, &dy.data)?;
        Ok(dx)
    }
}
