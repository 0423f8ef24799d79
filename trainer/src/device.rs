//! Where a run computes: the CPU or a GPU.

use std::fmt;
use std::str::FromStr;

use crate::nn::kernels::precision;

/// The device asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU where one works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU, or no start.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .filter(|n| (0..1024).contains(n))
                .map(Self::Cuda)
                .ok_or_else(|| format!("{text:?} is no device: use auto, cpu, cuda or cuda:N")),
        }
    }
}

/// The device in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The CPU.
    Cpu,
    /// This GPU.
    Cuda(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// What a GPU multiplies in; sums, weights, statistics and the optimiser are f32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Feature maps and products in bfloat16, on tensor cores.
    Bf16,
    /// Feature maps in f32, products in TensorFloat-32, on tensor cores.
    Tf32,
    /// f32 throughout, without tensor cores: to compare with the CPU.
    F32,
}

impl From<precision::Precision> for Precision {
    fn from(asked: precision::Precision) -> Self {
        match asked {
            precision::Precision::Highest => Self::F32,
            precision::Precision::High => Self::Tf32,
            precision::Precision::Medium => Self::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
            Self::F32 => "f32",
        })
    }
}

/// A device that was asked for by name and is not there.
#[derive(Debug, thiserror::Error)]
#[error("{place} cannot be used: {reason}; --device cpu trains without it")]
pub struct DeviceError {
    /// Which.
    pub place: Place,
    /// Why.
    pub reason: String,
}

/// The choice of a device, as flags.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Compute {
    /// Where to compute: auto (the first GPU where one works, else the CPU), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", env = "LATENTD_TRAINER_DEVICE")]
    device: DeviceChoice,
    /// Times a GPU's ways to do each convolution first, instead of trusting cuDNN's guess: faster
    /// steps, but a resumed run may choose others, which round differently.
    #[arg(long)]
    pub tune: bool,
}

impl Compute {
    /// The place to compute at; `auto` says in the log why it is not a GPU.
    pub fn place(&self) -> Result<Place, DeviceError> {
        let (number, must) = match self.device {
            DeviceChoice::Cpu => return Ok(Place::Cpu),
            DeviceChoice::Auto => (0, false),
            DeviceChoice::Cuda(n) => (n, true),
        };
        let place = Place::Cuda(number);
        match usable(number) {
            Ok(name) => {
                tracing::info!("computing on {place}: {name}");
                Ok(place)
            }
            Err(reason) if must => Err(DeviceError { place, reason }),
            Err(reason) => {
                tracing::info!("computing on the CPU: {reason}");
                Ok(Place::Cpu)
            }
        }
    }
}

/// The name of a GPU that can be used, or why it cannot.
fn usable(number: usize) -> Result<String, String> {
    #[cfg(feature = "cuda")]
    return crate::cuda::usable(number);
    #[cfg(not(feature = "cuda"))]
    Err(format!("this program was built without `--features cuda`, so it has no GPU {number}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn devices_are_read() {
        let read = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(read("auto").unwrap(), DeviceChoice::Auto);
        assert_eq!(read("cpu").unwrap(), DeviceChoice::Cpu);
        assert_eq!(read("cuda").unwrap(), DeviceChoice::Cuda(0));
        assert_eq!(read("cuda:7").unwrap(), DeviceChoice::Cuda(7));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(read(text).unwrap_err().contains("use auto, cpu, cuda or cuda:N"), "{text}");
        }
    }
}
