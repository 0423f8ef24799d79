//! Small pictures for a page, encoded.

use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{ImageFormat, RgbImage};

use crate::data::PictureRef;

/// Longer side of a thumbnail, at most.
const SIDE: u32 = 112;
/// Up to this side pictures stay lossless: JPEG would blur the few pixels there are.
const LOSSLESS_SIDE: u32 = 64;

/// A picture as PNG (up to 64 pixels) or JPEG of at most 112; `None` when the encoder refuses.
#[must_use]
pub fn encode_picture(picture: PictureRef<'_>) -> Option<Vec<u8>> {
    let image = RgbImage::from_raw(picture.width as u32, picture.height as u32, picture.rgb.to_vec())?;
    encode(image)
}

/// A picture as a square JPEG of `side` pixels, its middle cut out.
#[must_use]
pub fn encode_small(picture: PictureRef<'_>, side: u32) -> Option<Vec<u8>> {
    let image = RgbImage::from_raw(picture.width as u32, picture.height as u32, picture.rgb.to_vec())?;
    let shorter = image.width().min(image.height());
    let (left, top) = ((image.width() - shorter) / 2, (image.height() - shorter) / 2);
    let square = image::imageops::crop_imm(&image, left, top, shorter, shorter).to_image();
    let small = image::imageops::resize(&square, side, side, FilterType::Triangle);
    let mut bytes = std::io::Cursor::new(Vec::new());
    small.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 75)).ok()?;
    Some(bytes.into_inner())
}

/// A rendered view `[size, size, 3]` with its normalisation undone.
#[must_use]
pub fn encode_view(view: &[f32], size: usize, mean: [f32; 3], std: [f32; 3]) -> Option<Vec<u8>> {
    let channels = mean.iter().zip(std).cycle();
    let byte = |(v, (m, s)): (&f32, (&f32, f32))| ((v * s + m) * 255.0).round().clamp(0.0, 255.0) as u8;
    encode(RgbImage::from_raw(size as u32, size as u32, view.iter().zip(channels).map(byte).collect())?)
}

fn encode(image: RgbImage) -> Option<Vec<u8>> {
    let longer = image.width().max(image.height());
    let mut bytes = std::io::Cursor::new(Vec::new());
    if longer <= LOSSLESS_SIDE {
        image.write_to(&mut bytes, ImageFormat::Png).ok()?;
        return Some(bytes.into_inner());
    }
    let side = |s: u32| (u64::from(s) * u64::from(SIDE) / u64::from(longer)).max(1) as u32;
    let small = if longer > SIDE {
        image::imageops::resize(&image, side(image.width()), side(image.height()), FilterType::Triangle)
    } else {
        image
    };
    let encoder = JpegEncoder::new_with_quality(&mut bytes, 84);
    small.write_with_encoder(encoder).ok()?;
    Some(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pictures_stay_exact_and_large_ones_shrink() {
        let rgb: Vec<u8> = (0..8 * 6 * 3).map(|i| i as u8).collect();
        let png = encode_picture(PictureRef::new(8, 6, &rgb).unwrap()).unwrap();
        assert_eq!(image::load_from_memory(&png).unwrap().to_rgb8().into_raw(), rgb);
        let large = vec![90; 300 * 600 * 3];
        let jpeg = encode_picture(PictureRef::new(300, 600, &large).unwrap()).unwrap();
        let back = image::load_from_memory(&jpeg).unwrap();
        assert_eq!((back.width(), back.height()), (112, 56));
    }

    #[test]
    fn map_pictures_are_small_squares() {
        let rgb: Vec<u8> = (0..300 * 100 * 3).map(|i| (i / 7) as u8).collect();
        let jpeg = encode_small(PictureRef::new(100, 300, &rgb).unwrap(), 48).unwrap();
        let back = image::load_from_memory(&jpeg).unwrap();
        assert_eq!((back.width(), back.height()), (48, 48));
    }

    #[test]
    fn views_come_back_as_they_were() {
        let (mean, std) = ([0.5, 0.4, 0.3], [0.2, 0.25, 0.5]);
        let pixels: Vec<u8> = (0..4 * 4 * 3).map(|i| (i * 5) as u8).collect();
        let view: Vec<f32> = pixels
            .iter()
            .enumerate()
            .map(|(i, &p)| (f32::from(p) / 255.0 - mean[i % 3]) / std[i % 3])
            .collect();
        let png = encode_view(&view, 4, mean, std).unwrap();
        assert_eq!(image::load_from_memory(&png).unwrap().to_rgb8().into_raw(), pixels);
        assert!(encode_view(&view, 9, mean, std).is_none());
    }
}
