//! The backend: what turns pixels into embeddings, and on which device.

pub mod ort;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use latentd_model::{Device, Embedding, Pixels, WarmRun};
use serde::{Deserialize, Serialize};

/// One session of an encoder, used by one thread at a time.
pub trait Backend: Send {
    /// Embeds pictures of exactly the encoder's size; one embedding each, in order.
    ///
    /// # Errors
    /// [`BackendError`] for the batch as a whole; the batcher then tries its pictures one by one.
    fn embed(&mut self, batch: &[Pixels]) -> Result<Vec<Embedding>, BackendError>;
}

/// Why a backend could not be opened or a run failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// The device asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The GPU where one works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU, or no start.
    Cuda(i32),
    /// This GPU with TensorRT, or no start.
    TensorRt(i32),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "tensorrt" => Ok(Self::TensorRt(0)),
            _ => numbered(text).ok_or_else(|| {
                format!("{text:?} is no device: use auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N")
            }),
        }
    }
}

fn numbered(text: &str) -> Option<DeviceChoice> {
    let (kind, number) = text.split_once(':')?;
    let number = number.parse().ok().filter(|number| (0..1024).contains(number))?;
    match kind {
        "cuda" => Some(DeviceChoice::Cuda(number)),
        "tensorrt" => Some(DeviceChoice::TensorRt(number)),
        _ => None,
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::TensorRt(n) => write!(f, "tensorrt:{n}"),
        }
    }
}

/// The device in use, and why it is not the one hoped for.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceReport {
    /// What was asked for.
    pub requested: DeviceChoice,
    /// `cpu`, `cuda:N` or `tensorrt:N`.
    pub used: String,
    /// Why `auto` fell back to the CPU, when it did.
    pub fallback: Option<String>,
    /// On a GPU, the sizes of a run that were prepared, and what they took.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warm_up: Vec<Warmed>,
}

/// What a size of a run took at start, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Warmed {
    /// Pictures of the run.
    pub pictures: usize,
    /// The first run, in which kernels are chosen.
    pub first_ms: f64,
    /// The next.
    pub again_ms: f64,
}

impl From<WarmRun> for Warmed {
    fn from(run: WarmRun) -> Self {
        let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        Self { pictures: run.pictures, first_ms: ms(run.first), again_ms: ms(run.again) }
    }
}

impl DeviceReport {
    /// The device `used` as asked for.
    #[must_use]
    pub fn new(requested: DeviceChoice, used: Device) -> Self {
        Self { requested, used: used.to_string(), fallback: None, warm_up: Vec::new() }
    }
}

/// The sessions of one encoder, ready to run.
pub struct Backends {
    /// One per worker thread.
    pub sessions: Vec<Box<dyn Backend>>,
    /// One with threads for all cores, for a picture that is alone.
    pub solo: Option<Box<dyn Backend>>,
    /// Where they run.
    pub device: DeviceReport,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7", "tensorrt:0"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        assert_eq!("tensorrt".parse::<DeviceChoice>().unwrap(), DeviceChoice::TensorRt(0));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cpu:0", "tensorrt:1024"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
