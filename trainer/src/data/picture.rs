//! A borrowed RGB picture, as the cache hands it to the augmentations.

/// One decoded picture: `rgb` is `[height, width, 3]` row-major, 8 bits a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureRef<'a> {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `height * width * 3` bytes.
    pub rgb: &'a [u8],
}

impl<'a> PictureRef<'a> {
    /// Wraps `rgb`; `None` when a side is zero or the length is not `height * width * 3`.
    #[must_use]
    pub fn new(height: usize, width: usize, rgb: &'a [u8]) -> Option<Self> {
        let bytes = height.checked_mul(width)?.checked_mul(3)?;
        (bytes > 0 && bytes == rgb.len()).then_some(Self { height, width, rgb })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_empty_and_mismatched_buffers() {
        assert!(PictureRef::new(0, 4, &[]).is_none());
        assert!(PictureRef::new(2, 2, &[0; 11]).is_none());
        assert!(PictureRef::new(usize::MAX, 2, &[0; 12]).is_none());
        assert!(PictureRef::new(2, 2, &[0; 12]).is_some());
    }
}
