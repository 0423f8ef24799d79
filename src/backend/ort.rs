//! The real backend: ONNX Runtime sessions of an artefact.

use std::panic::resume_unwind;
use std::path::Path;

use latentd_model::{
    Artefact, Device, Embedding, Encoder, EncoderError, Pixels, RuntimeInfo, SessionOptions,
};

use super::{Backend, BackendError, Backends, DeviceChoice, DeviceReport, Warmed};
use crate::config::{self, Config};

/// One ONNX Runtime session.
struct OrtBackend(Encoder);

impl Backend for OrtBackend {
    fn embed(&mut self, batch: &[Pixels]) -> Result<Vec<Embedding>, BackendError> {
        self.0.embed(batch).map_err(|error| BackendError(error.to_string()))
    }
}

/// Opens the sessions that the configuration asks for.
///
/// # Errors
/// When the model cannot be opened, or `--device cuda` cannot be had.
pub fn open(config: &Config, artefact: &Artefact, runtime: &RuntimeInfo) -> Result<Backends, EncoderError> {
    let device = match config.device {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Cuda(n) => Device::Cuda(n),
        DeviceChoice::TensorRt(n) => Device::TensorRt(n),
        DeviceChoice::Auto if gpu_is_likely(runtime) => return open_auto(config, artefact),
        DeviceChoice::Auto => Device::Cpu,
    };
    open_on(config, artefact, device)
}

/// Whether the machine has a driver, or the runtime brings what a GPU needs: without either, a CPU is no fallback.
fn gpu_is_likely(runtime: &RuntimeInfo) -> bool {
    let beside = runtime.path.parent().map(|dir| dir.join("libonnxruntime_providers_cuda.so"));
    Path::new("/dev/nvidiactl").exists() || beside.is_some_and(|path| path.exists())
}

/// The first GPU where it works, else the CPU.
fn open_auto(config: &Config, artefact: &Artefact) -> Result<Backends, EncoderError> {
    let gpu = Device::Cuda(0);
    let reason = match open_on(config, artefact, gpu) {
        Ok(backends) => return Ok(backends),
        Err(error) => error.to_string(),
    };
    tracing::warn!(reason, "no usable GPU: falling back to the CPU");
    let mut backends = open_on(config, artefact, Device::Cpu)?;
    backends.device.fallback = Some(reason);
    Ok(backends)
}

fn open_on(config: &Config, artefact: &Artefact, device: Device) -> Result<Backends, EncoderError> {
    let engines = matches!(device, Device::TensorRt(_)).then(|| config.data_dir.join("tensorrt"));
    if let Some(dir) = &engines {
        let reason = |error| EncoderError::Device { device, reason: format!("{}: {error}", dir.display()) };
        std::fs::create_dir_all(dir).map_err(reason)?;
    }
    let options = |intra_threads| SessionOptions { intra_threads, device, engines: engines.clone() };
    let mut wanted = vec![options(config.intra_threads); session_count(config, device)];
    // For a picture that is alone, where the others leave cores idle then.
    let solo = config.solo_session && device == Device::Cpu && config::cores() > config.intra_threads;
    if solo {
        wanted.push(options(config::cores()));
    }
    let mut encoders = open_all(artefact, &wanted)?;
    let mut report = DeviceReport::new(config.device, device);
    for encoder in &mut encoders {
        let runs = encoder.warm_up(config.max_batch())?;
        report.warm_up = runs.into_iter().map(Warmed::from).collect();
    }
    let mut backends = encoders.into_iter().map(|encoder| Box::new(OrtBackend(encoder)) as Box<dyn Backend>);
    let sessions = backends.by_ref().take(wanted.len() - usize::from(solo)).collect();
    Ok(Backends { sessions, solo: backends.next(), device: report })
}

/// Opens sessions at once: ONNX Runtime's work on a graph keeps one core busy, and each session has its own.
fn open_all(artefact: &Artefact, wanted: &[SessionOptions]) -> Result<Vec<Encoder>, EncoderError> {
    std::thread::scope(|scope| {
        let open = |options| scope.spawn(move || Encoder::open(artefact, options));
        let opening: Vec<_> = wanted.iter().map(open).collect();
        let opened =
            opening.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        opened.collect()
    })
}

/// On a CPU one session per core, or fewer where each has several threads; on a GPU one.
fn session_count(config: &Config, device: Device) -> usize {
    match (config.sessions, device) {
        (0, Device::Cpu) => (config::cores() / config.intra_threads).max(1),
        (0, _) => 1,
        (count, _) => count,
    }
}
