//! JPEG: whole or cut short, then decoded by zune-jpeg, or at a fraction of its size.

use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::extent::Extent;
use super::{Colour, DecodeError, DecodeLimits, Decoding, Target, check_size};
use super::{colour, convert, scaled};
use crate::pixels::Pixels;

/// Scans that a progressive file may have; encoders write about ten, or eighteen with four colours.
const MAX_SCANS: usize = 64;

/// As often as this the pixels that a picture may have may be gone over, by all scans together: of one of three colours
/// goes over a third. Encoders need five to seven.
pub(super) const MAX_PASSES: u64 = 8;

/// Scans that a picture of so many pixels may have, if each were of one colour of three.
fn max_scans(pixels: u64, limits: &DecodeLimits) -> usize {
    let scans = MAX_PASSES.saturating_mul(3).saturating_mul(limits.max_pixels) / pixels.max(1);
    MAX_SCANS.min(usize::try_from(scans).unwrap_or(MAX_SCANS))
}

pub(super) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
    decoding: &Decoding,
    target: Target<'_>,
) -> Result<(Pixels, Extent), DecodeError> {
    // A lenient decoder fills what is missing with grey, which would become a wrong vector.
    // So a file without its end marker must decode without any fault; one that has it may be
    // damaged inside as far as libjpeg would tolerate.
    let strict = !has_end(bytes);
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| refuse(&e, bytes, strict))?;
    let (width, height) = decoder
        .dimensions()
        .and_then(|(w, h)| Some((u32::try_from(w).ok()?, u32::try_from(h).ok()?)))
        .ok_or_else(|| DecodeError::Corrupt { reason: "JPEG: the header declares no size".into() })?;
    check_size(width, height, 3, limits)?;
    let pixels = u64::from(width) * u64::from(height);
    let max_scans = max_scans(pixels, limits);
    let most = MAX_PASSES.saturating_mul(limits.max_pixels);
    // Of a small one no number of scans that may be is too many.
    if pixels.saturating_mul(MAX_SCANS as u64) > most && passes(bytes) * pixels as f64 > most as f64 {
        let reason = "JPEG: it has too many scans for its size".to_owned();
        return Err(DecodeError::Corrupt { reason });
    }
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    let profile = match (decoding.colour, decoder.input_colorspace()) {
        // Ink has a profile of another kind.
        (Colour::Srgb, Some(ColorSpace::Luma | ColorSpace::YCbCr | ColorSpace::RGB)) => decoder.icc_profile(),
        _ => None,
    };
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let in_srgb = |rgb: &mut Vec<u8>| {
        if let Some(profile) = &profile {
            colour::to_srgb(rgb, profile, grey);
        }
    };
    let sides = (height, width);
    if let (false, Some(eighths)) = (strict, scaled::eighths(sides, orientation, decoding, target))
        && scans(bytes) <= max_scans
        && let Some(decoded) = scaled::decode(bytes, sides, eighths, orientation, in_srgb)
    {
        return Ok(decoded);
    }
    let wanted = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(wanted).jpeg_set_max_scans(max_scans));
    let pixels = pixels as usize;
    let mut data = vec![0u8; pixels * wanted.num_components()];
    decoder.decode_into(&mut data).map_err(|e| refuse(&e, bytes, strict))?;
    let mut rgb = if grey { convert::grey_to_rgb(&data) } else { data };
    in_srgb(&mut rgb);
    let pixels = convert::upright(width, height, rgb, orientation)?;
    let extent = Extent::of(&pixels);
    Ok((pixels, extent))
}

/// How many scans the file has.
fn scans(bytes: &[u8]) -> usize {
    markers(bytes).filter(|&(marker, _)| marker == 0xda).count()
}

/// How often its scans go over the picture.
fn passes(bytes: &[u8]) -> f64 {
    // The number of colours comes behind the length, and in a frame behind the depth and the sides too.
    let colours = |at: usize| f64::from(bytes.get(at).copied().unwrap_or(1).max(1));
    let (mut of, mut gone) = (1.0, 0.0);
    for (marker, at) in markers(bytes) {
        match marker {
            0xc0..=0xc2 => of = colours(at + 8),
            0xda => gone += f64::min(colours(at + 3) / of, 1.0),
            _ => {}
        }
    }
    gone
}

fn refuse(error: &DecodeErrors, bytes: &[u8], cut_short: bool) -> DecodeError {
    match error {
        _ if has_undecoded_frame(bytes) => DecodeError::UnsupportedFormat {
            reason: "the JPEG is lossless, hierarchical or arithmetic-coded".into(),
        },
        DecodeErrors::Unsupported(scheme) => DecodeError::UnsupportedFormat {
            reason: format!("the JPEG is of a kind that is not decoded ({scheme:?})"),
        },
        other if cut_short => {
            DecodeError::Corrupt { reason: format!("the JPEG ends before its end marker ({other:?})") }
        }
        other => DecodeError::Corrupt { reason: format!("JPEG: {other:?}") },
    }
}

/// The markers of the file in order and where they are; segments are stepped over, so
/// that those of an embedded thumbnail do not count. Ends where the file breaks off.
fn markers(bytes: &[u8]) -> impl Iterator<Item = (u8, usize)> {
    let mut at = 2;
    std::iter::from_fn(move || {
        let marker_at = next_marker(bytes, at)?;
        let marker = bytes[marker_at];
        at = marker_at + 1;
        // TEM, restart markers, start and end of image carry no length.
        if !matches!(marker, 0x01 | 0xd0..=0xd9) {
            let length = bytes
                .get(at..at + 2)
                .map_or(bytes.len(), |two| usize::from(u16::from_be_bytes([two[0], two[1]])).max(2));
            at = at.saturating_add(length);
        }
        Some((marker, marker_at))
    })
}

/// Whether the frame is of a kind that zune-jpeg does not decode: not SOF0 to SOF2.
fn has_undecoded_frame(bytes: &[u8]) -> bool {
    let frame = markers(bytes)
        .map(|(m, _)| m)
        .find(|m| matches!(m, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf));
    frame.is_some_and(|marker| marker > 0xc2)
}

/// Whether the picture's own end marker (EOI) is there.
fn has_end(bytes: &[u8]) -> bool {
    bytes.ends_with(&[0xff, 0xd9]) || markers(bytes).any(|(marker, _)| marker == 0xd9)
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
