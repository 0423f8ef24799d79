//! Our kernels, compiled by NVRTC for the GPU at hand.

use std::ffi::{CStr, CString, c_char};

use cudarc::nvrtc::{result, sys};

use super::super::device::{CudaError, Result};
use super::super::sweeps;

/// The machine code of a source for an architecture such as `sm_90`. Needs no GPU.
///
/// Machine code rather than PTX: a driver older than NVRTC could not read its PTX.
pub fn compile(name: &str, source: &str, architecture: &str) -> Result<Vec<u8>> {
    let text = |value: &str| CString::new(value).map_err(|e| CudaError(format!("{name}: {e}")));
    let (file, source) = (text(name)?, text(source)?);
    let (header_name, header) = (text("common.cuh")?, text(sweeps::COMMON)?);
    let (header_names, headers) = ([header_name.as_ptr()], [header.as_ptr()]);
    let mut program = std::ptr::null_mut();
    // SAFETY: all strings outlive the program, which is destroyed below.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            file.as_ptr(),
            1,
            headers.as_ptr(),
            header_names.as_ptr(),
        )
        .result()
        .map_err(|e| CudaError(format!("{name}: {e}")))?;
        let code = build(program, name, architecture);
        result::destroy_program(program).ok();
        code
    }
}

/// # Safety
/// `program` was created and not destroyed.
unsafe fn build(program: sys::nvrtcProgram, name: &str, architecture: &str) -> Result<Vec<u8>> {
    let failed = |e: result::NvrtcError| CudaError(format!("compiling {name} for {architecture}: {e}"));
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_string()];
    // SAFETY: the caller's promise; each array is as long as NVRTC said.
    unsafe {
        if let Err(error) = result::compile_program(program, &options) {
            let log = result::get_program_log(program).map_err(failed)?;
            let log: Vec<u8> = log.iter().map(|c| *c as u8).collect();
            let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
            return Err(CudaError(format!("compiling {name} for {architecture}: {error}\n{log}")));
        }
        let mut size = 0;
        sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(failed)?;
        let mut code = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()).result().map_err(failed)?;
        Ok(code)
    }
}
