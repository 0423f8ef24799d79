//! Decoding of every format, orientation and colour type, and of broken files.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Cursor;

use image::codecs::{jpeg::JpegEncoder, png::PngEncoder, tiff::TiffEncoder, webp::WebPEncoder};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, RgbImage, RgbaImage};
use proptest::prelude::*;

use super::*;

/// Smooth, so that JPEG keeps it, and without any symmetry.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 255 / width) as u8, (y * 200 / height) as u8, (255 - x * 128 / width) as u8])
    })
}

fn encode(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).unwrap();
    file.into_inner()
}

fn decoded(bytes: &[u8]) -> Pixels {
    decode(bytes, &DecodeLimits::default()).unwrap()
}

fn largest_difference(found: &Pixels, expected: &RgbImage) -> u8 {
    assert_eq!((found.width(), found.height()), expected.dimensions());
    found.as_bytes().iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// A TIFF header with one tag, as in EXIF: the orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut chunk = b"II*\0\x08\0\0\0\x01\0".to_vec();
    chunk.extend([0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0]);
    chunk
}

const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Jpeg,
    ImageFormat::Png,
    ImageFormat::WebP,
    ImageFormat::Gif,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];

#[test]
fn every_format_gives_the_picture() {
    let original = picture(37, 23);
    for format in FORMATS {
        let bytes = encode(&DynamicImage::ImageRgb8(original.clone()), format);
        let allowed = match format {
            ImageFormat::Jpeg => 24,
            ImageFormat::Gif => 80,
            _ => 0,
        };
        let difference = largest_difference(&decoded(&bytes), &original);
        assert!(difference <= allowed, "{format:?}: {difference}");
        assert!(sniff(&bytes).is_some());
    }
}

fn with_exif(format: ImageFormat, stored: &RgbImage, chunk: Vec<u8>) -> Vec<u8> {
    let mut file = Vec::new();
    let (width, height) = stored.dimensions();
    macro_rules! write {
        ($encoder:expr) => {{
            let mut encoder = $encoder;
            encoder.set_exif_metadata(chunk).unwrap();
            encoder.write_image(stored, width, height, ExtendedColorType::Rgb8).unwrap();
        }};
    }
    match format {
        ImageFormat::Jpeg => write!(JpegEncoder::new_with_quality(&mut file, 95)),
        ImageFormat::Png => write!(PngEncoder::new(&mut file)),
        _ => write!(WebPEncoder::new_lossless(&mut file)),
    }
    file
}

#[test]
fn every_orientation_comes_out_upright() {
    let upright = picture(40, 24);
    for value in 1..=8u8 {
        // The inverse of an orientation is itself, but for the quarter turns 6 and 8.
        let inverse = [0, 1, 2, 3, 4, 5, 8, 7, 6][usize::from(value)];
        let mut stored = DynamicImage::ImageRgb8(upright.clone());
        stored.apply_orientation(image::metadata::Orientation::from_exif(inverse).unwrap());
        let stored = stored.into_rgb8();
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            let file = with_exif(format, &stored, exif(value));
            let difference = largest_difference(&decoded(&file), &upright);
            assert!(difference <= 16, "{format:?}, orientation {value}: {difference}");
        }
    }
    for invalid in [0, 9, 255] {
        let file = with_exif(ImageFormat::Png, &upright, exif(invalid));
        assert_eq!(largest_difference(&decoded(&file), &upright), 0);
    }
}

#[test]
fn an_orientation_behind_the_pixels_counts() {
    let stored = picture(8, 4);
    let plain = encode(&DynamicImage::ImageRgb8(stored), ImageFormat::Png);
    let end = plain.len() - 12;
    let chunk = exif(6);
    let mut late = plain[..end].to_vec();
    late.extend((chunk.len() as u32).to_be_bytes());
    late.extend(b"eXIf");
    late.extend(&chunk);
    late.extend([0; 4]);
    late.extend(&plain[end..]);
    let turned = decoded(&late);
    assert_eq!((turned.width(), turned.height()), (4, 8));
}

