//! An NVIDIA GPU as a [`Device`]: its driver, cuDNN, cuBLAS, and our kernels compiled for it.

mod blas;
pub mod compile;
mod copies;
mod dnn;
pub mod library;
pub mod plan;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, result, sys};

use self::blas::Blas;
use self::copies::{Reports, Uploads};
use self::dnn::Handle;
use self::plan::{Plan, Target};
use super::device::{Address, Arg, Convolution, CudaError, Device, Linear, Pass, Product, Result};
use super::sweeps;
use crate::device::Precision;
use crate::method::byol::StepReport;

/// Oldest kind of GPU with bfloat16 and TF32.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);
/// Plans of a convolution that are timed when convolutions are tuned.
const TUNED_PLANS: usize = 8;

/// An error of NVIDIA's libraries, with what was asked.
fn failed(what: &str) -> impl Fn(cudarc::driver::DriverError) -> CudaError + '_ {
    move |error| CudaError(format!("{what}: {error}"))
}

/// A GPU that can be used.
pub struct Found {
    context: Arc<CudaContext>,
    /// Its name and memory.
    pub name: String,
    capability: (i32, i32),
}

/// The GPU of that number, if its driver, its libraries and it are there.
pub fn find(number: usize) -> Result<Found> {
    library::check()?;
    result::init().map_err(failed("starting the CUDA driver"))?;
    let count = CudaContext::device_count().map_err(failed("counting GPUs"))?;
    if i32::try_from(number).is_ok_and(|n| n >= count) {
        return Err(CudaError(format!("there are {count} GPUs, counted from 0")));
    }
    let context = CudaContext::new(number).map_err(failed("opening the GPU"))?;
    let capability = context.compute_capability().map_err(failed("asking the GPU's capability"))?;
    let name = context.name().map_err(failed("asking the GPU's name"))?;
    if capability < LEAST_CAPABILITY {
        let (major, minor) = capability;
        return Err(CudaError(format!(
            "{name} has compute capability {major}.{minor}; 8.0 (Ampere) is the least that has bfloat16"
        )));
    }
    let mib = context.total_mem().map_err(failed("asking the GPU's memory"))? >> 20;
    Ok(Found { context, name: format!("{name}, {mib} MiB"), capability })
}

/// The workspace of convolutions: one for all, for they run one after the other.
#[derive(Default)]
struct Workspace {
    at: Address,
    bytes: usize,
}

/// A GPU at work.
pub struct Gpu {
    precision: Precision,
    tune: bool,
    multiprocessors: usize,
    plans: RefCell<HashMap<(Convolution, Pass), Plan>>,
    workspace: RefCell<Workspace>,
    uploads: RefCell<Uploads>,
    reports: RefCell<Reports>,
    kernels: HashMap<String, CudaFunction>,
    blas: Blas,
    dnn: Handle,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

impl Gpu {
    /// Compiles the kernels and opens the libraries. With `tune`, each convolution's plans are timed
    /// and the fastest is taken, instead of the one that cuDNN expects to be.
    pub fn new(found: Found, precision: Precision, tune: bool) -> Result<Self> {
        let Found { context, capability: (major, minor), .. } = found;
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let mut kernels = HashMap::new();
        let mut modules = Vec::new();
        for (name, source) in sweeps::SOURCES {
            let binary = compile::compile(name, source, &format!("sm_{major}{minor}"))?;
            let module = context.load_module(cudarc::nvrtc::Ptx::from_binary(binary));
            modules.push(module.map_err(failed("loading the kernels"))?);
        }
        for name in sweeps::names() {
            let found = modules.iter().find_map(|module| module.load_function(&name).ok());
            let function = found.ok_or_else(|| CudaError(format!("no kernel {name} was compiled")))?;
            kernels.insert(name, function);
        }
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let count = context.attribute(count).map_err(failed("asking the GPU's size"))?;
        Ok(Self {
            precision,
            tune,
            multiprocessors: usize::try_from(count).unwrap_or(1).max(1),
            plans: RefCell::default(),
            workspace: RefCell::default(),
            uploads: RefCell::new(Uploads::new(&context)?),
            reports: RefCell::new(Reports::new(&context)?),
            kernels,
            blas: Blas::new(&stream, precision)?,
            dnn: Handle::new(&stream)?,
            stream,
            context,
        })
    }

    /// The workspace, grown to so many bytes.
    fn workspace(&self, bytes: usize) -> Result<Address> {
        let mut workspace = self.workspace.borrow_mut();
        if workspace.bytes < bytes {
            self.stream.synchronize().map_err(failed("waiting for the GPU"))?;
            if workspace.bytes > 0 {
                self.release(workspace.at);
            }
            *workspace = Workspace::default();
            *workspace = Workspace { at: self.allocate(bytes)?, bytes };
        }
        Ok(workspace.at)
    }

