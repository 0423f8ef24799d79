//! Preprocess: how a picture file of any size becomes pixels of the encoder's height and width.

mod resample;

use serde::{Deserialize, Serialize};

use self::resample::{Window, crop, pixels, resample, resize};
use crate::decode::{DecodeError, DecodeLimits, Decoding, Extent, decode_as};
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

/// What happens to a picture file before the graph sees it. Part of the contract.
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
    /// How files are decoded. Absent where they are decoded whole and their colours taken as stored.
    #[serde(default, skip_serializing_if = "Decoding::is_plain")]
    pub decoding: Decoding,
}

fn white() -> [u8; 3] {
    [255; 3]
}

/// Why a picture file did not become the encoder's pixels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It gave no pixels.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its pixels could not be brought to size.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
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
            decoding: Decoding::default(),
        }
    }

    /// Whether the fields agree with each other.
    ///
    /// # Errors
    /// Sides of zero or above [`Self::MAX_SIDE`], or a `resize_shortest` that is missing,
    /// too small, or given for another policy.
    pub fn validate(&self) -> Result<(), PreprocessError> {
        let refuse = |reason: String| Err(PreprocessError::Invalid { reason });
        for (name, side) in [("height", self.height), ("width", self.width)] {
            if side == 0 || side > Self::MAX_SIDE {
                return refuse(format!("{name} is {side}, but must be 1 to {}", Self::MAX_SIDE));
            }
        }
        self.decoding.validate().map_err(|reason| PreprocessError::Invalid { reason })?;
        let least = self.height.max(self.width);
        match (self.policy, self.resize_shortest) {
            (ResizePolicy::ShortestEdgeCenterCrop, None) => {
                refuse("shortest_edge_center_crop needs resize_shortest".into())
            }
            (ResizePolicy::ShortestEdgeCenterCrop, Some(shortest)) => {
                if shortest < least || shortest > Self::MAX_SIDE {
                    return refuse(format!(
                        "resize_shortest is {shortest}, but must be {least} to {}",
                        Self::MAX_SIDE
                    ));
                }
                Ok(())
            }
            (_, Some(_)) => refuse("resize_shortest is for shortest_edge_center_crop alone".into()),
            (_, None) => Ok(()),
        }
    }

    /// Decodes a picture file as [`Preprocess::decoding`] says and brings it to size.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, file: &[u8], limits: &DecodeLimits) -> Result<Pixels, LoadError> {
        self.validate()?;
        let (pixels, extent) =
            decode_as(file, limits, &self.decoding, &|height, width| self.resized(height, width))?;
        Ok(self.bring(&pixels, extent)?)
    }

    /// Brings a picture to exactly `height` x `width`; one of that size comes back unchanged
    /// unless it is to be enlarged and cut.
    ///
    /// # Errors
    /// A description that contradicts itself.
    pub fn apply(&self, picture: &Pixels) -> Result<Pixels, PreprocessError> {
        self.validate()?;
        self.bring(picture, Extent::of(picture))
    }

    fn bring(&self, picture: &Pixels, extent: Extent) -> Result<Pixels, PreprocessError> {
        match self.policy {
            ResizePolicy::Squash => resize(picture, extent, self.height, self.width, self.filter),
            ResizePolicy::ShortestEdgeCenterCrop => self.center_crop(picture, extent),
            ResizePolicy::FitPad => self.fit_pad(picture, extent),
        }
    }

    /// Height and width that a picture of that height and width is resized to, before anything is cut or added.
    #[must_use]
    pub fn resized(&self, height: u32, width: u32) -> (u32, u32) {
        let (h, w) = (u64::from(height.max(1)), u64::from(width.max(1)));
        let (target_h, target_w) = (u64::from(self.height), u64::from(self.width));
        let (h, w) = match self.policy {
            ResizePolicy::Squash => (target_h, target_w),
            ResizePolicy::ShortestEdgeCenterCrop => {
                let shortest = u64::from(self.shortest());
                // torchvision truncates the longer side.
                if h <= w { (shortest, shortest * w / h) } else { (shortest * h / w, shortest) }
            }
            // As Pillow's ImageOps.pad: one side fits exactly, the other is rounded.
            ResizePolicy::FitPad if w * target_h > h * target_w => {
                (divide_rounded(h * target_w, w).clamp(1, target_h), target_w)
            }
            ResizePolicy::FitPad => (target_h, divide_rounded(w * target_h, h).clamp(1, target_w)),
        };
        (h as u32, w as u32)
    }

    fn shortest(&self) -> u32 {
        self.resize_shortest.unwrap_or(self.height.max(self.width))
    }

    fn center_crop(&self, picture: &Pixels, extent: Extent) -> Result<Pixels, PreprocessError> {
        let Extent { height, width, .. } = extent;
        // Of a strip a thousand times as long as wide, nearly everything would be scaled only
        // to be cut off; its middle is enough, and keeps the cost bounded.
        let longest = height.min(width).saturating_mul(MAX_ASPECT);
        if height.max(width) > longest {
            let strip = crop(picture, height.min(longest), width.min(longest))?;
            return self.center_crop(&strip, Extent::of(&strip));
        }
        let whole = self.resized(height, width);
        if extent == Extent::of(picture) && whole == (picture.height(), picture.width()) {
            return crop(picture, self.height, self.width);
        }
        let window = Window::centred(whole, (self.height, self.width));
        resample(picture, extent, whole, window, self.filter)
    }

    fn fit_pad(&self, picture: &Pixels, extent: Extent) -> Result<Pixels, PreprocessError> {
        let (height, width) = self.resized(extent.height, extent.width);
        let inner = resize(picture, extent, height, width, self.filter)?;
        if inner.height() == self.height && inner.width() == self.width {
            return Ok(inner);
        }
        let mut data = self.background.repeat((self.height * self.width) as usize);
        let top = divide_rounded(u64::from(self.height - height), 2) as usize;
        let left = divide_rounded(u64::from(self.width - width), 2) as usize;
        let (row, target_row) = (width as usize * 3, self.width as usize * 3);
        for (y, pixels) in inner.as_bytes().chunks_exact(row).enumerate() {
            let at = (top + y) * target_row + left * 3;
            data[at..at + row].copy_from_slice(pixels);
        }
        pixels(picture, self.height, self.width, data)
    }
}

/// How many times as long as wide a picture may be before its ends are cut off unscaled; longer ones are decoded whole.
pub(crate) const MAX_ASPECT: u32 = 16;

/// Half to even, as Python's `round`.
fn divide_rounded(numerator: u64, denominator: u64) -> u64 {
    let (quotient, rest) = (numerator / denominator, numerator % denominator);
    let up = rest * 2 > denominator || (rest * 2 == denominator && quotient % 2 == 1);
    quotient + u64::from(up)
}

#[cfg(test)]
mod tests;
