//! Scaled: a JPEG decoded at 1/2, 1/4 or 1/8 of its size out of its low frequencies, by `jpeg-decoder`.
//!
//! Most of a large picture's decoding is work on pixels that a resize would only average away.

use image::metadata::Orientation;
use jpeg_decoder::{Decoder, PixelFormat};

use super::convert;
use super::extent::{Extent, scaled_side, turns};
use super::{Decoding, Target};
use crate::pixels::Pixels;
use crate::preprocess::MAX_ASPECT;

/// The eighths to decode at, where fewer than all will do for `decoding`; sides as stored.
pub(super) fn eighths(
    (height, width): (u32, u32),
    orientation: Orientation,
    decoding: &Decoding,
    target: Target<'_>,
) -> Option<u32> {
    let gap = decoding.reducing_gap?;
    // Of a longer strip the ends are cut off first, in whole pixels.
    if height.max(width) > height.min(width).saturating_mul(MAX_ASPECT) {
        return None;
    }
    let upright = |(h, w)| if turns(orientation) { (w, h) } else { (h, w) };
    let (least_height, least_width) = {
        let (height, width) = upright((height, width));
        upright(target(height, width))
    };
    let enough = |side: u32, least: u32, eighths: u32| {
        u64::from(side) * u64::from(eighths) / 8 >= u64::from(least) * u64::from(gap)
    };
    [1, 2, 4].into_iter().find(|&e| enough(height, least_height, e) && enough(width, least_width, e))
}

/// Decodes at so many eighths of `height` x `width`. `None` for any fault, and for what is not grey or colour of
/// 8 bits: the whole decoder has the last word on those.
pub(super) fn decode(
    bytes: &[u8],
    (height, width): (u32, u32),
    eighths: u32,
    orientation: Orientation,
    colour: impl FnOnce(&mut Vec<u8>),
) -> Option<(Pixels, Extent)> {
    let mut decoder = Decoder::new(bytes);
    // A side as asked for is the largest that the decoder makes of it.
    let (wanted_width, wanted_height) = (scaled_side(width, eighths), scaled_side(height, eighths));
    let asked = (u16::try_from(wanted_width).ok()?, u16::try_from(wanted_height).ok()?);
    if decoder.scale(asked.0, asked.1).ok()? != asked {
        return None;
    }
    let format = decoder.info()?.pixel_format;
    let grey = match format {
        PixelFormat::L8 => true,
        PixelFormat::RGB24 => false,
        PixelFormat::L16 | PixelFormat::CMYK32 => return None,
    };
    let data = decoder.decode().ok()?;
    let mut rgb = if grey { convert::grey_to_rgb(&data) } else { data };
    colour(&mut rgb);
    let pixels = convert::upright(wanted_width, wanted_height, rgb, orientation).ok()?;
    Some((pixels, Extent::scaled(height, width, eighths, orientation)))
}
