//! A convolution with its batch norm, on the device: forward and backward.

use std::rc::Rc;

use super::device::{Address, Convolution, Device, Pass, Result};
use super::layout::DeviceLayout;
use super::memory::{Buffer, Pool};
use super::sweeps::{self, MapShape, NormArrays, NormShape, NormTape};
use crate::nn::weights::WeightsError;

/// Maps in the device's memory, channels last.
pub struct Map<D: Device> {
    /// Sizes.
    pub shape: MapShape,
    /// Values.
    pub data: Buffer<D>,
}

/// Memory for maps of that shape.
pub fn take_map<D: Device>(pool: &Rc<Pool<D>>, shape: MapShape) -> Result<Map<D>> {
    let bytes = sweeps::value_bytes(pool.device().precision());
    Ok(Map { shape, data: pool.take(bytes * shape.pixels() * shape.channels)? })
}

/// The flat arrays that a network reads in a forward pass.
pub struct State<'a, D: Device> {
    /// Memory.
    pub pool: &'a Rc<Pool<D>>,
    /// Trained arrays in f32.
    pub params: &'a Buffer<D>,
    /// The same as the layers read them: bf16, or the f32 ones.
    pub weights: &'a Buffer<D>,
    /// Running statistics.
    pub statistics: &'a Buffer<D>,
    /// Views in the batch, each with statistics of its own; none: the running ones normalise.
    pub views: Option<usize>,
    /// Keeps what the backward pass needs.
    pub record: bool,
}

impl<D: Device> State<'_, D> {
    /// Where a layer's weights are.
    pub fn weight(&self, start: usize) -> Address {
        self.weights.at() + (start * sweeps::value_bytes(self.pool.device().precision())) as Address
    }
}

/// Where gradients go.
pub struct Gradients<'a, D: Device> {
    /// All trained arrays, f32.
    pub all: &'a Buffer<D>,
    /// Those of convolutions, as maps are.
    pub filters: &'a Buffer<D>,
    /// What is written to `all` is added.
    pub add: bool,
}

/// The place of a value in a flat f32 vector.
pub fn at<D: Device>(flat: &Buffer<D>, start: usize) -> Address {
    flat.at() + 4 * start as Address
}

/// A norm with the places of its arrays.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Channels.
    pub channels: usize,
    gamma: usize,
    beta: usize,
    mean: usize,
    variance: usize,
}

/// What a norm's backward pass needs.
pub struct NormRecord<D: Device> {
    z: Buffer<D>,
    statistics: Buffer<D>,
    of: NormShape,
    y: Option<Rc<Map<D>>>,
    relu: bool,
}

impl Norm {
    /// The norm whose arrays are `{name}.…`.
    pub fn new(
        name: &str,
        channels: usize,
        params: &DeviceLayout,
        statistics: &DeviceLayout,
    ) -> Result<Self, WeightsError> {
        Ok(Self {
            channels,
            gamma: params.start(&format!("{name}.weight"))?,
            beta: params.start(&format!("{name}.bias"))?,
            mean: statistics.start(&format!("{name}.running_mean"))?,
            variance: statistics.start(&format!("{name}.running_var"))?,
        })
    }

    /// `relu(norm(z) + residual)`.
    pub fn forward<D: Device>(
        &self,
        state: &State<D>,
        z: Map<D>,
        residual: Option<&Map<D>>,
        relu: bool,
    ) -> Result<Kept<D, NormRecord<D>>> {
        let Map { shape, data: z } = z;
        let views = state.views.unwrap_or(1);
        let of = NormShape { views, rows: shape.pixels() / views, channels: self.channels };
        let arrays = NormArrays {
            gamma: at(state.params, self.gamma),
            beta: at(state.params, self.beta),
            mean: at(state.statistics, self.mean),
            variance: at(state.statistics, self.variance),
        };
        let statistics = match state.views {
            Some(_) => sweeps::norm_statistics(state.pool, &z, of, arrays)?,
            None => sweeps::norm_running(state.pool, self.channels, arrays)?,
        };
        let y = take_map(state.pool, shape)?;
        let added = residual.map(|r| &r.data);
        sweeps::norm_apply(state.pool.device(), (&z, &statistics), added, relu, &y.data, of)?;
        let y = Rc::new(y);
        let kept = (relu && residual.is_some()).then(|| y.clone());
        let record = state.record.then_some(NormRecord { z, statistics, of, y: kept, relu });
        Ok((y, record))
    }

