//! The real backend: ONNX Runtime sessions of an artefact.

use std::path::Path;

use latentd_model::{
    Artefact, Device, Embedding, Encoder, EncoderError, Pixels, RuntimeInfo, SessionOptions,
};

use super::{Backend, BackendError, Backends, DeviceChoice, DeviceReport};
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
    let requested = config.device;
    let device = match requested {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Cuda(n) => Device::Cuda(n),
        DeviceChoice::Auto if gpu_is_likely(runtime) => return open_auto(config, artefact),
        DeviceChoice::Auto => Device::Cpu,
    };
    let sessions = open_on(config, artefact, device)?;
    let solo = open_solo(config, artefact, device)?;
    Ok(Backends { sessions, solo, device: DeviceReport::new(requested, device) })
}

/// The session for a picture that is alone, where the others leave cores idle then.
fn open_solo(
    config: &Config,
    artefact: &Artefact,
    device: Device,
) -> Result<Option<Box<dyn Backend>>, EncoderError> {
    let intra_threads = config::cores();
    if !config.solo_session || device != Device::Cpu || intra_threads <= config.intra_threads {
        return Ok(None);
    }
    let encoder = Encoder::open(artefact, &SessionOptions { intra_threads, device })?;
    Ok(Some(Box::new(OrtBackend(encoder))))
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
        Ok(sessions) => {
            return Ok(Backends { sessions, solo: None, device: DeviceReport::new(config.device, gpu) });
        }
        Err(error) => error.to_string(),
    };
    tracing::warn!(reason, "no usable GPU: falling back to the CPU");
    let sessions = open_on(config, artefact, Device::Cpu)?;
    let solo = open_solo(config, artefact, Device::Cpu)?;
    let report = DeviceReport::new(config.device, Device::Cpu);
    Ok(Backends { sessions, solo, device: DeviceReport { fallback: Some(reason), ..report } })
}

fn open_on(
    config: &Config,
    artefact: &Artefact,
    device: Device,
) -> Result<Vec<Box<dyn Backend>>, EncoderError> {
    let options = SessionOptions { intra_threads: config.intra_threads, device };
    let open = |_| Ok(Box::new(OrtBackend(Encoder::open(artefact, &options)?)) as Box<dyn Backend>);
    (0..session_count(config, device)).map(open).collect()
}

/// On a CPU one session per core, or fewer where each has several threads; on a GPU one.
fn session_count(config: &Config, device: Device) -> usize {
    match (config.sessions, device) {
        (0, Device::Cpu) => (config::cores() / config.intra_threads).max(1),
        (0, Device::Cuda(_)) => 1,
        (count, _) => count,
    }
}