    /// The plan for a convolution; where plans are tuned, the fastest of some.
    fn plan(&self, of: &Convolution, pass: Pass, data: [Address; 3]) -> Result<Plan> {
        let count = if self.tune { TUNED_PLANS } else { 1 };
        let plans = plan::plans(&Target::Handle(&self.dnn), of, pass, self.precision, count)?;
        let mut best: Option<(f32, Plan)> = None;
        for plan in plans {
            let time = match self.tune.then(|| self.time(&plan, data)).transpose() {
                Ok(time) => time.unwrap_or(0.0),
                // Another plan may do.
                Err(CudaError(error)) => {
                    tracing::debug!("engine {} cannot do {pass:?} of {of:?}: {error}", plan.engine);
                    continue;
                }
            };
            if best.as_ref().is_none_or(|(least, _)| time < *least) {
                best = Some((time, plan));
            }
        }
        let (_, plan) =
            best.ok_or_else(|| CudaError(format!("cuDNN has no way to do {pass:?} of {of:?}")))?;
        tracing::debug!("{pass:?} of {of:?}: engine {}, workspace {}", plan.engine, plan.workspace);
        Ok(plan)
    }

    /// Milliseconds of the quicker of two runs, after one that does not count.
    fn time(&self, plan: &Plan, data: [Address; 3]) -> Result<f32> {
        let workspace = self.workspace(plan.workspace)?;
        let event = || {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            self.stream.record_event(flags).map_err(failed("timing a convolution"))
        };
        let mut best = f32::MAX;
        for run in 0..3 {
            let start = event()?;
            plan.run(&self.dnn, data, workspace)?;
            let took = start.elapsed_ms(&event()?).map_err(failed("timing a convolution"))?;
            best = if run == 0 { best } else { best.min(took) };
        }
        Ok(best)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // What is still running may use the memory.
        self.stream.synchronize().ok();
        let Workspace { at, bytes } = *self.workspace.borrow();
        if bytes > 0 {
            self.release(at);
        }
    }
}

impl Device for Gpu {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.context.bind_to_thread().map_err(failed("choosing the GPU"))?;
        // SAFETY: a plain allocation; `release` gives it back.
        unsafe { result::malloc_sync(bytes) }.map_err(|error| {
            CudaError(format!(
                "{} MiB of the GPU's memory: {error}; a smaller batch or a larger accumulate needs less",
                bytes >> 20
            ))
        })
    }

    fn release(&self, at: Address) {
        // SAFETY: it was allocated by `allocate`. Nothing can be done where this fails.
        unsafe { result::free_sync(at) }.ok();
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }
            .map_err(failed("zeroing memory"))
    }

    unsafe fn write(&self, at: Address, from: &[f32]) -> Result<()> {
        // SAFETY: the caller's promise; the copy is waited for, so `from` outlives it.
        unsafe { result::memcpy_htod_async(at, from, self.stream.cu_stream()) }
            .map_err(failed("copying to the GPU"))?;
        self.stream.synchronize().map_err(failed("copying to the GPU"))
    }

    unsafe fn read(&self, at: Address, to: &mut [f32]) -> Result<()> {
        // SAFETY: the caller's promise; the copy is waited for, so `to` outlives it.
        unsafe { result::memcpy_dtoh_async(to, at, self.stream.cu_stream()) }
            .map_err(failed("copying from the GPU"))?;
        self.stream.synchronize().map_err(failed("copying from the GPU"))
    }

    unsafe fn launch(&self, kernel: &str, grid: [usize; 3], block: [usize; 3], args: &[Arg]) -> Result<()> {
        let function =
            self.kernels.get(kernel).ok_or_else(|| CudaError(format!("there is no kernel {kernel}")))?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let sizes = |of: [usize; 3]| (of[0] as u32, of[1] as u32, of[2] as u32);
        // SAFETY: the caller's promise; the arguments' values are read before the launch returns.
        unsafe {
            let stream = self.stream.cu_stream();
            result::launch_kernel(function.cu_function(), sizes(grid), sizes(block), 0, stream, &mut pointers)
        }
        .map_err(|error| CudaError(format!("kernel {kernel}: {error}")))
    }

    unsafe fn convolve(
        &self,
        of: &Convolution,
        pass: Pass,
        x: Address,
        w: Address,
        y: Address,
    ) -> Result<()> {
        let key = (*of, pass);
        if !self.plans.borrow().contains_key(&key) {
            let plan = self.plan(of, pass, [x, w, y])?;
            self.workspace(plan.workspace)?;
            self.plans.borrow_mut().insert(key, plan);
        }
        let plans = self.plans.borrow();
        let plan = plans.get(&key).ok_or_else(|| CudaError("a plan was lost".into()))?;
        plan.run(&self.dnn, [x, w, y], self.workspace.borrow().at)
    }

    unsafe fn multiply(&self, of: Linear, pass: Pass, data: Product) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.blas.multiply(of, pass, data) }
    }

    fn send_views(&self, view1: &[f32], view2: &[f32]) -> Result<Address> {
        self.context.bind_to_thread().map_err(failed("choosing the GPU"))?;
        self.uploads.borrow_mut().send(&self.stream, view1, view2)
    }

    fn views_read(&self) -> Result<()> {
        self.uploads.borrow_mut().read(&self.stream)
    }

    unsafe fn send_report(&self, at: Address) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.reports.borrow_mut().send(&self.stream, at) }
    }

    fn reports(&self, all: bool) -> Result<Vec<StepReport>> {
        self.reports.borrow_mut().take(all)
    }
}
