//! ResNets (He et al. 2015) with explicit forward and backward passes over channels-last maps.

use std::sync::Arc;

use super::buffer::{Buffer, Pool};
use super::config::{BlockKind, BlockSpec, EncoderConfig, Stem};
use super::differentiable::Differentiable;
use super::kernels::conv::ConvShape;
use super::kernels::geometry::Geometry;
use super::kernels::pool;
use super::layout::{Layout, Role};
use super::unit::{Mode, Recorded, State, Tail, Unit};
use super::weights::{Weights, WeightsError};

/// An encoder: pictures to representations. Holds shapes and places; the values travel beside it.
#[derive(Debug)]
pub struct ResNet {
    config: EncoderConfig,
    params: Layout,
    statistics: Layout,
    stem: Unit,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    units: Vec<Unit>,
    shortcut: Option<Unit>,
}

/// What a backward pass needs of the forward pass.
pub struct Tape {
    stem: Recorded,
    /// The stem's output and its max-pool, where there is one.
    pooled: Option<(Arc<Buffer>, Arc<Buffer>)>,
    blocks: Vec<BlockTape>,
    last: Geometry,
    mode: Mode,
}

/// What a block's backward pass needs of its forward pass.
enum BlockTape {
    /// Everything.
    Kept(Vec<Recorded>, Option<Recorded>),
    /// The input, out of which the rest is computed again.
    Input(Arc<Buffer>),
}

impl ResNet {
    /// An encoder of that configuration.
    pub fn new(config: &EncoderConfig) -> Result<Self, WeightsError> {
        let shapes = Weights::random(config, 0);
        let params = Layout::of(&shapes, |role| role != Role::Statistic);
        let statistics = Layout::of(&shapes, |role| role == Role::Statistic);
        let (kernel, stride) = config.stem_convolution();
        let conv =
            ConvShape { kernel, stride, cin: 3, cout: config.stem_channels(), precision: config.precision };
        let stem = Unit::new(conv, config.norm, ["stem.conv", "stem.norm"], [&params, &statistics])?;
        let blocks = config.blocks();
        let blocks = blocks
            .iter()
            .map(|spec| Block::new(spec, config, [&params, &statistics]))
            .collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), params, statistics, stem, blocks })
    }

    /// Its configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The geometry of the first layer's input: the pictures with the border that it needs.
    fn input(&self, images: usize) -> Geometry {
        let size = self.config.image_size;
        Geometry { images, height: size, width: size, channels: 3, pad: self.stem.conv.pad() }
    }

    /// A block's forward pass once more. The running statistics have moved already.
    fn again(
        &self,
        block: &Block,
        params: &[f32],
        x: &Arc<Buffer>,
        mode: Mode,
        pool: &Arc<Pool>,
    ) -> RecordedBlock {
        let statistics = &mut vec![0f32; self.statistics.len()][..];
        let mut state = State { params, statistics, mode, pool, record: true };
        block.forward(&mut state, x, self.block_pad()).1.unwrap_or_default()
    }

    /// Border that the first convolution of a block needs.
    fn block_pad(&self) -> usize {
        match self.config.arch.block_kind() {
            BlockKind::Basic => 1,
            BlockKind::Bottleneck => 0,
        }
    }
}

impl Differentiable for ResNet {
    type Tape = Tape;

    fn params(&self) -> &Layout {
        &self.params
    }

    fn statistics(&self) -> &Layout {
        &self.statistics
    }

    fn output_dim(&self) -> usize {
        self.config.dim()
    }

    /// Pictures `[images, size, size, 3]`, already normalised, to representations `[images, dim]` (`[images, channels,
    /// grid · grid]` with a grid).
    ///
    /// # Panics
    /// If the slices do not have the sizes that the configuration gives.
    fn forward(&self, state: &mut State, pictures: &[f32]) -> (Vec<f32>, Option<Tape>) {
        let per_picture = self.config.image_size * self.config.image_size * 3;
        assert!(pictures.len().is_multiple_of(per_picture), "whole pictures");
        assert_eq!(state.params.len(), self.params.len());
        assert_eq!(state.statistics.len(), self.statistics.len());
        let images = pictures.len() / per_picture;
        let x = Arc::new(with_border(pictures, state.pool.take(self.input(images))));
        let pooled = self.config.stem == Stem::Imagenet;
        let pad = if pooled { 0 } else { self.block_pad() };
        let (mut y, stem) = self.stem.forward(state, &x, Tail { residual: None, relu: true, pad });
        drop(x);
        let mut stem_pool = None;
        if pooled {
            let mut p = state.pool.take(pool::max_pool_output(y.at).with_pad(self.block_pad()));
            pool::max_pool(y.at, &y.data, p.at, &mut p.data);
            let p = Arc::new(p);
            stem_pool = Some((y, p.clone()));
            y = p;
        }
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let record = state.record;
        for block in &self.blocks {
            state.record = record && !self.config.recompute;
            let (out, recorded) = block.forward(state, &y, self.block_pad());
            let input = std::mem::replace(&mut y, out);
            blocks.push(match recorded {
                Some((units, shortcut)) => BlockTape::Kept(units, shortcut),
                None => BlockTape::Input(input),
            });
        }
        state.record = record;
        let mut representation = vec![0f32; images * self.config.dim()];
        match self.config.grid {
            1 => pool::average_pool(y.at, &y.data, &mut representation),
            grid => pool::grid_pool(y.at, &y.data, grid, &mut representation),
        }
        let tape = stem.map(|stem| Tape {
            stem,
            pooled: stem_pool,
            blocks,
            last: y.at.with_pad(0),
            mode: state.mode,
        });
        (representation, tape)
    }

