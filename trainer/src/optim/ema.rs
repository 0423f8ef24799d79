//! The target's moving average: ξ ← τ·ξ + (1 − τ)·θ (Grill et al. 2020, eq. 1).
//!
//! The soft target update of DDPG (Lillicrap et al. 2015), in place, in one sweep.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use rayon::prelude::*;

use crate::nn::differentiable::values;

const CHUNK: usize = 1 << 16;

struct Update {
    tau: f32,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "moving-average"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, tl: &Layout, online: &CpuStorage, ol: &Layout) -> Result<()> {
        let online = values(online, ol)?;
        let target = values_mut(target, tl)?;
        let keep = self.tau;
        target.par_chunks_mut(CHUNK).zip(online.par_chunks(CHUNK)).for_each(|(target, online)| {
            target.iter_mut().zip(online).for_each(|(t, o)| *t += (1.0 - keep) * (o - *t));
        });
        Ok(())
    }
}

/// The values of a contiguous f32 tensor on the CPU, to write.
pub(super) fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => candle_core::bail!("the operation needs a contiguous f32 tensor on the CPU"),
    }
}

/// Moves `target` towards `online` by 1 − `tau`.
pub fn update(target: &Tensor, online: &Tensor, tau: f64) -> Result<()> {
    target.inplace_op2(online, &Update { tau: tau as f32 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_target_moves_by_one_minus_tau() {
        let target = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let online = Tensor::new(&[2f32, 2.0, 1.0], &Device::Cpu).unwrap();
        update(&target, &online, 0.75).unwrap();
        assert_eq!(target.to_vec1::<f32>().unwrap(), [1.25, 2.0, 2.5]);
    }
}
