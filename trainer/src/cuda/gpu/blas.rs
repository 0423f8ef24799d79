//! Linear layers by cuBLAS.
//!
//! cuBLAS thinks in columns: a row-major `[a, b]` is its column-major `[b, a]`. So each product is
//! asked for transposed, and no array has to be.

use std::ffi::c_void;

use cudarc::cublas::{result, sys};
use cudarc::driver::CudaStream;

use super::super::device::{Address, CudaError, Linear, Pass, Product, Result};
use crate::device::Precision;

/// cuBLAS on a stream.
pub struct Blas {
    handle: sys::cublasHandle_t,
    values: sys::cudaDataType,
    compute: sys::cublasComputeType_t,
}

fn failed(error: result::CublasError) -> CudaError {
    CudaError(format!("cuBLAS: {error}"))
}

impl Blas {
    pub fn new(stream: &CudaStream, precision: Precision) -> Result<Self> {
        let handle = result::create_handle().map_err(failed)?;
        let (values, compute) = match precision {
            Precision::Bf16 => (sys::cudaDataType::CUDA_R_16BF, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F),
            Precision::Tf32 => {
                (sys::cudaDataType::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32)
            }
            Precision::F32 => {
                (sys::cudaDataType::CUDA_R_32F, sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_PEDANTIC)
            }
        };
        let blas = Self { handle, values, compute };
        // SAFETY: the stream outlives the handle: the GPU owns both and drops this first.
        unsafe { result::set_stream(handle, stream.cu_stream().cast()) }.map_err(failed)?;
        Ok(blas)
    }

    /// One product of a linear layer.
    ///
    /// # Safety
    /// The arrays are as large as the layer says.
    pub unsafe fn multiply(&self, of: Linear, pass: Pass, data: Product) -> Result<()> {
        let size = |value: usize| {
            i32::try_from(value).map_err(|_| CudaError(format!("{value} is too large for cuBLAS")))
        };
        let Columns { a, b, c, sizes: [m, n, k] } = columns(of, pass, data);
        let turn = |turned: bool| match turned {
            true => sys::cublasOperation_t::CUBLAS_OP_T,
            false => sys::cublasOperation_t::CUBLAS_OP_N,
        };
        let c_type = match pass {
            Pass::Forward if !data.wide => self.values,
            Pass::Input => self.values,
            Pass::Forward | Pass::Weight => sys::cudaDataType::CUDA_R_32F,
        };
        let (one, beta) = (1f32, if pass == Pass::Weight && data.add { 1f32 } else { 0f32 });
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the caller's promise; the dimensions are the arrays' own.
        unsafe {
            result::gemm_ex(
                self.handle,
                turn(a.turned),
                turn(b.turned),
                size(m)?,
                size(n)?,
                size(k)?,
                scalar(&one),
                a.at as *const c_void,
                self.values,
                size(a.leading)?,
                b.at as *const c_void,
                self.values,
                size(b.leading)?,
                scalar(&beta),
                c.at as *mut c_void,
                c_type,
                size(c.leading)?,
                self.compute,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(failed)
    }
}

/// A matrix as cuBLAS sees it.
#[derive(Debug, Clone, Copy)]
struct Columned {
    at: Address,
    /// It is read transposed.
    turned: bool,
    /// Values from a column to the next.
    leading: usize,
}

/// `c` \[m, n\] = `a` \[m, k\] · `b` \[k, n\], in columns.
struct Columns {
    a: Columned,
    b: Columned,
    c: Columned,
    /// m, n, k.
    sizes: [usize; 3],
}

fn columns(of: Linear, pass: Pass, data: Product) -> Columns {
    let Linear { rows, inputs, outputs } = of;
    let columned = |at, leading| Columned { at, turned: false, leading };
    let (x, w, y) = (columned(data.x, inputs), columned(data.w, outputs), columned(data.y, outputs));
    let turned = |matrix: Columned| Columned { turned: true, ..matrix };
    match pass {
        // yᵀ [outputs, rows] = wᵀ [outputs, inputs] · xᵀ [inputs, rows].
        Pass::Forward => Columns { a: w, b: x, c: y, sizes: [outputs, rows, inputs] },
        // dxᵀ [inputs, rows] = w [inputs, outputs] · dyᵀ [outputs, rows].
        Pass::Input => Columns { a: turned(w), b: y, c: x, sizes: [inputs, rows, outputs] },
        // dwᵀ [outputs, inputs] = dyᵀ [outputs, rows] · x [rows, inputs].
        Pass::Weight => Columns { a: y, b: turned(x), c: w, sizes: [outputs, inputs, rows] },
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle was created here.
        unsafe { result::destroy_handle(self.handle) }.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What BLAS's definition of gemm makes of the call.
    fn gemm(of: &Columns, arrays: &mut [Vec<f32>; 3]) {
        let [m, n, k] = of.sizes;
        let value = |matrix: Columned, row: usize, column: usize, arrays: &[Vec<f32>; 3]| {
            let (row, column) = if matrix.turned { (column, row) } else { (row, column) };
            arrays[matrix.at as usize][row + column * matrix.leading]
        };
        for row in 0..m {
            for column in 0..n {
                let sum: f32 =
                    (0..k).map(|i| value(of.a, row, i, arrays) * value(of.b, i, column, arrays)).sum();
                assert!(!of.c.turned);
                arrays[of.c.at as usize][row + column * of.c.leading] = sum;
            }
        }
    }

    #[test]
    fn the_calls_are_the_layers_products() {
        let of = Linear { rows: 3, inputs: 4, outputs: 5 };
        let data = Product { x: 0, w: 1, y: 2, wide: true, add: false };
        let arrays = [3 * 4, 4 * 5, 3 * 5].map(|n| (0..n).map(|i| (i * i % 7) as f32 - 3.0).collect());
        for (pass, written) in [(Pass::Forward, 2), (Pass::Input, 0), (Pass::Weight, 1)] {
            let mut found: [Vec<f32>; 3] = arrays.clone();
            gemm(&columns(of, pass, data), &mut found);
            let mut expected = arrays.clone();
            expected[written].fill(0.0);
            for r in 0..3 {
                for i in 0..4 {
                    for o in 0..5 {
                        let at = [r * 4 + i, i * 5 + o, r * 5 + o];
                        let (a, b) = ((written + 1) % 3, (written + 2) % 3);
                        expected[written][at[written]] += arrays[a][at[a]] * arrays[b][at[b]];
                    }
                }
            }
            assert_eq!(found, expected, "{pass:?}");
        }
    }
}
