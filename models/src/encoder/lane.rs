//! Lanes: one size of a run each, with memory of its own that a GPU copies from by itself.

use std::slice;

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use super::{Device, EncoderError, GraphShape, INPUT, OUTPUT, numbers, ort_error};
use crate::pixels::Pixels;

/// Sizes of a run up to `most`, the smallest first: powers of two and what lies halfway between them, so that no run
/// is filled up by more than a third of itself.
pub(super) fn sizes(most: usize) -> Vec<usize> {
    let powers = (0..usize::BITS - 1).map(|power| 1usize << power).take_while(|&power| power < most);
    let mut sizes: Vec<usize> = powers.flat_map(|power| [power, power + power / 2]).collect();
    sizes.dedup();
    sizes.retain(|&size| size < most);
    sizes.push(most);
    sizes
}

/// Memory that the GPU and the CPU reach: page-locked, so that a copy neither waits for the CPU nor goes through a
/// buffer of the driver.
pub(super) fn pinned(session: &Session, device: Device) -> Result<Allocator, EncoderError> {
    let (Device::Cuda(number) | Device::TensorRt(number)) = device else { return Ok(Allocator::default()) };
    let place =
        MemoryInfo::new(AllocationDevice::CUDA_PINNED, number, AllocatorType::Device, MemoryType::CPUInput);
    Allocator::new(session, place.map_err(ort_error)?).map_err(ort_error)
}

/// Runs of one size.
pub(super) struct Lane {
    size: usize,
    /// Bytes of a picture.
    stride: usize,
    binding: IoBinding,
    input: Tensor<u8>,
}

impl Lane {
    /// `memory` must be such that the CPU reaches it.
    pub(super) fn open(
        session: &Session,
        shape: GraphShape,
        size: usize,
        memory: &Allocator,
    ) -> Result<Self, EncoderError> {
        let GraphShape { height, width, .. } = shape;
        let stride = height as usize * width as usize * 3;
        let mut input =
            Tensor::<u8>::new(memory, [size, height as usize, width as usize, 3]).map_err(ort_error)?;
        // SAFETY: the tensor owns size·stride bytes, in memory that the CPU reaches, and nobody else has it yet.
        unsafe { input.data_ptr_mut().cast::<u8>().write_bytes(0, size * stride) };
        let mut binding = session.create_binding().map_err(ort_error)?;
        // The result is a few KB: it comes back into ordinary memory.
        binding.bind_output_to_device(OUTPUT, &MemoryInfo::default()).map_err(ort_error)?;
        Ok(Self { size, stride, binding, input })
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// One run on at most `size` pictures, each `stride` bytes; gives dim numbers for each. The places behind
    /// them hold pictures of an earlier run, whose vectors are thrown away.
    pub(super) fn run(
        &mut self,
        session: &mut Session,
        batch: &[Pixels],
        dim: usize,
    ) -> Result<Vec<f32>, EncoderError> {
        let stride = self.stride;
        for (place, picture) in self.bytes().chunks_exact_mut(stride).zip(batch) {
            place.copy_from_slice(picture.as_bytes());
        }
        // The device's copy is made here.
        self.binding.bind_input(INPUT, &self.input).map_err(ort_error)?;
        let outputs = session.run_binding(&self.binding).map_err(ort_error)?;
        let numbers = numbers(&outputs, self.size, dim)?;
        Ok(numbers[..batch.len() * dim].to_vec())
    }

    fn bytes(&mut self) -> &mut [u8] {
        let data = self.input.data_ptr_mut().cast::<u8>();
        // SAFETY: the tensor owns size·stride bytes of uint8, which `open` initialised, in memory
        // that the CPU reaches (ort's own check takes page-locked memory for the GPU's); `&mut self` is the only
        // way to them while the slice lives, since a run has ended before it gives its result.
        unsafe { slice::from_raw_parts_mut(data, self.size * self.stride) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_reach_the_largest_and_waste_no_more_than_a_third() {
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(5), [1, 2, 3, 4, 5]);
        assert_eq!(sizes(32), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]);
        for most in 1..300 {
            let sizes = sizes(most);
            assert!(sizes.is_sorted_by(|a, b| a < b) && sizes.last() == Some(&most));
            for count in 1..=most {
                let size = sizes.iter().find(|&&size| size >= count).copied();
                assert!(size.is_some_and(|size| 3 * (size - count) <= size), "{count} of {most}");
            }
        }
    }
}
