//! Decode: the bytes of a picture file become pixels.

use bytes::Bytes;

use crate::pixels::Pixels;

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
    /// Pixels that its header may declare, width·height.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_bytes: 32 * 1024 * 1024, max_pixels: 50_000_000 }
    }
}

/// The format of a picture file, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    WebP,
    /// GIF.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF.
    Tiff,
}

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
            Self::TooManyPixels { .. } => "too_many_pixels",
            Self::UnsupportedFormat { .. } => "unsupported_format",
            Self::Corrupt { .. } => "corrupt_image",
        }
    }
}

/// The format of a picture file by its first bytes, never by a name; `None` when unknown.
pub fn sniff(_bytes: &[u8]) -> Option<ImageKind> {
    None
}

/// Decodes a picture file to upright RGB of 8 bits.
///
/// # Errors
/// See [`DecodeError`]. Never panics.
pub fn decode(_bytes: &[u8], _limits: &DecodeLimits) -> Result<Pixels, DecodeError> {
    Err(DecodeError::Empty)
}
