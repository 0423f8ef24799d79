//! Decoding: how the files of an encoder's pictures are decoded. Part of the contract.

use serde::{Deserialize, Serialize};

/// What happens to the colours that a file declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Colour {
    /// Numbers are taken as if they were sRGB, as by Pillow's `convert("RGB")`.
    #[default]
    AsStored,
    /// An embedded ICC profile is applied, so that they are sRGB (relative colorimetric).
    Srgb,
}

/// How a picture file is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, out of the low frequencies alone, as far as each
    /// side stays at least this many times what it will be resized to: Pillow's `reducing_gap` with `draft`.
    /// Absent: always whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reducing_gap: Option<u32>,
    /// What happens to colours.
    pub colour: Colour,
}

impl Decoding {
    /// The largest gap that is taken.
    pub const MAX_GAP: u32 = 8;

    /// What new encoders are trained and served with. Pillow's documentation calls a gap of 2 fast and a good
    /// approximation of resizing the whole picture, and uses it for thumbnails.
    pub const NEW: Self = Self { reducing_gap: Some(2), colour: Colour::Srgb };

    /// Whether files are decoded whole and their colours taken as stored.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// The same for a picture that is wanted in its own size.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { reducing_gap: None, ..self }
    }

    /// Whether the fields are within their bounds.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(crate) fn validate(&self) -> Result<(), String> {
        match self.reducing_gap {
            Some(gap) if !(1..=Self::MAX_GAP).contains(&gap) => {
                Err(format!("decoding.reducing_gap is {gap}, but must be 1 to {}", Self::MAX_GAP))
            }
            _ => Ok(()),
        }
    }
}
