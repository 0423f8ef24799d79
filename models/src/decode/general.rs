//! PNG, WebP, GIF, BMP and TIFF, decoded by the `image` crate.

use std::borrow::Cow;
use std::io::Cursor;

use image::codecs::{
    bmp::BmpDecoder, gif::GifDecoder, jpeg::JpegDecoder, png::PngDecoder, tiff::TiffDecoder,
    webp::WebPDecoder,
};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, Limits};

use super::extent::Extent;
use super::tiff::Chunked;
use super::{Colour, DecodeError, DecodeLimits, Decoding, ImageKind, check_size};
use super::{colour, convert, frames, png};
use crate::pixels::Pixels;

pub(super) fn decode(
    kind: ImageKind,
    bytes: &[u8],
    limits: &DecodeLimits,
    decoding: &Decoding,
) -> Result<(Pixels, Extent), DecodeError> {
    let of_png = kind == ImageKind::Png;
    // PNG's decoder unpacks metadata before it tells the size, so its header is read first.
    let declared = if of_png { png::size(bytes).unwrap_or_default() } else { (0, 0) };
    if declared != (0, 0) {
        check_size(declared.0, declared.1, 1, limits)?;
    }
    frames::check(kind, bytes, limits)?;
    let mut memory = Limits::no_limits();
    memory.max_alloc = Some(limits.max_pixels.saturating_mul(8));
    let refuse = |error, size| refuse(kind, error, size, limits);
    let file = if of_png { png::without_profile(bytes) } else { Cow::Borrowed(bytes) };
    let mut decoder = open(kind, &file, &memory, limits, &|error| refuse(error, declared))?;
    let (width, height) = decoder.dimensions();
    let size = (width, height);
    let depth = u64::from(decoder.color_type().bytes_per_pixel());
    check_size(width, height, depth, limits)?;
    decoder.set_limits(memory).map_err(|e| refuse(e, size))?;
    let orientation = orientation(kind, bytes, decoder.as_mut());
    let profile = match decoding.colour {
        Colour::Srgb if of_png => png::profile(bytes),
        Colour::Srgb => decoder.icc_profile().ok().flatten(),
        Colour::AsStored => None,
    };
    let grey = !decoder.color_type().has_color();
    let picture = DynamicImage::from_decoder(decoder).map_err(|e| refuse(e, size))?;
    let mut rgb = convert::to_rgb(picture);
    if let Some(profile) = profile {
        colour::to_srgb(&mut rgb, &profile, grey);
    }
    let pixels = convert::upright(width, height, rgb, orientation)?;
    let extent = Extent::of(&pixels);
    Ok((pixels, extent))
}

fn open<'a>(
    kind: ImageKind,
    bytes: &'a [u8],
    memory: &Limits,
    limits: &DecodeLimits,
    refuse: &dyn Fn(ImageError) -> DecodeError,
) -> Result<Box<dyn ImageDecoder + 'a>, DecodeError> {
    let reader = Cursor::new(bytes);
    Ok(match kind {
        ImageKind::Jpeg => Box::new(JpegDecoder::new(reader).map_err(refuse)?),
        ImageKind::Png => Box::new(PngDecoder::with_limits(reader, memory.clone()).map_err(refuse)?),
        ImageKind::WebP => Box::new(WebPDecoder::new(reader).map_err(refuse)?),
        ImageKind::Gif => Box::new(GifDecoder::new(reader).map_err(refuse)?),
        ImageKind::Bmp => Box::new(BmpDecoder::new(reader).map_err(refuse)?),
        ImageKind::Tiff => Box::new(TiffDecoder::new(Chunked::open(bytes, limits)?).map_err(refuse)?),
    })
}

/// Broken metadata does not refuse a picture: it is then taken as it lies.
fn orientation(kind: ImageKind, bytes: &[u8], decoder: &mut dyn ImageDecoder) -> Orientation {
    if kind == ImageKind::Tiff {
        return decoder.orientation().unwrap_or(Orientation::NoTransforms);
    }
    let exif = decoder.exif_metadata().ok().flatten();
    let late = || if kind == ImageKind::Png { png::exif(bytes) } else { None };
    let exif = exif.as_deref().or_else(late);
    // Some writers keep JPEG's prefix in front of the TIFF header.
    exif.and_then(|exif| Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif)))
        .unwrap_or(Orientation::NoTransforms)
}

fn refuse(
    kind: ImageKind,
    error: ImageError,
    (width, height): (u32, u32),
    limits: &DecodeLimits,
) -> DecodeError {
    match error {
        ImageError::Unsupported(what) => DecodeError::UnsupportedFormat {
            reason: format!("the {kind} is of a kind that is not decoded ({what})"),
        },
        ImageError::Limits(_) if u64::from(width) * u64::from(height) > limits.max_pixels => {
            DecodeError::TooManyPixels { width, height, max: limits.max_pixels }
        }
        ImageError::Limits(_) if width > 0 => DecodeError::Corrupt {
            reason: format!("{kind}: its parts are far larger than its {width}x{height} pixels"),
        },
        other => DecodeError::Corrupt { reason: format!("{kind}: {other}") },
    }
}
