//! BYOL's step on the device; see [`crate::method::byol`], whose steps these are.

use std::rc::Rc;

use super::device::{CudaError, Device, Result};
use super::encoder::Encoder;
use super::layout::DeviceLayout;
use super::memory::{Buffer, Pool};
use super::mlp::{DeviceMlp, rows};
use super::sweeps;
use super::tables::Tables;
use super::unit::{Gradients, Map, State, take_map};
use crate::device::Precision;
use crate::method::byol::{Snapshot, StepReport, StepSettings};
use crate::method::learner::Start;
use crate::nn::config::Norm;
use crate::nn::differentiable::Differentiable;
use crate::nn::layout::Layout;
use crate::nn::mlp::Mlp;
use crate::nn::resnet::ResNet;
use crate::nn::weights::{Weights, WeightsError};
use crate::optim::lars::LarsConfig;

/// Pictures that [`DeviceByol::encode`] takes at a time.
const ENCODED_AT_ONCE: usize = 256;

/// A network's values on the device.
struct Values<D: Device> {
    layout: DeviceLayout,
    statistics_layout: DeviceLayout,
    params: Buffer<D>,
    /// The parameters as the layers read them, where that is not f32.
    narrowed: Option<Buffer<D>>,
    statistics: Buffer<D>,
}

impl<D: Device> Values<D> {
    fn new(pool: &Rc<Pool<D>>, parts: &[(&Layout, &Layout)], weights: &Weights) -> Result<Self, OpenError> {
        let pack = sweeps::pack(pool.device().precision());
        let (params, statistics): (Vec<&Layout>, Vec<&Layout>) = parts.iter().copied().unzip();
        let layout = DeviceLayout::new(&params, pack);
        let statistics_layout = DeviceLayout::new(&statistics, pack);
        let params = pool.copy_of(&layout.flatten(weights)?)?;
        let statistics = pool.copy_of(&statistics_layout.flatten(weights)?)?;
        let narrowed = match pool.device().precision() {
            Precision::Bf16 => {
                let narrowed = pool.take(2 * layout.len())?;
                sweeps::cast(pool.device(), &params, &narrowed, layout.len())?;
                Some(narrowed)
            }
            Precision::Tf32 | Precision::F32 => None,
        };
        Ok(Self { layout, statistics_layout, params, narrowed, statistics })
    }

    fn state<'a>(&'a self, pool: &'a Rc<Pool<D>>, views: Option<usize>, record: bool) -> State<'a, D> {
        let weights = self.narrowed.as_ref().unwrap_or(&self.params);
        State { pool, params: &self.params, weights, statistics: &self.statistics, views, record }
    }

    fn save(&self) -> Result<Weights> {
        let mut weights = Weights::default();
        self.layout.unflatten(&self.params.to_vec(self.layout.len())?, &mut weights);
        let statistics = self.statistics.to_vec(self.statistics_layout.len())?;
        self.statistics_layout.unflatten(&statistics, &mut weights);
        Ok(weights)
    }
}

/// Why a run could not be put on a device.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The weights are of another network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] CudaError),
}

/// Everything that a BYOL run trains, on a device.
pub struct DeviceByol<D: Device> {
    pool: Rc<Pool<D>>,
    image_size: usize,
    /// Features of representations and projections.
    features: (usize, usize),
    encoder: Encoder,
    projector: DeviceMlp,
    predictor: Option<DeviceMlp>,
    online: Values<D>,
    target: Values<D>,
    lars: LarsConfig,
    tables: Tables<D>,
    velocity: Buffer<D>,
    gradients: Buffer<D>,
    filters: Buffer<D>,
    report: Buffer<D>,
}

impl<D: Device> DeviceByol<D> {
    /// A run from the given weights.
    pub fn new(device: D, start: &Start) -> Result<Self, OpenError> {
        let pool = Pool::new(Rc::new(device));
        let heads = start.heads;
        let shapes = [heads.projector_shape(start.encoder), heads.predictor_shape(start.encoder)];
        let (resnet, projector) = (ResNet::new(start.encoder)?, Mlp::new(shapes[0], "projector")?);
        if start.encoder.norm != Norm::Batch {
            let norm = start.encoder.norm.as_str();
            return Err(CudaError(format!("{norm} is not there for a GPU yet: use --device cpu")).into());
        }
        let predictor = heads.predictor.then(|| Mlp::new(shapes[1], "predictor")).transpose()?;
        let network = [(resnet.params(), resnet.statistics()), (projector.params(), projector.statistics())];
        let predictor = predictor.as_ref().map(|p| (p.params(), p.statistics()));
        let all: Vec<_> = network.iter().copied().chain(predictor).collect();
        let online = Values::new(&pool, &all, start.online)?;
        let target = Values::new(&pool, &network, start.target.unwrap_or(start.online))?;
        let (layout, statistics) = (&online.layout, &online.statistics_layout);
        let bytes = sweeps::value_bytes(pool.device().precision());
        Ok(Self {
            image_size: start.encoder.image_size,
            features: (start.encoder.dim(), heads.projection),
            encoder: Encoder::new(start.encoder, layout, statistics)?,
            projector: DeviceMlp::new(shapes[0], "projector", layout, statistics)?,
            predictor: predictor
                .map(|_| DeviceMlp::new(shapes[1], "predictor", layout, statistics))
                .transpose()?,
            lars: start.lars,
            tables: Tables::new(&pool, layout)?,
            velocity: pool.zeros(layout.len())?,
            gradients: pool.zeros(layout.len())?,
            filters: pool.take(bytes * layout.len())?,
            report: pool.zeros(2)?,
            online,
            target,
            pool,
        })
    }

