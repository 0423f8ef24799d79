//! Decode: the bytes of a picture file become pixels.

mod alone;
mod colour;
mod convert;
mod decoding;
mod extent;
mod frames;
mod general;
mod jpeg;
mod png;
mod scaled;
mod sniff;
mod tiff;
mod vp8l;

use bytes::Bytes;

use crate::pixels::Pixels;
pub use alone::decode_alone;
pub use decoding::{Colour, Decoding};
pub use extent::{Extent, Part};
pub use sniff::{ImageKind, sniff};

/// A picture file that was not decoded yet. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ImageBytes(pub Bytes);

impl ImageBytes {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for ImageBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for ImageBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Bytes> for ImageBytes {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for ImageBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageBytes({} bytes)", self.0.len())
    }
}

/// What a picture may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Bytes of the file.
    pub max_bytes: usize,
    /// Pixels that its header may declare, width·height; a side has at most 65,535.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_bytes: 32 * 1024 * 1024, max_pixels: 50_000_000 }
    }
}

/// Longest side of a picture, that of a JPEG: a row costs time however few pixels it has.
const MAX_SIDE: u32 = 65_535;

/// Why a file gave no pixels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No byte at all.
    #[error("the image is empty: send the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file")]
    Empty,
    /// The file is larger than allowed.
    #[error("the image is {bytes} bytes, but at most {max} are taken")]
    TooLarge {
        /// Bytes of the file.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The header declares more pixels than allowed; nothing was decoded.
    #[error("the image is {width}x{height} pixels, but at most {max} pixels are taken: shrink it first")]
    TooManyPixels {
        /// Columns that the header declares.
        width: u32,
        /// Rows that the header declares.
        height: u32,
        /// Pixels allowed.
        max: u64,
    },
    /// The header declares a side that is longer than taken; nothing was decoded.
    #[error(
        "the image is {width}x{height} pixels, but a side has at most {MAX_SIDE}: cut or shrink it first"
    )]
    TooLong {
        /// Columns that the header declares.
        width: u32,
        /// Rows that the header declares.
        height: u32,
    },
    /// Not one of the formats, or a variant of one that is not supported.
    #[error("{reason}: JPEG, PNG, WebP, GIF, BMP and TIFF are taken")]
    UnsupportedFormat {
        /// What was found instead.
        reason: String,
    },
    /// A file of a known format that is cut short or broken.
    #[error("the image is corrupt or cut short: {reason}")]
    Corrupt {
        /// What the decoder said.
        reason: String,
    },
}

impl DecodeError {
    /// A stable code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "empty_image",
            Self::TooLarge { .. } => "image_too_large",
            Self::TooManyPixels { .. } | Self::TooLong { .. } => "too_many_pixels",
            Self::UnsupportedFormat { .. } => "unsupported_format",
            Self::Corrupt { .. } => "corrupt_image",
        }
    }
}

/// Decodes a picture file to upright RGB of 8 bits, whole, its colours as stored.
///
/// The header is checked before anything is decoded. EXIF orientation is applied; grey,
/// palette, 16-bit, float and CMYK become 8-bit RGB; alpha is laid over white; of an
/// animation the first frame is taken. Colour profiles are not applied, as in Pillow's
/// `convert("RGB")`: [`decode_as`] can.
///
/// Memory: up to about 11 bytes for each pixel while decoding (9 for a progressive JPEG, 11 for 16-bit RGBA).
///
/// # Errors
/// See [`DecodeError`]. Never panics: a panic inside a decoder is [`DecodeError::Corrupt`].
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Pixels, DecodeError> {
    Ok(decode_as(bytes, limits, &Decoding::default(), &|height, width| (height, width))?.0)
}

/// Height and width that a picture of that height and width will be resized to.
pub type Target<'a> = &'a (dyn Fn(u32, u32) -> (u32, u32) + std::panic::RefUnwindSafe);

/// As [`decode`], but as `decoding` says, for a picture that will be resized to `target`: perhaps at a fraction of
/// its size, which the [`Extent`] tells.
///
/// # Errors
/// As [`decode`].
pub fn decode_as(
    bytes: &[u8],
    limits: &DecodeLimits,
    decoding: &Decoding,
    target: Target<'_>,
) -> Result<(Pixels, Extent), DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), max: limits.max_bytes });
    }
    let kind = sniff(bytes).ok_or_else(|| DecodeError::UnsupportedFormat {
        reason: format!("the file is {}", sniff::describe_unknown(bytes)),
    })?;
    // A decoder is handed nothing but these bytes, so nothing half-changed survives a panic.
    let attempt = std::panic::catch_unwind(|| match kind {
        ImageKind::Jpeg => jpeg::decode(bytes, limits, decoding, target),
        other => general::decode(other, bytes, limits, decoding),
    });
    match attempt {
        Ok(outcome) => outcome,
        Err(_) => {
            tracing::error!(%kind, bytes = bytes.len(), "a picture decoder panicked; the picture is refused");
            Err(DecodeError::Corrupt { reason: format!("the {kind} decoder gave up on it") })
        }
    }
}

/// Refuses a header that declares more pixels, or more bytes of decoded samples, than allowed.
fn check_size(
    width: u32,
    height: u32,
    bytes_per_pixel: u64,
    limits: &DecodeLimits,
) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::Corrupt { reason: format!("the header declares {width}x{height} pixels") });
    }
    let deep = limits.max_pixels.saturating_mul(8) / bytes_per_pixel.max(1);
    let max = limits.max_pixels.min(deep);
    if u64::from(width) * u64::from(height) > max {
        return Err(DecodeError::TooManyPixels { width, height, max });
    }
    if width.max(height) > MAX_SIDE {
        return Err(DecodeError::TooLong { width, height });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
