//! ResNet weights under torchvision's names: `conv1.weight`, `layer1.0.bn2.running_mean`, `layer2.0.downsample.0.weight`.

use std::path::Path;

use candle_core::{DType, Device};

use crate::nn::weights::{WeightTensor, Weights};

/// A file that holds no torchvision ResNet.
#[derive(Debug, thiserror::Error)]
pub enum TorchvisionError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Not in the safetensors format, or not with a ResNet's names.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// Reads the encoder out of a safetensors file of torchvision's `resnet18`, `resnet34` or `resnet50`, of any float
/// type. Its classifier (`fc`) and counters (`num_batches_tracked`) are left.
///
/// # Errors
/// No such file, not safetensors, or a name that a ResNet does not have.
pub fn read(path: &Path) -> Result<Weights, TorchvisionError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| TorchvisionError::Io { path: name.clone(), source })?;
    let refuse = |reason: String| TorchvisionError::Format { path: name.clone(), reason };
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|e| refuse(format!("no safetensors file: {e}")))?;
    let mut weights = Weights::default();
    for (theirs, tensor) in tensors {
        if theirs.starts_with("fc.") || theirs.ends_with(".num_batches_tracked") {
            continue;
        }
        let Some(ours) = our_name(&theirs) else {
            return Err(refuse(format!(
                "`{theirs}` is no array of a torchvision ResNet: expected names such as conv1.weight and \
                 layer1.0.bn1.weight"
            )));
        };
        // Convolutions are [out, in, height, width] there and [height, width, in, out] here.
        let tensor = match tensor.rank() {
            4 => tensor.permute((2, 3, 1, 0)),
            _ => Ok(tensor),
        };
        let values = tensor.and_then(|t| {
            let shape = t.dims().to_vec();
            Ok(WeightTensor { shape, data: t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()? })
        });
        weights.0.insert(ours, values.map_err(|e| refuse(format!("`{theirs}`: {e}")))?);
    }
    Ok(weights)
}

/// The name here of an array there.
fn our_name(theirs: &str) -> Option<String> {
    let (unit, part) = theirs.rsplit_once('.')?;
    if !["weight", "bias", "running_mean", "running_var"].contains(&part) {
        return None;
    }
    let unit = match unit {
        "conv1" => "stem.conv".to_owned(),
        "bn1" => "stem.norm".to_owned(),
        _ => {
            let mut pieces = unit.strip_prefix("layer")?.splitn(3, '.');
            let (stage, block): (usize, usize) = (pieces.next()?.parse().ok()?, pieces.next()?.parse().ok()?);
            let inner = pieces.next()?;
            let ours = match inner {
                "downsample.0" => "shortcut.conv".to_owned(),
                "downsample.1" => "shortcut.norm".to_owned(),
                "conv1" | "conv2" | "conv3" => inner.to_owned(),
                _ => format!("norm{}", inner.strip_prefix("bn")?.parse::<usize>().ok()?),
            };
            format!("stage{stage}.block{block}.{ours}")
        }
    };
    Some(format!("{unit}.{part}"))
}

/// Flags that fit the weights, for a message.
#[must_use]
pub fn hint(weights: &Weights) -> String {
    let has = |name: &str| weights.0.contains_key(name);
    let arch = match (has("stage1.block0.conv3.weight"), has("stage3.block5.conv1.weight")) {
        (true, _) => "resnet50",
        (false, true) => "resnet34",
        (false, false) => "resnet18",
    };
    let width = weights.0.get("stem.norm.weight").map_or(1.0, |t| t.data.len() as f64 / 64.0);
    let stem = weights.0.get("stem.conv.weight").map_or(7, |t| t.shape.first().copied().unwrap_or(7));
    let size = if stem == 7 { "above 64" } else { "of at most 64" };
    format!("the file fits --arch {arch} --width {width} and an --image-size {size}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_those_of_the_trainer() {
        for (theirs, ours) in [
            ("conv1.weight", "stem.conv.weight"),
            ("bn1.running_var", "stem.norm.running_var"),
            ("layer1.0.conv1.weight", "stage1.block0.conv1.weight"),
            ("layer4.2.bn3.bias", "stage4.block2.norm3.bias"),
            ("layer2.0.downsample.0.weight", "stage2.block0.shortcut.conv.weight"),
            ("layer2.0.downsample.1.running_mean", "stage2.block0.shortcut.norm.running_mean"),
        ] {
            assert_eq!(our_name(theirs).as_deref(), Some(ours));
        }
        for theirs in [
            "",
            "weight",
            "encoder.conv1.weight",
            "layer1.0.conv4.weight",
            "layer1.x.conv1.weight",
            "bn1.momentum",
        ] {
            assert_eq!(our_name(theirs), None, "{theirs}");
        }
    }
}