#[test]
fn every_colour_type_becomes_rgb() {
    let rgb = picture(9, 7);
    let dynamic = DynamicImage::ImageRgb8(rgb.clone());
    let grey = DynamicImage::ImageLuma8(dynamic.to_luma8());
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let wide = encode(&DynamicImage::ImageRgb16(dynamic.to_rgb16()), format);
        assert_eq!(largest_difference(&decoded(&wide), &rgb), 0);
        let narrow = encode(&grey, format);
        assert_eq!(largest_difference(&decoded(&narrow), &grey.to_rgb8()), 0);
        let wide_grey = encode(&DynamicImage::ImageLuma16(grey.to_luma16()), format);
        assert_eq!(largest_difference(&decoded(&wide_grey), &grey.to_rgb8()), 0);
    }
    let grey_jpeg = encode(&grey, ImageFormat::Jpeg);
    assert!(largest_difference(&decoded(&grey_jpeg), &grey.to_rgb8()) <= 16);
    let mut float = Vec::new();
    let tiff = TiffEncoder::new(Cursor::new(&mut float));
    let samples: Vec<u8> = dynamic.to_rgb32f().as_raw().iter().flat_map(|v| v.to_ne_bytes()).collect();
    tiff.write_image(&samples, 9, 7, ExtendedColorType::Rgb32F).unwrap();
    assert_eq!(largest_difference(&decoded(&float), &rgb), 0);
}

#[test]
fn alpha_is_laid_over_white() {
    let glass = RgbaImage::from_pixel(5, 5, image::Rgba([0, 100, 200, 128]));
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
        let bytes = encode(&DynamicImage::ImageRgba8(glass.clone()), format);
        assert_eq!(decoded(&bytes).as_bytes()[..3], [127, 177, 227], "{format:?}");
    }
    let clear = RgbaImage::from_pixel(5, 5, image::Rgba([0, 0, 0, 0]));
    let gif = encode(&DynamicImage::ImageRgba8(clear), ImageFormat::Gif);
    assert!(decoded(&gif).as_bytes().iter().all(|&v| v == 255));
}

#[test]
fn of_an_animation_the_first_frame_is_taken() {
    let mut file = Vec::new();
    {
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut file);
        for shade in [10u8, 200] {
            let frame = RgbaImage::from_pixel(6, 6, image::Rgba([shade, shade, shade, 255]));
            encoder.encode_frame(image::Frame::new(frame)).unwrap();
        }
    }
    assert!(decoded(&file).as_bytes().iter().all(|&v| v == 10));
}

#[test]
fn each_refusal_has_its_code() {
    let limits = DecodeLimits { max_bytes: 4000, max_pixels: 100 };
    let code = |bytes: &[u8]| decode(bytes, &limits).unwrap_err().code();
    assert_eq!(code(b""), "empty_image");
    assert_eq!(code(&[0xff; 4001]), "image_too_large");
    assert_eq!(code(b"just some text named .jpg"), "unsupported_format");
    for format in FORMATS {
        let fits = encode(&DynamicImage::ImageRgb8(picture(10, 10)), format);
        assert!(decode(&fits, &limits).is_ok(), "{format:?}");
        let large = encode(&DynamicImage::ImageRgb8(picture(10, 11)), format);
        assert_eq!(code(&large), "too_many_pixels", "{format:?}");
        for length in [12, fits.len() / 2] {
            assert_eq!(code(&fits[..length]), "corrupt_image", "{format:?} cut to {length}");
        }
    }
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    png.extend(60_000u32.to_be_bytes());
    png.extend(60_000u32.to_be_bytes());
    png.extend([8, 6, 0, 0, 0, 0, 0, 0, 0]);
    let error = decode(&png, &DecodeLimits::default()).unwrap_err();
    let max = DecodeLimits::default().max_pixels;
    assert_eq!(error, DecodeError::TooManyPixels { width: 60_000, height: 60_000, max });
}

#[test]
fn a_jpeg_cut_short_is_refused_wherever_it_is_cut() {
    let whole = encode(&DynamicImage::ImageRgb8(picture(64, 64)), ImageFormat::Jpeg);
    for length in (4..whole.len() - 40).step_by(7) {
        let cut = &whole[..length];
        let error = decode(cut, &DecodeLimits::default()).unwrap_err();
        assert_eq!(error.code(), "corrupt_image", "{length} of {}", whole.len());
    }
    // All pixels are there; only the end marker is missing.
    assert!(decode(&whole[..whole.len() - 2], &DecodeLimits::default()).is_ok());
}

fn seeds() -> Vec<Vec<u8>> {
    let small = DynamicImage::ImageRgb8(picture(12, 9));
    FORMATS.iter().map(|&format| encode(&small, format)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes, &DecodeLimits::default());
    }

    #[test]
    fn mutated_files_give_pixels_or_an_error(
        seed in prop::sample::select(seeds()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = seed;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let limits = DecodeLimits { max_pixels: 1_000_000, ..DecodeLimits::default() };
        if let Ok(pixels) = decode(&bytes, &limits) {
            prop_assert!(u64::from(pixels.width()) * u64::from(pixels.height()) <= limits.max_pixels);
        }
    }
}
