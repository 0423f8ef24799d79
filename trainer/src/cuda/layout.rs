//! Where each array of a network lies in the device's flat vectors, and in which order of values.
//!
//! A convolution's weights are `[kernel, kernel, cin, cout]` in [`Weights`] and `[cout, kernel, kernel,
//! cin]` on the device, as cuDNN wants them for channels-last maps; the pictures' three channels are
//! filled up with zeros to a whole pack of 16 bytes. LARS and the moving average do not mind: they
//! work on single values and on sums over an array, and the zeros stay zero. So arrays change their
//! order only on their way in and out, and no step does it.

use std::collections::HashMap;
use std::ops::Range;

use crate::nn::layout::{Layout, Role};
use crate::nn::weights::{WeightTensor, Weights, WeightsError};

/// Arrays start at multiples of so many values: of 128 bytes in bf16.
const ALIGNMENT: usize = 64;

/// One array.
#[derive(Debug, Clone)]
pub struct Segment {
    name: String,
    shape: Vec<usize>,
    /// Where it lies.
    pub range: Range<usize>,
    /// How the optimiser treats it.
    pub role: Role,
}

impl Segment {
    /// Whether it is a convolution's weights.
    pub fn is_filter(&self) -> bool {
        self.shape.len() == 4
    }

    /// Channels in of a convolution on the device.
    fn padded(&self) -> usize {
        self.range.len() / (self.shape[0] * self.shape[1] * self.shape[3])
    }

    /// Calls `f` with (index in [`Weights`], index from the start of the segment) of every value.
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        if !self.is_filter() {
            (0..self.range.len()).for_each(|i| f(i, i));
            return;
        }
        let (taps, cin, cout) = (self.shape[0] * self.shape[1], self.shape[2], self.shape[3]);
        let padded = self.padded();
        for tap in 0..taps {
            for ci in 0..cin {
                for co in 0..cout {
                    f((tap * cin + ci) * cout + co, (co * taps + tap) * padded + ci);
                }
            }
        }
    }
}

/// The arrays of a flat vector on the device.
#[derive(Debug, Clone, Default)]
pub struct DeviceLayout {
    segments: Vec<Segment>,
    by_name: HashMap<String, usize>,
    len: usize,
}

impl DeviceLayout {
    /// The arrays of these layouts, one after the other; `pack` values make 16 bytes.
    pub fn new(parts: &[&Layout], pack: usize) -> Self {
        let mut layout = Self::default();
        for segment in parts.iter().flat_map(|part| part.segments()) {
            let values: usize = match segment.shape[..] {
                [a, b, cin, cout] => a * b * cin.next_multiple_of(pack) * cout,
                ref shape => shape.iter().product(),
            };
            let start = layout.len.next_multiple_of(ALIGNMENT);
            layout.by_name.insert(segment.name.clone(), layout.segments.len());
            layout.segments.push(Segment {
                name: segment.name.clone(),
                shape: segment.shape.clone(),
                range: start..start + values,
                role: segment.role,
            });
            layout.len = start + values;
        }
        layout.len = layout.len.next_multiple_of(ALIGNMENT);
        layout
    }

    /// Values in all, with those between arrays.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All arrays in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Where an array starts.
    pub fn start(&self, name: &str) -> Result<usize, WeightsError> {
        let index = self.by_name.get(name).ok_or_else(|| WeightsError::Missing(name.into()))?;
        Ok(self.segments[*index].range.start)
    }

    /// The flat vector of these arrays.
    pub fn flatten(&self, weights: &Weights) -> Result<Vec<f32>, WeightsError> {
        let mut flat = vec![0f32; self.len];
        for segment in &self.segments {
            let from = &weights.get(&segment.name, &segment.shape)?.data;
            let to = &mut flat[segment.range.clone()];
            segment.each(|host, device| to[device] = from[host]);
        }
        Ok(flat)
    }

    /// Adds the arrays of a flat vector to named weights.
    pub fn unflatten(&self, flat: &[f32], into: &mut Weights) {
        for segment in &self.segments {
            let mut data = vec![0f32; segment.shape.iter().product()];
            let from = &flat[segment.range.clone()];
            segment.each(|host, device| data[host] = from[device]);
            into.0.insert(segment.name.clone(), WeightTensor { shape: segment.shape.clone(), data });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nn::config::{Arch, EncoderConfig};

    #[test]
    fn weights_survive_the_way_there_and_back() {
        let weights = Weights::random(&EncoderConfig::new(Arch::Resnet50, 0.125, 72), 3);
        let host = Layout::of(&weights, |_| true);
        for pack in [4, 8] {
            let layout = DeviceLayout::new(&[&host], pack);
            let mut back = Weights::default();
            let flat = layout.flatten(&weights).unwrap();
            layout.unflatten(&flat, &mut back);
            assert_eq!(weights, back);
            assert!(layout.segments().iter().all(|s| s.range.start.is_multiple_of(ALIGNMENT)));
        }
    }

    #[test]
    fn filters_lie_as_cudnn_wants_them() {
        let mut weights = Weights::default();
        let data = (0..2 * 2 * 3 * 5).map(|i| i as f32).collect();
        weights.0.insert("conv.weight".into(), WeightTensor { shape: vec![2, 2, 3, 5], data });
        let layout = DeviceLayout::new(&[&Layout::of(&weights, |_| true)], 4);
        let flat = layout.flatten(&weights).unwrap();
        // Output channel 4, kernel row 1, kernel column 0, input channel 2.
        assert_eq!(flat[(4 * 4 + 2) * 4 + 2], ((2 * 3 + 2) * 5 + 4) as f32);
        assert_eq!(flat[(4 * 4 + 2) * 4 + 3], 0.0, "the fourth channel in is filled up with zeros");
    }
}
