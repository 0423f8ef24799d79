//! The ResNet encoder on the device: the same network as [`crate::nn::resnet`].

use std::rc::Rc;

use super::device::{Address, Device, Result};
use super::layout::DeviceLayout;
use super::memory::Buffer;
use super::sweeps::{self, MapShape};
use super::unit::{Filter, Gradients, Kept, Map, Recorded, State, Unit, take_map};
use crate::nn::config::{BlockSpec, EncoderConfig, Stem};
use crate::nn::weights::WeightsError;

/// Shapes and places; the values travel beside it.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    stem: Unit,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    units: Vec<Unit>,
    shortcut: Option<Unit>,
}

/// What the encoder makes of pictures.
pub struct Encoded<D: Device> {
    /// Representations `[images, dim]`, f32.
    pub representations: Buffer<D>,
    /// The same as the projector reads them.
    pub narrowed: Map<D>,
    /// For the backward pass.
    pub tape: Option<Tape<D>>,
}

/// What a backward pass needs of the forward pass.
pub struct Tape<D: Device> {
    stem: Recorded<D>,
    /// Sizes of the stem's output and which of its pixels the max-pool took.
    pooled: Option<(MapShape, Buffer<D>)>,
    blocks: Vec<RecordedBlock<D>>,
    last: MapShape,
}

struct RecordedBlock<D: Device> {
    units: Vec<Recorded<D>>,
    shortcut: Option<Recorded<D>>,
}

/// A gradient as the sum of up to two maps; whoever reads it adds them.
type Sum<D> = (Map<D>, Option<Map<D>>);

impl Encoder {
    /// An encoder of that configuration.
    pub fn new(
        config: &EncoderConfig,
        params: &DeviceLayout,
        statistics: &DeviceLayout,
    ) -> Result<Self, WeightsError> {
        let (kernel, stride) = config.stem_convolution();
        let filter = Filter { kernel, stride, cout: config.stem_channels() };
        let stem = Unit::new(filter, ("stem.conv", "stem.norm"), params, statistics)?;
        let blocks = config.blocks();
        let blocks =
            blocks.iter().map(|spec| Block::new(spec, params, statistics)).collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), stem, blocks })
    }

    /// Normalised pictures `[images, size, size, 3]` f32, on the device, to representations.
    pub fn forward<D: Device>(
        &self,
        state: &State<D>,
        pictures: Address,
        images: usize,
    ) -> Result<Encoded<D>> {
        let device = state.pool.device();
        let (size, channels) = (self.config.image_size, sweeps::pack(device.precision()));
        let x = take_map(state.pool, MapShape { images, height: size, width: size, channels })?;
        sweeps::pack_views(device, pictures, &x.data, x.shape.pixels())?;
        let (mut y, stem) = self.stem.forward(state, &Rc::new(x), None, true)?;
        let mut pooled = None;
        if self.config.stem == Stem::Imagenet {
            let p = take_map(state.pool, y.shape.pooled())?;
            let index = state.pool.take(p.shape.pixels() * p.shape.channels)?;
            sweeps::max_pool(device, &y.data, &p.data, &index, y.shape)?;
            pooled = Some((y.shape, index));
            y = Rc::new(p);
        }
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (out, recorded) = block.forward(state, &y)?;
            y = out;
            blocks.extend(recorded);
        }
        let last = y.shape;
        let representations = state.pool.take(4 * images * last.channels)?;
        let narrowed = take_map(state.pool, MapShape { height: 1, width: 1, ..last })?;
        sweeps::average_pool(device, &y.data, &representations, &narrowed.data, last)?;
        let tape = stem.map(|stem| Tape { stem, pooled, blocks, last });
        Ok(Encoded { representations, narrowed, tape })
    }

    /// From the gradient of the representations, as maps are, to those of the trained arrays.
    pub fn backward<D: Device>(
        &self,
        state: &State<D>,
        tape: Tape<D>,
        gradient: &Buffer<D>,
        gradients: &Gradients<D>,
    ) -> Result<()> {
        let Tape { stem, pooled, blocks, last } = tape;
        let (pool, device) = (state.pool, state.pool.device());
        let mut dy = (take_map(pool, last)?, None);
        sweeps::average_pool_backward(device, gradient, &dy.0.data, last)?;
        for (block, recorded) in self.blocks.iter().zip(blocks).rev() {
            dy = block.backward(state, recorded, dy, gradients)?;
        }
        if let Some((shape, index)) = pooled {
            let dx = take_map(pool, shape)?;
            let sum = (&dy.0.data, dy.1.as_ref().map(|m| &m.data));
            sweeps::max_pool_backward(device, sum, &index, &dx.data, shape)?;
            dy = (dx, None);
        }
        self.stem.backward(pool, &stem, &dy.0, dy.1, false, gradients)?;
        Ok(())
    }
}

impl Block {
    fn new(spec: &BlockSpec, params: &DeviceLayout, statistics: &DeviceLayout) -> Result<Self, WeightsError> {
        let name = &spec.name;
        let unit = |(i, kernel, stride, _, cout)| {
            let filter = Filter { kernel, stride, cout };
            Unit::new(filter, (&format!("{name}.conv{i}"), &format!("{name}.norm{i}")), params, statistics)
        };
        let units = spec.convolutions().into_iter().map(unit).collect::<Result<_, _>>()?;
        let name = format!("{name}.shortcut");
        let filter = Filter { kernel: 1, stride: spec.stride, cout: spec.cout };
        let names = (&*format!("{name}.conv"), &*format!("{name}.norm"));
        let shortcut =
            spec.has_projection().then(|| Unit::new(filter, names, params, statistics)).transpose()?;
        Ok(Self { units, shortcut })
    }

    fn forward<D: Device>(&self, state: &State<D>, x: &Rc<Map<D>>) -> Result<Kept<D, RecordedBlock<D>>> {
        let (residual, shortcut) = match &self.shortcut {
            Some(unit) => unit.forward(state, x, None, false)?,
            None => (x.clone(), None),
        };
        let mut y = x.clone();
        let mut units = Vec::with_capacity(self.units.len());
        for (i, unit) in self.units.iter().enumerate() {
            let added = (i + 1 == self.units.len()).then_some(&*residual);
            let (out, recorded) = unit.forward(state, &y, added, true)?;
            y = out;
            units.extend(recorded);
        }
        Ok((y, state.record.then_some(RecordedBlock { units, shortcut })))
    }

    /// The gradient of the block's output to that of its input.
    fn backward<D: Device>(
        &self,
        state: &State<D>,
        recorded: RecordedBlock<D>,
        (mut dy, mut dy2): Sum<D>,
        gradients: &Gradients<D>,
    ) -> Result<Sum<D>> {
        let mut skip = None;
        for (i, (unit, recorded)) in self.units.iter().zip(&recorded.units).enumerate().rev() {
            let last = i + 1 == self.units.len();
            let behind = unit.backward(state.pool, recorded, &dy, dy2.take(), last, gradients)?;
            skip = behind.or(skip);
            dy = unit.backward_input(state, recorded.input(), &dy)?;
        }
        if let (Some(unit), Some(recorded), Some(dz)) = (&self.shortcut, &recorded.shortcut, &skip) {
            unit.backward(state.pool, recorded, dz, None, false, gradients)?;
            skip = Some(unit.backward_input(state, recorded.input(), dz)?);
        }
        Ok((dy, skip))
    }
}
