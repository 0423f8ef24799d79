//! JPEG: whole or cut short, then decoded by zune-jpeg.

use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::convert;
use super::{DecodeError, DecodeLimits, check_size};
use crate::pixels::Pixels;

/// Scans that a progressive file may have; encoders write about ten, and each costs a pass.
const MAX_SCANS: usize = 64;

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Pixels, DecodeError> {
    // A lenient decoder fills what is missing with grey, which would become a wrong vector.
    // So a file without its end marker must decode without any fault; one that has it may be
    // damaged inside as far as libjpeg would tolerate.
    let strict = !has_end(bytes);
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_max_scans(MAX_SCANS);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| refuse(e, strict))?;
    let (width, height) = decoder
        .dimensions()
        .and_then(|(w, h)| Some((u32::try_from(w).ok()?, u32::try_from(h).ok()?)))
        .ok_or_else(|| DecodeError::Corrupt { reason: "JPEG: the header declares no size".into() })?;
    check_size(width, height, 3, limits)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let wanted = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(wanted));
    let pixels = width as usize * height as usize;
    let mut data = vec![0u8; pixels * wanted.num_components()];
    decoder.decode_into(&mut data).map_err(|e| refuse(e, strict))?;
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    let rgb = if grey { convert::grey_to_rgb(&data) } else { data };
    convert::upright(width, height, rgb, orientation)
}

fn refuse(error: DecodeErrors, cut_short: bool) -> DecodeError {
    match error {
        DecodeErrors::Unsupported(scheme) => DecodeError::UnsupportedFormat {
            reason: format!("the JPEG is of a kind that is not decoded ({scheme:?})"),
        },
        other if cut_short => {
            DecodeError::Corrupt { reason: format!("the JPEG ends before its end marker ({other:?})") }
        }
        other => DecodeError::Corrupt { reason: format!("JPEG: {other:?}") },
    }
}

/// Whether the picture's end marker (EOI) is there, walking from marker to marker so that
/// the one of an embedded thumbnail does not count.
fn has_end(bytes: &[u8]) -> bool {
    if bytes.ends_with(&[0xff, 0xd9]) {
        return true;
    }
    let mut at = 2;
    while let Some(marker_at) = next_marker(bytes, at) {
        let marker = bytes[marker_at];
        at = marker_at + 1;
        match marker {
            0xd9 => return true,
            // TEM, restart markers and a start of image carry no length.
            0x01 | 0xd0..=0xd8 => {}
            _ => match bytes.get(at..at + 2) {
                Some(&[high, low]) => at += usize::from(u16::from_be_bytes([high, low])).max(2),
                _ => return false,
            },
        }
    }
    false
}

/// Position of the next byte after `from` that names a marker: one that follows 0xff and is
/// neither stuffing (0x00) nor fill (0xff).
fn next_marker(bytes: &[u8], mut from: usize) -> Option<usize> {
    loop {
        from += bytes.get(from..)?.iter().position(|&byte| byte == 0xff)? + 1;
        match *bytes.get(from)? {
            0x00 | 0xff => {}
            _ => return Some(from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thumbnail_is_not_the_end() {
        // SOI, an APP1 of 8 bytes with an end marker inside, SOS with 2 bytes, data.
        let mut file = vec![0xff, 0xd8, 0xff, 0xe1, 0, 8, 1, 0xff, 0xd9, 2, 3, 4];
        file.extend([0xff, 0xda, 0, 2, 7, 0xff, 0, 9, 0xff, 0xd3, 8]);
        assert!(!has_end(&file));
        file.extend([0xff, 0xff, 0xd9, 1, 2, 3]);
        assert!(has_end(&file));
    }

    #[test]
    fn broken_lengths_end_the_walk() {
        for file in [
            &[0xff, 0xd8][..],
            &[0xff, 0xd8, 0xff],
            &[0xff, 0xd8, 0xff, 0xe1],
            &[0xff, 0xd8, 0xff, 0xe1, 0xff],
            &[0xff, 0xd8, 0xff, 0xe1, 0xff, 0xff, 0, 0],
            &[0xff, 0xd8, 0xff, 0xe1, 0, 0],
        ] {
            assert!(!has_end(file));
        }
    }
}
