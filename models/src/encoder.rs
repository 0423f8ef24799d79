//! The encoder: one ONNX Runtime session of an artefact.

mod error;
mod lane;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ndarray::{Array2, ArrayView4};
use ort::ep;
use ort::memory::Allocator;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session, SessionOutputs};
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

pub use self::error::EncoderError;
use self::lane::Lane;
use crate::artefact::Artefact;
use crate::embedding::Embedding;
use crate::manifest::Manifest;
use crate::pixels::Pixels;
use crate::preprocess::Preprocess;
use crate::runtime;

/// Where a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The CUDA GPU of this number.
    Cuda(i32),
    /// The CUDA GPU of this number, with engines of TensorRT for what of the graph it can take.
    TensorRt(i32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::TensorRt(number) => write!(f, "tensorrt:{number}"),
        }
    }
}

/// How a session runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads inside one run. With one session per core, 1 is fastest.
    pub intra_threads: usize,
    /// Where it runs.
    pub device: Device,
    /// A folder that keeps TensorRT's engines, which take minutes to build, for the next start.
    pub engines: Option<PathBuf>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { intra_threads: 1, device: Device::Cpu, engines: None }
    }
}

/// What the graph must take and give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphShape {
    /// Rows of the input.
    pub height: u32,
    /// Columns of the input.
    pub width: u32,
    /// Length of the output.
    pub dim: usize,
}

impl GraphShape {
    /// What the graph of a manifest's artefact must take and give.
    pub fn of(manifest: &Manifest) -> Self {
        let Preprocess { height, width, .. } = manifest.preprocess;
        Self { height, width, dim: manifest.output.dim }
    }
}

/// An encoder that can embed.
pub struct Encoder {
    shape: GraphShape,
    device: Device,
    /// Sizes of a run that are prepared, the smallest first. Before the session, which their memory is from.
    lanes: Vec<Lane>,
    session: Session,
    /// The batch as one tensor, kept from one run to the next.
    scratch: Vec<u8>,
}

/// What the first runs of a size took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmRun {
    /// Pictures of the run.
    pub pictures: usize,
    /// The first one, which chooses kernels and takes memory.
    pub first: Duration,
    /// The next.
    pub again: Duration,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder({:?})", self.shape)
    }
}

impl Encoder {
    /// Opens a session of the artefact; loads ONNX Runtime when that has not been done.
    ///
    /// # Errors
    /// See [`EncoderError`].
    pub fn open(artefact: &Artefact, options: &SessionOptions) -> Result<Self, EncoderError> {
        let shape = GraphShape::of(artefact.manifest());
        Self::from_source(Source::File(&artefact.model_path()), shape, options)
    }

    /// Opens a session of a graph in memory, e.g. before its artefact is written.
    ///
    /// # Errors
    /// See [`EncoderError`].
    pub fn from_onnx(onnx: &[u8], shape: GraphShape, options: &SessionOptions) -> Result<Self, EncoderError> {
        Self::from_source(Source::Memory(onnx), shape, options)
    }

    fn from_source(
        source: Source<'_>,
        shape: GraphShape,
        options: &SessionOptions,
    ) -> Result<Self, EncoderError> {
        let mut builder = builder(options)?;
        let session = match source {
            Source::File(path) => builder.commit_from_file(path),
            Source::Memory(bytes) => builder.commit_from_memory(bytes),
        }
        .map_err(|e| device_or_graph(options.device, &e))?;
        check_graph(&session, shape)?;
        Ok(Self { shape, device: options.device, lanes: Vec::new(), session, scratch: Vec::new() })
    }

    /// Prepares for runs of up to `most` pictures. On a GPU each new size of a run costs time once, for choosing
    /// kernels: so there are few sizes, smaller batches are filled up to the next one, each has page-locked memory
    /// bound to it, and runs here twice. On a CPU there is nothing to prepare.
    ///
    /// # Errors
    /// When a run fails.
    pub fn warm_up(&mut self, most: usize) -> Result<Vec<WarmRun>, EncoderError> {
        if self.device == Device::Cpu {
            return Ok(Vec::new());
        }
        let memory = lane::pinned(&self.session, self.device).unwrap_or_else(|error| {
            tracing::warn!(%error, "no page-locked memory: batches are copied from ordinary memory");
            Allocator::default()
        });
        self.open_lanes(most, &memory)
    }

