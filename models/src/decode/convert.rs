//! Any colour type to RGB of 8 bits, and any EXIF orientation to upright.

use image::DynamicImage;
use image::metadata::Orientation;

use super::DecodeError;
use super::extent::turns;
use crate::pixels::Pixels;

/// Grey to RGB.
pub(super) fn grey_to_rgb(grey: &[u8]) -> Vec<u8> {
    grey.iter().flat_map(|&v| [v, v, v]).collect()
}

/// 16 bits to 8, rounded: 0xffff is 255.
fn narrow(value: u16) -> u8 {
    ((u32::from(value) * 255 + 32_767) / 65_535) as u8
}

/// [0, 1] to 8 bits, clamped; NaN is 0.
fn from_unit(value: f32) -> u8 {
    (value * 255.0 + 0.5) as u8
}

/// Lays a channel over white.
fn over_white(value: u8, alpha: u8) -> u8 {
    let alpha = u32::from(alpha);
    ((u32::from(value) * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn rgba_over_white<T: Copy>(samples: &[T], to_u8: impl Fn(T) -> u8) -> Vec<u8> {
    samples
        .as_chunks::<4>()
        .0
        .iter()
        .flat_map(|&[r, g, b, a]| {
            let alpha = to_u8(a);
            [r, g, b].map(|v| over_white(to_u8(v), alpha))
        })
        .collect()
}

fn grey_alpha_over_white<T: Copy>(samples: &[T], to_u8: impl Fn(T) -> u8) -> Vec<u8> {
    samples.as_chunks::<2>().0.iter().flat_map(|&[v, a]| [over_white(to_u8(v), to_u8(a)); 3]).collect()
}

/// RGB of 8 bits, row by row; alpha is laid over white.
pub(super) fn to_rgb(picture: DynamicImage) -> Vec<u8> {
    match picture {
        DynamicImage::ImageRgb8(p) => p.into_raw(),
        DynamicImage::ImageLuma8(p) => grey_to_rgb(p.as_raw()),
        DynamicImage::ImageLumaA8(p) => grey_alpha_over_white(p.as_raw(), |v| v),
        DynamicImage::ImageRgba8(p) => rgba_over_white(p.as_raw(), |v| v),
        DynamicImage::ImageLuma16(p) => p.as_raw().iter().flat_map(|&v| [narrow(v); 3]).collect(),
        DynamicImage::ImageLumaA16(p) => grey_alpha_over_white(p.as_raw(), narrow),
        DynamicImage::ImageRgb16(p) => p.as_raw().iter().map(|&v| narrow(v)).collect(),
        DynamicImage::ImageRgba16(p) => rgba_over_white(p.as_raw(), narrow),
        DynamicImage::ImageRgb32F(p) => p.as_raw().iter().map(|&v| from_unit(v)).collect(),
        DynamicImage::ImageRgba32F(p) => rgba_over_white(p.as_raw(), from_unit),
        // The enum may grow; what it grows by is converted by its own crate.
        other => other.into_rgb8().into_raw(),
    }
}

/// Where the pixel (y, x) of the upright picture lies in the stored one:
/// `start + y·down + x·right`, in pixels.
struct Walk {
    start: isize,
    down: isize,
    right: isize,
    swapped: bool,
}

fn walk(width: u32, height: u32, orientation: Orientation) -> Walk {
    let (w, h) = (width as isize, height as isize);
    let last = w * h - 1;
    let (start, down, right) = match orientation {
        Orientation::NoTransforms => (0, w, 1),
        Orientation::FlipHorizontal => (w - 1, w, -1),
        Orientation::Rotate180 => (last, -w, -1),
        Orientation::FlipVertical => (w * (h - 1), -w, 1),
        // EXIF 5: mirrored along the diagonal.
        Orientation::Rotate90FlipH => (0, 1, w),
        // EXIF 6: to be turned clockwise.
        Orientation::Rotate90 => (w * (h - 1), 1, -w),
        // EXIF 7: mirrored along the other diagonal.
        Orientation::Rotate270FlipH => (last, -1, -w),
        // EXIF 8: to be turned anticlockwise.
        Orientation::Rotate270 => (w - 1, -1, w),
    };
    Walk { start, down, right, swapped: turns(orientation) }
}

/// Turns `rgb` of height·width·3 bytes upright.
pub(super) fn upright(
    width: u32,
    height: u32,
    rgb: Vec<u8>,
    orientation: Orientation,
) -> Result<Pixels, DecodeError> {
    let stored = Pixels::new(height, width, rgb).map_err(corrupt)?;
    if orientation == Orientation::NoTransforms {
        return Ok(stored);
    }
    let walk = walk(width, height, orientation);
    let (out_h, out_w) = if walk.swapped { (width, height) } else { (height, width) };
    let (source, _) = stored.as_bytes().as_chunks::<3>();
    let mut data = vec![0u8; stored.as_bytes().len()];
    let (target, _) = data.as_chunks_mut::<3>();
    // Tiles, so that the columns read by a quarter turn stay in the cache.
    const TILE: usize = 32;
    let (rows, columns) = (out_h as usize, out_w as usize);
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            let right = columns.min(left + TILE);
            for y in top..rows.min(top + TILE) {
                let mut at = walk.start + y as isize * walk.down + left as isize * walk.right;
                for pixel in &mut target[y * columns + left..y * columns + right] {
                    *pixel = source[at as usize];
                    at += walk.right;
                }
            }
        }
    }
    Pixels::new(out_h, out_w, data).map_err(corrupt)
}

fn corrupt(error: crate::pixels::PixelsError) -> DecodeError {
    DecodeError::Corrupt { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use image::{ImageBuffer, RgbImage};

    #[test]
    fn turns_as_the_image_crate_does() {
        // Larger than a tile and not a multiple of one, so that the edges are seen.
        for (width, height) in [(1, 1), (2, 3), (37, 65)] {
            let picture = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
            for exif in 1..=8 {
                let orientation = Orientation::from_exif(exif).unwrap();
                let mut reference = DynamicImage::ImageRgb8(picture.clone());
                reference.apply_orientation(orientation);
                let ours = upright(width, height, picture.as_raw().clone(), orientation).unwrap();
                assert_eq!((ours.width(), ours.height()), (reference.width(), reference.height()));
                assert_eq!(ours.as_bytes(), reference.as_bytes(), "EXIF {exif}");
            }
        }
    }

    #[test]
    fn samples_become_8_bits() {
        assert_eq!([0, 128, 257, 0x7fff, 0xffff].map(narrow), [0, 0, 1, 127, 255]);
        let floats = [f32::NAN, -1.0, 0.0, 0.5, 1.0, 2.0, f32::INFINITY];
        assert_eq!(floats.map(from_unit), [0, 0, 0, 128, 255, 255, 255]);
    }

    #[test]
    fn alpha_is_laid_over_white() {
        let rgba =
            ImageBuffer::from_raw(3, 1, vec![10u8, 20, 30, 255, 10, 20, 30, 0, 0, 100, 200, 128]).unwrap();
        assert_eq!(to_rgb(DynamicImage::ImageRgba8(rgba)), [10, 20, 30, 255, 255, 255, 127, 177, 227]);
        let grey = ImageBuffer::from_raw(2, 1, vec![0u16, 0, 0xffff, 0xffff]).unwrap();
        assert_eq!(to_rgb(DynamicImage::ImageLumaA16(grey)), [255; 6]);
    }
}
