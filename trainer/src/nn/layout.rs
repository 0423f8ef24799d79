//! Where each array of a network lies in one flat vector.
//!
//! Optimiser, moving average and checkpoints work on one contiguous vector per network, in one
//! sweep; names and shapes are kept beside it.

use std::collections::HashMap;
use std::ops::Range;

use super::weights::{WeightTensor, Weights, WeightsError};

/// How the optimiser treats an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A convolution's or linear layer's weight: adapted by LARS, decayed.
    Weight,
    /// A bias or a norm's scale or shift: neither adapted nor decayed (BYOL, appendix C).
    Excluded,
    /// A running statistic: not trained.
    Statistic,
}

/// One array's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Name in [`Weights`].
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Where it lies.
    pub range: Range<usize>,
    /// How the optimiser treats it.
    pub role: Role,
}

/// The arrays of a flat vector, in order and without gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    segments: Vec<Segment>,
    by_name: HashMap<String, usize>,
    len: usize,
}

impl Layout {
    /// The arrays of `weights` for which `keep` gives a role.
    pub fn of(weights: &Weights, keep: impl Fn(Role) -> bool) -> Self {
        let mut layout = Self::default();
        for (name, tensor) in &weights.0 {
            let role = role_of(name);
            if keep(role) {
                layout.push(name, &tensor.shape, role);
            }
        }
        layout
    }

    fn push(&mut self, name: &str, shape: &[usize], role: Role) {
        let end = self.len + shape.iter().product::<usize>();
        let segment = Segment { name: name.into(), shape: shape.to_vec(), range: self.len..end, role };
        self.by_name.insert(name.into(), self.segments.len());
        self.segments.push(segment);
        self.len = end;
    }

    /// Values in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no arrays.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All arrays in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Where an array lies.
    pub fn range(&self, name: &str) -> Result<Range<usize>, WeightsError> {
        let index = self.by_name.get(name).ok_or_else(|| WeightsError::Missing(name.into()))?;
        Ok(self.segments[*index].range.clone())
    }

    /// The flat vector of these arrays out of named weights.
    pub fn flatten(&self, weights: &Weights) -> Result<Vec<f32>, WeightsError> {
        let mut flat = Vec::with_capacity(self.len);
        for segment in &self.segments {
            flat.extend_from_slice(&weights.get(&segment.name, &segment.shape)?.data);
        }
        Ok(flat)
    }

    /// Adds the arrays of a flat vector to named weights.
    ///
    /// # Panics
    /// If `flat` is not [`Layout::len`] long.
    pub fn unflatten(&self, flat: &[f32], into: &mut Weights) {
        assert_eq!(flat.len(), self.len);
        for segment in &self.segments {
            let data = flat[segment.range.clone()].to_vec();
            into.0.insert(segment.name.clone(), WeightTensor { shape: segment.shape.clone(), data });
        }
    }
}

fn role_of(name: &str) -> Role {
    if name.contains(".running_") {
        Role::Statistic
    } else if name.contains("norm.")
        || name.contains("norm1.")
        || name.contains("norm2.")
        || name.contains("norm3.")
        || name.ends_with(".bias")
    {
        Role::Excluded
    } else {
        Role::Weight
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nn::config::{Arch, EncoderConfig};

    #[test]
    fn weights_survive_the_way_there_and_back() {
        let weights = Weights::random(&EncoderConfig::new(Arch::Resnet18, 0.125, 32), 3);
        let trained = Layout::of(&weights, |role| role != Role::Statistic);
        let statistics = Layout::of(&weights, |role| role == Role::Statistic);
        assert_eq!(trained.len(), weights.parameters());
        let mut back = Weights::default();
        trained.unflatten(&trained.flatten(&weights).unwrap(), &mut back);
        statistics.unflatten(&statistics.flatten(&weights).unwrap(), &mut back);
        assert_eq!(weights, back);
    }

    #[test]
    fn only_weights_of_linear_maps_are_adapted() {
        assert_eq!(role_of("stage1.block0.conv1.weight"), Role::Weight);
        assert_eq!(role_of("projector.linear1.weight"), Role::Weight);
        assert_eq!(role_of("projector.linear1.bias"), Role::Excluded);
        assert_eq!(role_of("stage1.block0.norm1.weight"), Role::Excluded);
        assert_eq!(role_of("stage2.block0.shortcut.norm.bias"), Role::Excluded);
        assert_eq!(role_of("stem.norm.running_var"), Role::Statistic);
    }
}