    fn open_lanes(&mut self, most: usize, memory: &Allocator) -> Result<Vec<WarmRun>, EncoderError> {
        let GraphShape { dim, .. } = self.shape;
        let (mut lanes, mut runs) = (Vec::new(), Vec::new());
        let mut sizes = lane::sizes(most.max(1));
        // The largest first: memory is taken once, and TensorRT's engine, built for all sizes between those it has
        // seen, is built again for the smallest only.
        sizes.rotate_right(1);
        for pictures in sizes {
            let mut lane = Lane::open(&self.session, self.shape, pictures, memory)?;
            let mut timed = || {
                let began = Instant::now();
                lane.run(&mut self.session, &[], dim).map(|_| began.elapsed())
            };
            runs.push(WarmRun { pictures, first: timed()?, again: timed()? });
            lanes.push(lane);
        }
        lanes.rotate_left(1);
        self.lanes = lanes;
        Ok(runs)
    }

    /// Length of an embedding.
    pub fn dim(&self) -> usize {
        self.shape.dim
    }

    /// Rows it takes.
    pub fn height(&self) -> u32 {
        self.shape.height
    }

    /// Columns it takes.
    pub fn width(&self) -> u32 {
        self.shape.width
    }

    /// Embeds pictures of exactly the encoder's size, in order, in one run. An empty batch
    /// gives nothing.
    ///
    /// # Errors
    /// See [`EncoderError`].
    pub fn embed(&mut self, batch: &[Pixels]) -> Result<Vec<Embedding>, EncoderError> {
        let GraphShape { height, width, .. } = self.shape;
        let unfit = |p: &&Pixels| (p.height(), p.width()) != (height, width);
        if let Some((index, picture)) = batch.iter().enumerate().find(|(_, p)| unfit(p)) {
            return Err(EncoderError::PictureSize {
                index,
                width: picture.width(),
                height: picture.height(),
                expected_width: width,
                expected_height: height,
            });
        }
        let lane = self.lanes.iter_mut().find(|lane| lane.size() >= batch.len());
        let numbers = match lane.filter(|_| !batch.is_empty()) {
            Some(lane) => lane.run(&mut self.session, batch, self.shape.dim)?,
            None => self.run_unbound(batch)?,
        };
        let vectors = numbers.chunks_exact(self.shape.dim).enumerate();
        vectors
            .map(|(index, vector)| {
                Embedding::from_normalised(vector.to_vec())
                    .map_err(|source| EncoderError::Output { index, source })
            })
            .collect()
    }

    /// Embeds a batch of shape [B, height, width, 3]; gives the graph's output, shape [B, dim],
    /// without looking at its norms.
    ///
    /// # Errors
    /// See [`EncoderError`].
    pub fn embed_raw(&mut self, batch: ArrayView4<'_, u8>) -> Result<Array2<f32>, EncoderError> {
        let (height, width) = (self.shape.height as usize, self.shape.width as usize);
        let (count, rows, columns, channels) = batch.dim();
        if (rows, columns, channels) != (height, width, 3) {
            return Err(EncoderError::Graph {
                what: "input",
                expected: format!("uint8 [batch, {height}, {width}, 3]"),
                actual: format!("uint8 [{count}, {rows}, {columns}, {channels}]"),
            });
        }
        let batch = batch.as_standard_layout();
        let numbers = self.run(count, batch.as_slice().unwrap_or_default())?;
        Array2::from_shape_vec((count, self.shape.dim), numbers).map_err(|e| EncoderError::Ort(e.to_string()))
    }

    fn run_unbound(&mut self, batch: &[Pixels]) -> Result<Vec<f32>, EncoderError> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        bytes.extend(batch.iter().flat_map(|picture| picture.as_bytes()));
        let outcome = self.run(batch.len(), &bytes);
        self.scratch = bytes;
        outcome
    }

    /// One run on height·width·3 bytes a picture; gives `count`·dim numbers.
    fn run(&mut self, count: usize, bytes: &[u8]) -> Result<Vec<f32>, EncoderError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let GraphShape { height, width, dim } = self.shape;
        let shape = [count, height as usize, width as usize, 3];
        let input = TensorRef::from_array_view((shape, bytes)).map_err(ort_error)?;
        let outputs = self.session.run(ort::inputs![INPUT => input]).map_err(ort_error)?;
        numbers(&outputs, count, dim).map(<[f32]>::to_vec)
    }
}

