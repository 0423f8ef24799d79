//! Where a pixel of a batch of feature maps lies in memory.

/// A batch of feature maps, channels last, with a border of `pad` zero pixels on every side:
/// `[images, height + 2·pad, width + 2·pad, channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Images in the batch.
    pub images: usize,
    /// Rows without the border.
    pub height: usize,
    /// Pixels in a row without the border.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
    /// Width of the zero border.
    pub pad: usize,
}

impl Geometry {
    /// Values in all.
    pub fn len(&self) -> usize {
        self.images * self.image_stride()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values between a row and the next.
    pub fn row_stride(&self) -> usize {
        (self.width + 2 * self.pad) * self.channels
    }

    /// Values between an image and the next.
    pub fn image_stride(&self) -> usize {
        (self.height + 2 * self.pad) * self.row_stride()
    }

    /// Where pixel (0, 0) of image 0 starts.
    pub fn origin(&self) -> usize {
        self.pad * self.row_stride() + self.pad * self.channels
    }

    /// Pixels of one image, border not counted.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// The same maps with another border.
    pub fn with_pad(self, pad: usize) -> Self {
        Self { pad, ..self }
    }
}