    /// One update from two views of the same pictures; gives the reports that arrived.
    pub fn step(&mut self, view1: &[f32], view2: &[f32], settings: StepSettings) -> Result<Vec<StepReport>> {
        let picture = self.image_size * self.image_size * 3;
        let (pictures, parts) = (view1.len() / picture, settings.accumulate);
        if view1.len() != view2.len() || pictures == 0 || !view1.len().is_multiple_of(picture) {
            let size = self.image_size;
            return Err(CudaError(format!(
                "two views of the same pictures, {size}×{size}×3 values each, are needed"
            )));
        }
        if parts == 0 || !pictures.is_multiple_of(parts) {
            return Err(CudaError(format!(
                "a batch of {pictures} pictures cannot be cut into {parts} equal parts"
            )));
        }
        self.report.clear()?;
        let len = pictures / parts * picture;
        for (i, (view1, view2)) in view1.chunks_exact(len).zip(view2.chunks_exact(len)).enumerate() {
            self.part(view1, view2, 2 * pictures / parts, parts, i > 0)?;
        }
        let device = self.pool.device();
        let arrays = sweeps::LarsArrays {
            weights: &self.online.params,
            gradients: &self.gradients,
            velocity: &self.velocity,
            narrowed: self.online.narrowed.as_ref(),
            chunks: &self.tables.chunks,
            arrays: &self.tables.arrays,
            counts: self.tables.counts,
        };
        sweeps::lars(&self.pool, &arrays, self.lars, settings.learning_rate as f32)?;
        let (target, count) = (&self.target, self.target.layout.len());
        let narrowed = target.narrowed.as_ref();
        sweeps::moving_average(device, (&target.params, &self.online.params), narrowed, count, settings.tau)?;
        // SAFETY: the report's buffer holds two f32.
        unsafe { device.send_report(self.report.at())? };
        device.reports(false)
    }

    /// Loss and gradients of one of so many parts of a batch.
    fn part(&self, view1: &[f32], view2: &[f32], images: usize, parts: usize, add: bool) -> Result<()> {
        let (pool, device) = (&self.pool, self.pool.device());
        let views = device.send_views(view1, view2)?;
        let target = self.target.state(pool, Some(2), false);
        let encoded = self.encoder.forward(&target, views, images)?;
        let (projection, _) = self.projector.forward(&target, encoded.narrowed, true)?;
        let online = self.online.state(pool, Some(2), true);
        let encoded = self.encoder.forward(&online, views, images)?;
        device.views_read()?;
        let (mut prediction, projector_tape) =
            self.projector.forward(&online, encoded.narrowed, self.predictor.is_none())?;
        let mut predictor_tape = None;
        if let Some(predictor) = &self.predictor {
            (prediction, predictor_tape) = predictor.forward(&online, prediction, true)?;
        }
        let (dim, features) = self.features;
        let share = 1.0 / parts as f32;
        let (losses, mut gradient) = (pool.take(4 * images)?, take_map(pool, rows(images, features))?);
        let pair = (&prediction.data, &projection.data);
        sweeps::loss(device, pair, (&losses, &gradient.data), (images, features), share)?;
        sweeps::report(pool, &losses, &encoded.representations, (images, dim), share, &self.report)?;
        let gradients = Gradients { all: &self.gradients, filters: &self.filters, add };
        if let (Some(predictor), Some(tape)) = (&self.predictor, predictor_tape) {
            gradient = predictor.backward(&online, tape, &gradient.data, &gradients)?;
        }
        let (Some(projector_tape), Some(tape)) = (projector_tape, encoded.tape) else {
            return Err(CudaError("a forward pass that should have recorded did not".into()));
        };
        let gradient = self.projector.backward(&online, projector_tape, &gradient.data, &gradients)?;
        self.encoder.backward(&online, tape, &gradient.data, &gradients)?;
        let filters = (&self.tables.filters, self.tables.filter_chunks);
        sweeps::gather(device, &self.filters, &self.gradients, filters, add)
    }

    /// Waits for all steps, and gives the reports not yet given.
    pub fn finish(&self) -> Result<Vec<StepReport>> {
        self.pool.device().reports(true)
    }

    /// Representations and projections of the online network, normalised by its running statistics.
    pub fn encode(&self, views: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let picture = self.image_size * self.image_size * 3;
        let (dim, features) = self.features;
        let (mut representations, mut projections) = (Vec::new(), Vec::new());
        let state = self.online.state(&self.pool, None, false);
        let total = views.len() / picture;
        // One size for all chunks, so that convolutions are planned once.
        let chunk = total.next_power_of_two().min(ENCODED_AT_ONCE);
        let mut padded = Vec::new();
        for part in views.chunks(chunk * picture) {
            padded.clear();
            padded.extend_from_slice(part);
            padded.resize(chunk * picture, 0.0);
            let at = self.pool.device().send_views(&padded, &[])?;
            let encoded = self.encoder.forward(&state, at, chunk)?;
            self.pool.device().views_read()?;
            let count = part.len() / picture;
            representations.extend(encoded.representations.to_vec(count * dim)?);
            let (projection, _): (Map<D>, _) = self.projector.forward(&state, encoded.narrowed, true)?;
            projections.extend(projection.data.to_vec(count * features)?);
        }
        Ok((representations, projections))
    }

    /// All arrays, for a checkpoint.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let layout = &self.online.layout;
        let mut velocity = Weights::default();
        layout.unflatten(&self.velocity.to_vec(layout.len())?, &mut velocity);
        Ok(Snapshot { online: self.online.save()?, target: self.target.save()?, velocity })
    }

    /// Takes up the optimiser's velocity of a snapshot.
    pub fn restore_velocity(&mut self, velocity: &Weights) -> Result<(), OpenError> {
        Ok(self.velocity.write(&self.online.layout.flatten(velocity)?)?)
    }
}