/// The graph's output of a run on `count` pictures: `count`·`dim` numbers.
fn numbers<'a>(outputs: &'a SessionOutputs<'_>, count: usize, dim: usize) -> Result<&'a [f32], EncoderError> {
    let output = outputs.get(OUTPUT).ok_or_else(|| EncoderError::Graph {
        what: "output",
        expected: OUTPUT.into(),
        actual: "absent".into(),
    })?;
    let (shape, numbers) = output.try_extract_tensor::<f32>().map_err(ort_error)?;
    if **shape != [count as i64, dim as i64] {
        return Err(EncoderError::Graph {
            what: "output",
            expected: format!("float32 [{count}, {dim}]"),
            actual: format!("float32 {:?}", &**shape),
        });
    }
    Ok(numbers)
}

/// Name of the graph's one input.
pub const INPUT: &str = "image";
/// Name of the graph's one output.
pub const OUTPUT: &str = "embedding";

enum Source<'a> {
    File(&'a Path),
    Memory(&'a [u8]),
}

pub(crate) fn ort_error<T>(error: ort::Error<T>) -> EncoderError {
    EncoderError::Ort(error.to_string())
}

/// CUDA's libraries without a driver are noticed only when the graph is loaded.
fn device_or_graph(device: Device, error: &ort::Error) -> EncoderError {
    let reason = error.to_string();
    match device {
        Device::Cpu => EncoderError::Ort(reason),
        _ if ["CUDA", "CUDNN", "TensorRT", "TRT"].iter().any(|name| reason.contains(name)) => {
            EncoderError::Device { device, reason }
        }
        _ => EncoderError::Ort(reason),
    }
}

/// A session to be, as all are built.
pub(crate) fn builder(options: &SessionOptions) -> Result<SessionBuilder, EncoderError> {
    let environment = runtime::environment()?;
    let builder = Session::builder(environment)
        .map_err(ort_error)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(ort_error)?
        .with_intra_threads(options.intra_threads.max(1))
        .map_err(ort_error)?
        // Idle threads that spin take the cores from decoding.
        .with_intra_op_spinning(false)
        .map_err(ort_error)?;
    let cuda = |number| ep::CUDA::default().with_device_id(number).build().error_on_failure();
    let providers = match options.device {
        Device::Cpu => return Ok(builder),
        Device::Cuda(number) => vec![cuda(number)],
        // CUDA takes what TensorRT does not.
        Device::TensorRt(number) => vec![tensorrt(number, options.engines.as_deref()), cuda(number)],
    };
    builder
        .with_execution_providers(providers)
        .map_err(|e| EncoderError::Device { device: options.device, reason: e.to_string() })
}

fn tensorrt(number: i32, engines: Option<&Path>) -> ep::ExecutionProviderDispatch {
    let mut provider = ep::TensorRT::default().with_device_id(number);
    if let Some(dir) = engines {
        let dir = dir.to_string_lossy();
        provider = provider.with_engine_cache(true).with_engine_cache_path(&dir);
        provider = provider.with_timing_cache(true).with_timing_cache_path(&dir);
    }
    provider.build().error_on_failure()
}

/// Compares the graph's one input and one output with what an artefact's must be.
fn check_graph(session: &Session, shape: GraphShape) -> Result<(), EncoderError> {
    let GraphShape { height, width, dim } = shape;
    let input = [-1, i64::from(height), i64::from(width), 3];
    check_outlet("input", session.inputs(), INPUT, &TensorElementType::Uint8, &input)?;
    let output = [-1, dim as i64];
    check_outlet("output", session.outputs(), OUTPUT, &TensorElementType::Float32, &output)
}

fn check_outlet(
    what: &'static str,
    outlets: &[Outlet],
    name: &str,
    wanted: &TensorElementType,
    dims: &[i64],
) -> Result<(), EncoderError> {
    let fits = match outlets {
        [outlet] if outlet.name() == name => match outlet.dtype() {
            // A dimension that the graph leaves open is checked when it runs.
            ValueType::Tensor { ty, shape, .. } => {
                let open_batch = shape.first() == Some(&-1);
                let same = |(found, wanted): (&i64, &i64)| *found == -1 || found == wanted;
                let sides = shape.iter().skip(1).zip(&dims[1..]);
                ty == wanted && shape.len() == dims.len() && open_batch && sides.into_iter().all(same)
            }
            _ => false,
        },
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let describe = |outlet: &Outlet| format!("{} {}", outlet.name(), outlet.dtype());
    let sides: Vec<String> = dims[1..].iter().map(ToString::to_string).collect();
    Err(EncoderError::Graph {
        what,
        expected: format!("{name} {wanted} [batch, {}]", sides.join(", ")),
        actual: outlets.iter().map(describe).collect::<Vec<_>>().join(" and "),
    })
}

#[cfg(test)]
mod tests;