    /// Turns the gradient of the output (`dy` + `dy2`) into that of `z`, in place; and gives the
    /// gradient behind the ReLU if `skip` is asked for.
    pub fn backward<D: Device>(
        &self,
        pool: &Rc<Pool<D>>,
        record: &NormRecord<D>,
        dy: &Map<D>,
        dy2: Option<Map<D>>,
        skip: bool,
        gradients: &Gradients<D>,
    ) -> Result<Option<Map<D>>> {
        let NormRecord { z, statistics, y, relu, of } = record;
        let tape = NormTape { z, statistics, y: y.as_ref().map(|y| &y.data), relu: *relu };
        let own = match (&dy2, skip) {
            (None, true) => Some(take_map(pool, dy.shape)?),
            _ => None,
        };
        let into = own.as_ref().or(dy2.as_ref().filter(|_| skip)).map(|map| &map.data);
        let parameters = (at(gradients.all, self.gamma), at(gradients.all, self.beta), gradients.add);
        sweeps::norm_backward(pool, &tape, (&dy.data, dy2.as_ref().map(|m| &m.data)), into, parameters, *of)?;
        Ok(if skip { own.or(dy2) } else { None })
    }
}

/// A convolution's kernel.
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// Height and width.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Channels out.
    pub cout: usize,
}

/// A layer's output, and what its backward pass needs if that is kept.
pub type Kept<D, R> = (Rc<Map<D>>, Option<R>);

/// One convolution and norm.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    filter: Filter,
    weight: usize,
    norm: Norm,
}

/// What a unit's backward pass needs of its forward pass.
pub struct Recorded<D: Device> {
    x: Rc<Map<D>>,
    norm: NormRecord<D>,
}

impl Unit {
    /// The unit whose convolution is `{conv}.weight` and whose norm is `{norm}.…`.
    pub fn new(
        filter: Filter,
        (conv_name, norm_name): (&str, &str),
        params: &DeviceLayout,
        statistics: &DeviceLayout,
    ) -> Result<Self, WeightsError> {
        let weight = params.start(&format!("{conv_name}.weight"))?;
        Ok(Self { filter, weight, norm: Norm::new(norm_name, filter.cout, params, statistics)? })
    }

    fn convolution(&self, x: MapShape) -> Convolution {
        let Filter { kernel, stride, cout } = self.filter;
        let MapShape { images, height, width, channels: cin } = x;
        Convolution { images, height, width, cin, cout, kernel, stride }
    }

    /// `relu(norm(conv(x)) + residual)`.
    pub fn forward<D: Device>(
        &self,
        state: &State<D>,
        x: &Rc<Map<D>>,
        residual: Option<&Map<D>>,
        relu: bool,
    ) -> Result<Kept<D, Recorded<D>>> {
        let conv = self.convolution(x.shape);
        let (height, width) = (conv.output_size(x.shape.height), conv.output_size(x.shape.width));
        let shape = MapShape { images: x.shape.images, height, width, channels: conv.cout };
        let z = take_map(state.pool, shape)?;
        let weight = state.weight(self.weight);
        // SAFETY: `x` and `z` are maps of the convolution's sizes, the layout has room for its weights.
        unsafe { state.pool.device().convolve(&conv, Pass::Forward, x.data.at(), weight, z.data.at())? };
        let (y, record) = self.norm.forward(state, z, residual, relu)?;
        Ok((y, record.map(|norm| Recorded { x: x.clone(), norm })))
    }

    /// Through ReLU, norm and the convolution's weights: `dy` becomes the gradient of the
    /// convolution's output. Gives the gradient behind the ReLU if `skip` is asked for.
    pub fn backward<D: Device>(
        &self,
        pool: &Rc<Pool<D>>,
        recorded: &Recorded<D>,
        dy: &Map<D>,
        dy2: Option<Map<D>>,
        skip: bool,
        gradients: &Gradients<D>,
    ) -> Result<Option<Map<D>>> {
        let skip = self.norm.backward(pool, &recorded.norm, dy, dy2, skip, gradients)?;
        let device = pool.device();
        let offset = self.weight * sweeps::value_bytes(device.precision());
        let (x, dw) = (recorded.x.data.at(), gradients.filters.at() + offset as Address);
        let conv = self.convolution(recorded.x.shape);
        // SAFETY: as in the forward pass.
        unsafe { device.convolve(&conv, Pass::Weight, x, dw, dy.data.at())? };
        Ok(skip)
    }

    /// From the gradient of the convolution's output to that of its input.
    pub fn backward_input<D: Device>(&self, state: &State<D>, x: MapShape, dz: &Map<D>) -> Result<Map<D>> {
        let dx = take_map(state.pool, x)?;
        let weight = state.weight(self.weight);
        let conv = self.convolution(x);
        // SAFETY: as in the forward pass.
        unsafe { state.pool.device().convolve(&conv, Pass::Input, dx.data.at(), weight, dz.data.at())? };
        Ok(dx)
    }
}

impl<D: Device> Recorded<D> {
    /// Sizes of the unit's input.
    pub fn input(&self) -> MapShape {
        self.x.shape
    }
}
