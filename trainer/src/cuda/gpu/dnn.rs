//! cuDNN's handle and the descriptors of its graph API.

use std::ffi::{CStr, c_char, c_void};

use cudarc::cudnn::{result, sys};
use cudarc::driver::CudaStream;

use super::super::device::{CudaError, Result};

pub use sys::cudnnBackendAttributeName_t as Name;
pub use sys::cudnnBackendAttributeType_t as Type;
pub use sys::cudnnBackendDescriptorType_t as Kind;

/// What cuDNN says of its last failure.
fn check(status: sys::cudnnStatus_t, what: &str) -> Result<()> {
    if status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    let mut message = [0u8; 1024];
    // SAFETY: the buffer is as long as said.
    unsafe { sys::cudnnGetLastErrorString(message.as_mut_ptr().cast::<c_char>(), message.len()) };
    let message = CStr::from_bytes_until_nul(&message).map(CStr::to_string_lossy).unwrap_or_default();
    Err(CudaError(format!("cuDNN, {what}: {status:?} {message}")))
}

/// cuDNN on a stream.
pub struct Handle(sys::cudnnHandle_t);

impl Handle {
    pub fn new(stream: &CudaStream) -> Result<Self> {
        let failed = |e: result::CudnnError| CudaError(format!("cuDNN: {e:?}"));
        let handle = Self(result::create_handle().map_err(failed)?);
        // SAFETY: the stream outlives the handle: the GPU owns both and drops this first.
        unsafe { result::set_stream(handle.0, stream.cu_stream().cast()) }.map_err(failed)?;
        Ok(handle)
    }

    /// Runs a finished execution plan.
    ///
    /// # Safety
    /// The variant pack's pointers are to arrays of the plan's sizes.
    pub unsafe fn execute(&self, plan: &Descriptor, pack: &Descriptor) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { sys::cudnnBackendExecute(self.0, plan.0, pack.0) }, "running a convolution")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle was created here.
        unsafe { result::destroy_handle(self.0) }.ok();
    }
}

/// A descriptor of the graph API.
pub struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Descriptor {
    /// An empty descriptor.
    pub fn new(kind: Kind) -> Result<Self> {
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: it is destroyed in `drop`.
        let status = unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut descriptor) };
        check(status, "making a descriptor")?;
        Ok(Self(descriptor))
    }

    /// Sets an attribute whose values are `T`s.
    fn set_raw<T>(&self, name: Name, kind: Type, values: &[T]) -> Result<()> {
        let (count, at) = (values.len() as i64, values.as_ptr().cast::<c_void>());
        // SAFETY: so many values are there; the callers pair type and `T`.
        let status = unsafe { sys::cudnnBackendSetAttribute(self.0, name, kind, count, at) };
        check(status, &format!("setting {name:?}"))
    }

    pub fn set_i64(&self, name: Name, values: &[i64]) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_INT64, values)
    }

    /// A factor, f32.
    pub fn set_f32(&self, name: Name, value: f32) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_FLOAT, &[value])
    }

    pub fn set_data_type(&self, name: Name, value: sys::cudnnDataType_t) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_DATA_TYPE, &[value])
    }

    pub fn set_convolution_mode(&self, name: Name, value: sys::cudnnConvolutionMode_t) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_CONVOLUTION_MODE, &[value])
    }

    pub fn set_heuristic(&self, name: Name, value: sys::cudnnBackendHeurMode_t) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_HEUR_MODE, &[value])
    }

    #[cfg(test)]
    pub fn set_text(&self, name: Name, value: &CStr) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_CHAR, value.to_bytes_with_nul())
    }

    pub fn set_pointers(&self, name: Name, values: &[u64]) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_VOID_PTR, values)
    }

    pub fn set_handle(&self, name: Name, handle: &Handle) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_HANDLE, &[handle.0])
    }

    pub fn set_descriptor(&self, name: Name, value: &Descriptor) -> Result<()> {
        self.set_raw(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[value.0])
    }

    /// Says that all is set; cuDNN checks it.
    pub fn finish(self, what: &str) -> Result<Self> {
        // SAFETY: a live descriptor.
        check(unsafe { sys::cudnnBackendFinalize(self.0) }, what)?;
        Ok(self)
    }

    /// Up to `values.len()` values of an attribute; gives how many there are.
    fn get_raw<T>(&self, name: Name, kind: Type, values: &mut [T]) -> Result<usize> {
        let mut count = 0i64;
        let (room, at) = (values.len() as i64, values.as_mut_ptr().cast::<c_void>());
        // SAFETY: there is room for so many; the callers pair type and `T`.
        let status = unsafe { sys::cudnnBackendGetAttribute(self.0, name, kind, room, &mut count, at) };
        check(status, &format!("reading {name:?}"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub fn get_i64(&self, name: Name) -> Result<i64> {
        let mut value = [0i64];
        self.get_raw(name, Type::CUDNN_TYPE_INT64, &mut value)?;
        Ok(value[0])
    }

    /// An engine's notes on its arithmetic, as numbers: a newer cuDNN may know more than the bindings.
    pub fn get_numerical_notes(&self) -> Result<Vec<i32>> {
        let mut notes = [0i32; 32];
        let name = Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE;
        let count = self.get_raw(name, Type::CUDNN_TYPE_NUMERICAL_NOTE, &mut notes)?;
        Ok(notes[..count.min(notes.len())].to_vec())
    }

    /// The descriptors of an attribute, at most `most`.
    pub fn get_descriptors(&self, name: Name, kind: Kind, most: usize) -> Result<Vec<Descriptor>> {
        let mut all = (0..most).map(|_| Descriptor::new(kind)).collect::<Result<Vec<_>>>()?;
        // cuDNN fills in descriptors that the caller made.
        let mut raw: Vec<_> = all.iter().map(|d| d.0).collect();
        let count = self.get_raw(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &mut raw)?;
        all.truncate(count);
        Ok(all)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it was created here. Nothing can be done where this fails.
        unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}
