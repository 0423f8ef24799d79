//! The thumbnail: a small JPEG that stands for an item on a page.

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use latentd_model::{Filter, Pixels, Preprocess, fitted};

use crate::store::Thumbnail;

/// Longest side of a thumbnail, in pixels.
pub const MAX_SIDE: u32 = 256;

const QUALITY: u8 = 80;

/// Makes the thumbnail of a picture, its shape kept, never larger than the picture; none when it cannot be encoded.
#[must_use]
pub fn make(pixels: &Pixels) -> Option<Thumbnail> {
    match fitted(pixels.height(), pixels.width(), MAX_SIDE) {
        whole if whole == (pixels.height(), pixels.width()) => encoded(pixels),
        (height, width) => encoded(&Preprocess::squash(height, width, Filter::Bicubic).apply(pixels).ok()?),
    }
}

fn encoded(pixels: &Pixels) -> Option<Thumbnail> {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(pixels.as_bytes(), pixels.width(), pixels.height(), ExtendedColorType::Rgb8)
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
