//! What the engine asks of a device: memory, kernels, convolutions, products, copies.
//!
//! The GPU answers with its driver, cuDNN and cuBLAS. In the tests the processor answers: the same
//! kernels, compiled for it, and convolutions by the formula; so all of the engine but its calls into
//! NVIDIA's libraries is tested without a GPU.

use std::ffi::c_void;

use crate::device::Precision;
use crate::method::byol::StepReport;

/// A device that refused; the text says what was asked and what it answered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct CudaError(pub String);

/// What a call gives.
pub type Result<T, E = CudaError> = std::result::Result<T, E>;

/// An address in the device's memory; 0 stands for an array that is left out.
pub type Address = u64;

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A pointer.
    At(Address),
    /// `int`.
    Int(i32),
    /// `long long`.
    Long(i64),
    /// `float`.
    Float(f32),
}

impl Arg {
    /// Where its value is, as a launch wants it.
    pub fn pointer(&self) -> *mut c_void {
        match self {
            Self::At(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Long(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Self::Float(value) => std::ptr::from_ref(value).cast_mut().cast(),
        }
    }
}

/// One of the three products of a linear map `y = w * x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `y` out of `x` and `w`.
    Forward,
    /// The gradient of `x` out of `w` and the gradient of `y`.
    Input,
    /// The gradient of `w` out of `x` and the gradient of `y`.
    Weight,
}

/// A convolution over channels-last maps, square kernel, padding `kernel / 2`, weights `[cout, k, k, cin]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Convolution {
    /// Images in the batch.
    pub images: usize,
    /// Height of the input.
    pub height: usize,
    /// Width of the input.
    pub width: usize,
    /// Channels in.
    pub cin: usize,
    /// Channels out.
    pub cout: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
}

impl Convolution {
    /// Height or width of the output for an input's.
    pub fn output_size(&self, input: usize) -> usize {
        (input + 2 * (self.kernel / 2) - self.kernel) / self.stride + 1
    }
}

/// A linear layer over `[rows, inputs]`, weights `[inputs, outputs]`, all row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Rows.
    pub rows: usize,
    /// Features in.
    pub inputs: usize,
    /// Features out.
    pub outputs: usize,
}

/// Memory, kernels and products in one order: each call sees what all before it wrote.
///
/// Maps and weights are bf16 or f32 as [`Device::precision`] says; what is said to be f32 always is.
pub trait Device {
    /// What maps and weights are.
    fn precision(&self) -> Precision;

    /// Blocks that run at once are a few times this many.
    fn multiprocessors(&self) -> usize;

    /// Memory of that many bytes, aligned to 256.
    fn allocate(&self, bytes: usize) -> Result<Address>;

    /// Gives memory back.
    fn release(&self, at: Address);

    /// Zeroes memory.
    ///
    /// # Safety
    /// So many bytes were allocated there.
    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()>;

    /// Writes memory, and waits.
    ///
    /// # Safety
    /// So many bytes were allocated there.
    unsafe fn write(&self, at: Address, from: &[f32]) -> Result<()>;

    /// Waits, and reads memory.
    ///
    /// # Safety
    /// So many bytes were allocated there.
    unsafe fn read(&self, at: Address, to: &mut [f32]) -> Result<()>;

    /// Runs a kernel on `grid` blocks of `block` threads.
    ///
    /// # Safety
    /// The arguments are the kernel's, and what they point to is as large as it says.
    unsafe fn launch(&self, kernel: &str, grid: [usize; 3], block: [usize; 3], args: &[Arg]) -> Result<()>;

    /// One of a convolution's products; what is written is overwritten.
    ///
    /// # Safety
    /// The maps and weights are as large as the convolution says.
    unsafe fn convolve(&self, of: &Convolution, pass: Pass, x: Address, w: Address, y: Address)
    -> Result<()>;

    /// One of a linear layer's products. `Forward` writes f32 if `wide`; `Weight` writes f32, and adds
    /// to it if `add`.
    ///
    /// # Safety
    /// The arrays are as large as the layer says.
    unsafe fn multiply(&self, of: Linear, pass: Pass, data: Product) -> Result<()>;

    /// Copies two views into memory that stays as it is until the second [`Device::send_views`] from
    /// now, one after the other; computation goes on meanwhile.
    fn send_views(&self, view1: &[f32], view2: &[f32]) -> Result<Address>;

    /// Says that all calls that read the views are made.
    fn views_read(&self) -> Result<()>;

    /// Sends a report (loss, spread; f32) on its way to the host.
    ///
    /// # Safety
    /// Two f32 are there.
    unsafe fn send_report(&self, at: Address) -> Result<()>;

    /// The reports that arrived, in order; of all that were sent if `all`, which waits.
    fn reports(&self, all: bool) -> Result<Vec<StepReport>>;
}

/// The arrays of [`Device::multiply`].
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// `[rows, inputs]`.
    pub x: Address,
    /// `[inputs, outputs]`.
    pub w: Address,
    /// `[rows, outputs]`.
    pub y: Address,
    /// The output of a forward product is f32.
    pub wide: bool,
    /// The gradient of the weights is added to.
    pub add: bool,
}