    /// From the gradient of the representations `[images, dim]`.
    fn backward(
        &self,
        params: &[f32],
        tape: Tape,
        gradient: &[f32],
        grads: &mut [f32],
        pool: &Arc<Pool>,
    ) -> Option<Vec<f32>> {
        assert_eq!(self.config.grid, 1, "a grid is for readouts, which are not trained");
        let mut dy = pool.take(tape.last);
        pool::average_pool_backward(gradient, dy.at, &mut dy.data);
        let Tape { stem, pooled, blocks, mode, .. } = tape;
        for (block, tape) in self.blocks.iter().zip(blocks).rev() {
            let recorded = match tape {
                BlockTape::Kept(units, shortcut) => (units, shortcut),
                BlockTape::Input(x) => self.again(block, params, &x, mode, pool),
            };
            dy = block.backward(params, recorded, dy, grads, pool);
        }
        if let Some((before, after)) = pooled {
            let mut dx = pool.take(before.at);
            let (x, y) = ((before.at, &before.data[..]), (after.at, &after.data[..]));
            pool::max_pool_backward(x, y, (dy.at, &dy.data), dx.parts_mut());
            dy = dx;
        }
        self.stem.backward(params, &stem, &mut dy, grads, pool);
        None
    }
}

/// Copies pictures without a border into a map that has one.
fn with_border(pictures: &[f32], mut to: Buffer) -> Buffer {
    let g = to.at;
    let row = g.width * g.channels;
    for (i, from) in pictures.chunks_exact(row).enumerate() {
        let start = g.origin() + (i / g.height) * g.image_stride() + (i % g.height) * g.row_stride();
        to.data[start..start + row].copy_from_slice(from);
    }
    to
}

/// What each unit of a block, and its shortcut, recorded.
type RecordedBlock = (Vec<Recorded>, Option<Recorded>);

impl Block {
    fn new(spec: &BlockSpec, config: &EncoderConfig, layouts: [&Layout; 2]) -> Result<Self, WeightsError> {
        let precision = config.precision;
        let unit = |(i, kernel, stride, cin, cout)| {
            let conv = ConvShape { kernel, stride, cin, cout, precision };
            let name = &spec.name;
            Unit::new(conv, config.norm, [&format!("{name}.conv{i}"), &format!("{name}.norm{i}")], layouts)
        };
        let units = spec.convolutions().into_iter().map(unit).collect::<Result<_, _>>()?;
        let name = format!("{}.shortcut", spec.name);
        let conv = ConvShape { kernel: 1, stride: spec.stride, cin: spec.cin, cout: spec.cout, precision };
        let shortcut = spec
            .has_projection()
            .then(|| {
                Unit::new(conv, config.norm, [&format!("{name}.conv"), &format!("{name}.norm")], layouts)
            })
            .transpose()?;
        Ok(Self { units, shortcut })
    }

    fn forward(
        &self,
        state: &mut State,
        x: &Arc<Buffer>,
        pad: usize,
    ) -> (Arc<Buffer>, Option<RecordedBlock>) {
        let tail = Tail { residual: None, relu: false, pad: 0 };
        let (residual, shortcut) = match &self.shortcut {
            Some(unit) => unit.forward(state, x, tail),
            None => (x.clone(), None),
        };
        let mut y = x.clone();
        let mut recorded = Vec::with_capacity(self.units.len());
        for (i, unit) in self.units.iter().enumerate() {
            let next = self.units.get(i + 1);
            let tail = Tail {
                residual: next.is_none().then_some(&*residual),
                relu: true,
                pad: next.map_or(pad, |n| n.conv.pad()),
            };
            let (out, r) = unit.forward(state, &y, tail);
            y = out;
            recorded.extend(r);
        }
        (y, state.record.then_some((recorded, shortcut)))
    }

    /// The gradient of the block's output to that of its input.
    fn backward(
        &self,
        params: &[f32],
        (recorded, shortcut): RecordedBlock,
        dy: Buffer,
        grads: &mut [f32],
        pool: &Arc<Pool>,
    ) -> Buffer {
        let input = recorded[0].input();
        // The last unit masks `skip` in place, which makes it the shortcut's gradient.
        let mut skip = dy;
        let mut inner: Option<Buffer> = None;
        for (i, (unit, recorded)) in self.units.iter().zip(recorded).enumerate().rev() {
            let dy = inner.as_mut().unwrap_or(&mut skip);
            let dz = unit.backward(params, &recorded, dy, grads, pool);
            if i > 0 {
                let mut dx = pool.take(recorded.input());
                unit.backward_input(params, &dz, &mut dx, false);
                inner = Some(dx);
            } else if self.shortcut.is_none() {
                unit.backward_input(params, &dz, &mut skip, true);
            } else {
                let mut dx = pool.take(input);
                unit.backward_input(params, &dz, &mut dx, false);
                inner = Some(dx);
            }
        }
        let (Some(unit), Some(recorded), Some(mut dx)) = (&self.shortcut, shortcut, inner) else {
            return skip;
        };
        let dz = unit.backward(params, &recorded, &mut skip, grads, pool);
        unit.backward_input(params, &dz, &mut dx, true);
        dx
    }
}
