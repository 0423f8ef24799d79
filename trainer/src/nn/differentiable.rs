//! A part of a network with explicit passes, and its place in candle's graph as one operation.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout as TensorLayout, Result, Shape, Tensor, bail};

use super::buffer::Pool;
use super::layout::Layout;
use super::unit::{Mode, State};

/// A part of a network: `[rows, …]` to `[rows, output_dim]`, with a flat vector of trained arrays.
pub trait Differentiable: Send + Sync + 'static {
    /// What the backward pass needs of the forward pass.
    type Tape: Send + Sync;

    /// Places of the trained arrays.
    fn params(&self) -> &Layout;
    /// Places of the running statistics.
    fn statistics(&self) -> &Layout;
    /// Features of an output row.
    fn output_dim(&self) -> usize;
    /// Forward; gives a tape when `state.record`.
    fn forward(&self, state: &mut State, input: &[f32]) -> (Vec<f32>, Option<Self::Tape>);
    /// Backward from the gradient of the output: adds to `grads` that of the trained arrays, gives
    /// that of the input, row-major (`None` from a part that is always first).
    fn backward(
        &self,
        params: &[f32],
        tape: Self::Tape,
        gradient: &[f32],
        grads: &mut [f32],
        pool: &Arc<Pool>,
    ) -> Option<Vec<f32>>;
}

/// One call of a part, as an operation of candle's graph over (input, flat trained arrays).
///
/// The gradient of the trained arrays does not travel through candle, which would copy it twice:
/// it is added to the part's own.
pub struct Call<N: Differentiable> {
    part: Arc<N>,
    statistics: Arc<Mutex<Vec<f32>>>,
    gradients: Arc<Mutex<Vec<f32>>>,
    mode: Mode,
    pool: Arc<Pool>,
    record: bool,
    tape: Mutex<Option<N::Tape>>,
}

impl<N: Differentiable> Call<N> {
    /// A call that can be differentiated once if `record`.
    pub fn new(
        part: &Arc<N>,
        statistics: &Arc<Mutex<Vec<f32>>>,
        gradients: &Arc<Mutex<Vec<f32>>>,
        mode: Mode,
        pool: &Arc<Pool>,
        record: bool,
    ) -> Self {
        let (part, statistics, pool) = (part.clone(), statistics.clone(), pool.clone());
        Self { part, statistics, gradients: gradients.clone(), mode, pool, record, tape: Mutex::new(None) }
    }
}

/// The values of a contiguous f32 tensor on the CPU.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &TensorLayout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("the operation needs a contiguous tensor"),
    }
}

/// Calls `f` with the values of a contiguous f32 tensor on the CPU.
pub(crate) fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(f(values(storage, layout)?)),
        _ => bail!("the operation runs on the CPU"),
    }
}

impl<N: Differentiable> CustomOp2 for Call<N> {
    fn name(&self) -> &'static str {
        "network-part"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &TensorLayout,
        params: &CpuStorage,
        pl: &TensorLayout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = State {
            params: values(params, pl)?,
            statistics: &mut statistics,
            mode: self.mode,
            pool: &self.pool,
            record: self.record,
        };
        let (out, tape) = self.part.forward(&mut state, values(x, xl)?);
        *self.tape.lock().unwrap_or_else(PoisonError::into_inner) = tape;
        let rows = xl.dims().first().copied().unwrap_or(0);
        Ok((CpuStorage::F32(out), Shape::from((rows, self.part.output_dim()))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(tape) = self.tape.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("a call of a network part can be differentiated once, and only if it recorded");
        };
        let gradient = gradient.contiguous()?;
        let mut grads = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let input = with_values(&gradient, |gradient| {
            with_values(params, |params| self.part.backward(params, tape, gradient, &mut grads, &self.pool))
        })??;
        let input = input.map(|input| Tensor::from_vec(input, x.shape(), x.device())).transpose()?;
        Ok((input, None))
    }
}
