//! The thumbnail: a small JPEG that stands for an item on a page.

use image::codecs::jpeg::JpegEncoder;
use image::{ImageBuffer, Rgb, imageops};
use latentd_model::{Pixels, fitted};

use crate::store::Thumbnail;

/// Longest side of a thumbnail, in pixels.
pub const MAX_SIDE: u32 = 256;

const QUALITY: u8 = 80;

/// Makes the thumbnail of a picture, its shape kept, never larger than the picture; none when it cannot be encoded.
#[must_use]
pub fn make(pixels: &Pixels) -> Option<Thumbnail> {
    let (width, height) = (pixels.width(), pixels.height());
    let picture = ImageBuffer::<Rgb<u8>, &[u8]>::from_raw(width, height, pixels.as_bytes())?;
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
    match fitted(height, width, MAX_SIDE) {
        whole if whole == (height, width) => encoder.encode_image(&picture),
        (height, width) => encoder.encode_image(&imageops::thumbnail(&picture, width, height)),
    }
    .ok()?;
    Some(Thumbnail(jpeg.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_is_kept_within_the_bound() {
        for (height, width, expected) in [
            (1, 1, (1, 1)),
            (100, 200, (100, 200)),
            (256, 256, (256, 256)),
            (1000, 500, (256, 128)),
            (3, 4000, (1, 256)),
        ] {
            let pixels = Pixels::new(height, width, vec![200; (height * width * 3) as usize]).unwrap();
            let Thumbnail(jpeg) = make(&pixels).unwrap();
            let decoded = image::load_from_memory(&jpeg).unwrap().to_rgb8();
            assert_eq!((decoded.height(), decoded.width()), expected);
            assert!(decoded.pixels().all(|pixel| pixel.0.iter().all(|&value| value.abs_diff(200) < 4)));
        }
    }
}
