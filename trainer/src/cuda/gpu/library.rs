//! NVIDIA's libraries, which are looked for when a GPU is asked for.

use super::super::device::{CudaError, Result};

/// What is missing, with where it comes from.
fn missing(library: &str, from: &str) -> CudaError {
    CudaError(format!("{library} was not found: {from}"))
}

/// How a library is put where it is found.
const HOW: &str = "install it, or put its folder on LD_LIBRARY_PATH (docs/gpu.md)";

/// Looks for the driver and all libraries; loading a missing one later would end the program.
pub fn check() -> Result<()> {
    // SAFETY: each call only tries to open a library by its usual names.
    unsafe {
        if !cudarc::driver::sys::is_culib_present() {
            return Err(missing("NVIDIA's driver (libcuda.so)", "there is no GPU, or no driver for it"));
        }
        if !cudarc::nvrtc::sys::is_culib_present() {
            return Err(missing("CUDA's run-time compiler (libnvrtc.so)", HOW));
        }
        if !cudarc::cublas::sys::is_culib_present() {
            return Err(missing("cuBLAS (libcublas.so)", HOW));
        }
    }
    check_dnn()
}

/// Looks for cuDNN 9 alone.
pub fn check_dnn() -> Result<()> {
    // SAFETY: as above; asking the version needs no device.
    unsafe {
        if !cudarc::cudnn::sys::is_culib_present() {
            return Err(missing("cuDNN 9 (libcudnn.so.9)", HOW));
        }
        let version = cudarc::cudnn::sys::cudnnGetVersion();
        if version < 90_000 {
            return Err(CudaError(format!("cuDNN {version} is too old: 9.0 or later is needed")));
        }
    }
    Ok(())
}
