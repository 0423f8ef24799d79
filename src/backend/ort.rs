//! The real backend: ONNX Runtime sessions of an artefact.

use latentd_model::{Artefact, Device, Embedding, Encoder, EncoderError, Pixels, SessionOptions};

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
pub fn open(config: &Config, artefact: &Artefact) -> Result<Backends, EncoderError> {
    let requested = config.device;
    let device = match requested {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Cuda(n) => Device::Cuda(n),
        DeviceChoice::Auto => return open_auto(config, artefact),
    };
    let sessions = open_on(config, artefact, device)?;
    Ok(Backends { sessions, device: DeviceReport::new(requested, device) })
}

/// The first GPU where this build has one that works, else the CPU.
fn open_auto(config: &Config, artefact: &Artefact) -> Result<Backends, EncoderError> {
    let gpu = Device::Cuda(0);
    let reason = match open_on(config, artefact, gpu) {
        Ok(sessions) => {
            return Ok(Backends { sessions, device: DeviceReport::new(config.device, gpu) });
        }
        Err(EncoderError::NotBuilt { .. }) => None,
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = &reason {
        tracing::warn!(%reason, "no usable GPU: falling back to the CPU");
    }
    let sessions = open_on(config, artefact, Device::Cpu)?;
    let report = DeviceReport::new(config.device, Device::Cpu);
    Ok(Backends { sessions, device: DeviceReport { fallback: reason, ..report } })
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
