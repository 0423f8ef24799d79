//! Pixels: a decoded picture, RGB of 8 bits.

/// A picture of shape [height, width, 3], row by row, RGB, 8 bits a channel (sRGB).
#[derive(Clone, PartialEq, Eq)]
pub struct Pixels {
    height: u32,
    width: u32,
    data: Vec<u8>,
}

/// Why bytes are no pixels of the given size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PixelsError {
    /// A side of zero pixels.
    #[error("a picture of {width}x{height} pixels has no pixel")]
    Empty {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
    /// Not height·width·3 bytes.
    #[error("{height} rows of {width} RGB pixels are {expected} bytes, but {actual} were given")]
    Length {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
        /// height·width·3.
        expected: u64,
        /// Bytes that were given.
        actual: usize,
    },
}

/// Height and width of a picture that is shrunk, its shape kept, until its longer side is at most `longest`.
#[must_use]
pub fn fitted(height: u32, width: u32, longest: u32) -> (u32, u32) {
    let side = height.max(width);
    if side <= longest {
        return (height, width);
    }
    let scaled = |edge: u32| (u64::from(edge) * u64::from(longest) / u64::from(side)).max(1) as u32;
    (scaled(height), scaled(width))
}

impl Pixels {
    /// Takes `data` of height·width·3 bytes.
    ///
    /// # Errors
    /// A side of zero, or another number of bytes.
    pub fn new(height: u32, width: u32, data: Vec<u8>) -> Result<Self, PixelsError> {
        if height == 0 || width == 0 {
            return Err(PixelsError::Empty { height, width });
        }
        let expected = (u64::from(height) * u64::from(width)).saturating_mul(3);
        if data.len() as u64 != expected {
            return Err(PixelsError::Length { height, width, expected, actual: data.len() });
        }
        Ok(Self { height, width, data })
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// The height·width·3 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.data
    }

    /// The height·width·3 bytes, given up.
    pub fn into_bytes(self) -> Vec<u8> {
        self.data
    }
}

impl std::fmt::Debug for Pixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pixels({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_length_must_fit() {
        let pixels = Pixels::new(2, 3, vec![7; 18]).unwrap();
        assert_eq!((pixels.height(), pixels.width()), (2, 3));
        assert_eq!(pixels.as_bytes().len(), 18);
        assert!(matches!(
            Pixels::new(2, 3, vec![7; 17]),
            Err(PixelsError::Length { expected: 18, actual: 17, .. })
        ));
        assert!(matches!(Pixels::new(0, 3, vec![]), Err(PixelsError::Empty { .. })));
        // 3 · (2^32 - 1)^2 does not fit in 64 bits; it must not wrap to something small.
        assert!(Pixels::new(u32::MAX, u32::MAX, vec![0; 12]).is_err());
    }
}
