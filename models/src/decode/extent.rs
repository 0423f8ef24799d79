//! Extent: which part of decoded pixels is the picture, and how large the picture is in its file.

use image::metadata::Orientation;

use crate::pixels::Pixels;

/// A picture at a fraction of its size ends within a pixel, unless its sides divide evenly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// Rows of the upright picture in its file.
    pub height: u32,
    /// Columns of the upright picture in its file.
    pub width: u32,
    /// Eighths of the size that it was decoded at: 8 is the whole.
    eighths: u32,
    /// Pixels before the first row and column that are not the picture's.
    top: f64,
    left: f64,
}

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// From the left.
    pub left: f64,
    /// From the top.
    pub top: f64,
    /// Columns.
    pub width: f64,
    /// Rows.
    pub height: f64,
}

impl Extent {
    /// Of a picture decoded whole.
    #[must_use]
    pub fn of(picture: &Pixels) -> Self {
        Self { height: picture.height(), width: picture.width(), eighths: 8, top: 0.0, left: 0.0 }
    }

    /// Of a picture of `height` x `width` as stored, decoded at so many eighths and then turned upright.
    pub(super) fn scaled(height: u32, width: u32, eighths: u32, orientation: Orientation) -> Self {
        // What is beyond the picture lies at the bottom and on the right of what is stored.
        let beyond = |side: u32| f64::from(scaled_side(side, eighths)) - f64::from(side * eighths) / 8.0;
        let (down, across) = (beyond(height), beyond(width));
        let (top, left) = match orientation {
            Orientation::NoTransforms | Orientation::Rotate90FlipH => (0.0, 0.0),
            Orientation::FlipHorizontal => (0.0, across),
            Orientation::FlipVertical => (down, 0.0),
            Orientation::Rotate180 => (down, across),
            // The first column was the last row.
            Orientation::Rotate90 => (0.0, down),
            // The first row was the last column.
            Orientation::Rotate270 => (across, 0.0),
            Orientation::Rotate270FlipH => (across, down),
        };
        let (height, width) = if turns(orientation) { (width, height) } else { (height, width) };
        Self { height, width, eighths, top, left }
    }

    /// The picture in the pixels.
    #[must_use]
    pub fn part(&self) -> Part {
        let side = |side: u32| f64::from(side) * f64::from(self.eighths) / 8.0;
        Part { left: self.left, top: self.top, width: side(self.width), height: side(self.height) }
    }
}

/// Pixels of a side at so many eighths.
pub(super) fn scaled_side(side: u32, eighths: u32) -> u32 {
    (side * eighths).div_ceil(8)
}

/// Whether rows become columns.
pub(super) fn turns(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH)
}
