//! Frames: pictures inside a file that say their own size, which the file's header need not tell.

use super::{DecodeError, DecodeLimits, ImageKind, check_size, vp8l};

/// What a WebP's first byte of an extended header says.
const ANIMATION: u8 = 0x02;
const ALPHA: u8 = 0x10;

/// Refuses a file in which a frame is larger than allowed. One that cannot be found is left to the decoder.
pub(super) fn check(kind: ImageKind, bytes: &[u8], limits: &DecodeLimits) -> Result<(), DecodeError> {
    match kind {
        ImageKind::Gif => {
            gif_frame(bytes).map_or(Ok(()), |(width, height)| check_frame(width, height, limits))
        }
        ImageKind::WebP => {
            let file = bytes.get(12..).unwrap_or_default();
            check_webp(file, limits)?;
            check_lossless(file, limits)
        }
        _ => Ok(()),
    }
}

/// An empty frame is not refused here: there may be nothing to show.
fn check_frame(width: u32, height: u32, limits: &DecodeLimits) -> Result<(), DecodeError> {
    if width == 0 || height == 0 { Ok(()) } else { check_size(width, height, 4, limits) }
}

/// Columns and rows of the first frame, which alone is decoded.
fn gif_frame(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut decoder = gif::DecodeOptions::new().read_info(bytes).ok()?;
    let frame = decoder.next_frame_info().ok()??;
    Some((u32::from(frame.width), u32::from(frame.height)))
}

/// Looks at each chunk of lossy data, also those of an animation's frames: a decoder unpacks them before it compares
/// their size with the canvas.
fn check_webp(file: &[u8], limits: &DecodeLimits) -> Result<(), DecodeError> {
    let check = |content: &[u8]| {
        vp8_size(content).map_or(Ok(()), |(width, height)| check_frame(width, height, limits))
    };
    for (name, content) in chunks(file) {
        match name {
            b"VP8 " => check(content)?,
            // What comes behind transparency is taken for lossy data without a look at its name.
            b"ANMF" => {
                chunks(content.get(16..).unwrap_or_default()).try_for_each(|(_, content)| check(content))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Looks at the lossless data that the decoder takes: that of the file, or that of an animation's first frame.
fn check_lossless(file: &[u8], limits: &DecodeLimits) -> Result<(), DecodeError> {
    let first = |name: &[u8; 4]| chunks(file).find(|(found, _)| found == name);
    match chunks(file).next() {
        Some((b"VP8L", data)) => check_groups((b"VP8L", data), None, limits),
        Some((b"VP8X", canvas)) => {
            let flags = canvas.first().copied().unwrap_or_default();
            let frame = first(b"ANMF").map_or(&[][..], |(_, content)| content);
            let mut of_frame = chunks(frame.get(16..).unwrap_or_default()).take(2);
            if flags & ANIMATION != 0 {
                let size = frame.get(6..).and_then(sides);
                return of_frame.next().map_or(Ok(()), |chunk| check_groups(chunk, size, limits));
            }
            // Of a frame where there is none of its own, although nothing says that there are any.
            let mut find = |name| first(name).or_else(|| of_frame.find(|(found, _)| found == name));
            let size = canvas.get(4..).and_then(sides);
            match (find(b"VP8L"), flags & ALPHA) {
                (Some(data), _) => check_groups(data, size, limits),
                (None, 0) => Ok(()),
                (None, _) => find(b"ALPH").map_or(Ok(()), |chunk| check_groups(chunk, size, limits)),
            }
        }
        _ => Ok(()),
    }
}

/// Refuses a chunk of lossless data, or of transparency in that form and of this size, that has more groups of codes
/// than taken.
fn check_groups(
    (name, content): (&[u8], &[u8]),
    size: Option<(u32, u32)>,
    limits: &DecodeLimits,
) -> Result<(), DecodeError> {
    let corrupt = |reason: String| Err(DecodeError::Corrupt { reason });
    let check = |(width, height), groups: &dyn Fn() -> Option<u32>| {
        check_frame(width, height, limits)?;
        match groups() {
            None => corrupt("the codes of a lossless WebP cannot be read".to_owned()),
            Some(groups) if groups > vp8l::MAX_GROUPS => corrupt(format!(
                "a lossless WebP has {groups} groups of codes, at most {} are taken",
                vp8l::MAX_GROUPS
            )),
            Some(_) => Ok(()),
        }
    };
    match (name, content, size) {
        (b"VP8L", data, _) => vp8l::size(data).map_or(Ok(()), |size| check(size, &|| vp8l::groups(data))),
        (b"ALPH", [how, data @ ..], Some(size)) if how & 3 == 1 => {
            check(size, &|| vp8l::groups_of_alpha(data, size.0, size.1))
        }
        _ => Ok(()),
    }
}

/// Columns and rows of a canvas or a frame, each written as one less in three bytes.
fn sides(bytes: &[u8]) -> Option<(u32, u32)> {
    let &[w0, w1, w2, h0, h1, h2] = bytes.first_chunk()?;
    Some((u32::from_le_bytes([w0, w1, w2, 0]) + 1, u32::from_le_bytes([h0, h1, h2, 0]) + 1))
}

/// The chunks that follow each other, by name.
fn chunks(mut rest: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (head, behind) = rest.split_first_chunk::<8>()?;
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        // They begin at even places.
        rest = behind.get(size + (size & 1)..).unwrap_or_default();
        Some((&head[..4], &behind[..size.min(behind.len())]))
    })
}

/// Columns and rows of a key frame (RFC 6386, section 9.1).
fn vp8_size(frame: &[u8]) -> Option<(u32, u32)> {
    let start = frame.get(3..10)?;
    let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
    start.starts_with(&[0x9d, 0x01, 0x2a]).then(|| (side(start[3], start[4]), side(start[5], start[6])))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let mut all = [&name[..], &(content.len() as u32).to_le_bytes(), content].concat();
        all.resize(all.len().next_multiple_of(2), 0);
        all
    }

    fn lossy(width: u16, height: u16) -> Vec<u8> {
        let sides = [width.to_le_bytes(), height.to_le_bytes()].concat();
        chunk(b"VP8 ", &[&[0x10, 0, 0, 0x9d, 0x01, 0x2a][..], &sides, &[7]].concat())
    }

    #[test]
    fn frames_of_webp_are_found() {
        let code = |chunks: &[Vec<u8>]| {
            let file = [&b"RIFF\0\0\0\0WEBP"[..], &chunks.concat()].concat();
            check(ImageKind::WebP, &file, &DecodeLimits::default()).map_err(|error| error.code())
        };
        let canvas = chunk(b"VP8X", &[0; 10]);
        let frame = |inner: Vec<u8>| chunk(b"ANMF", &[vec![0; 16], inner].concat());
        assert_eq!(code(&[canvas.clone(), chunk(b"odd ", &[1]), lossy(5_000, 5_000)]), Ok(()));
        assert_eq!(
            code(&[canvas.clone(), chunk(b"odd ", &[1]), lossy(12_000, 12_000)]),
            Err("too_many_pixels")
        );
        assert_eq!(code(&[canvas.clone(), frame(lossy(9, 9)), frame(lossy(9, 9))]), Ok(()));
        let nameless = [&b"XXXX"[..], &lossy(16_000, 16_000)[4..]].concat();
        let behind = [chunk(b"ALPH", &[0; 3]), nameless].concat();
        assert_eq!(code(&[canvas.clone(), frame(behind)]), Err("too_many_pixels"));
        assert_eq!(code(&[canvas, frame(lossy(16_000, 16_000))]), Err("too_many_pixels"));
        assert_eq!(code(&[lossy(9, 9)[..12].to_vec()]), Ok(()));
        // However deep they are said to lie.
        let nested = (0..100_000u32)
            .rev()
            .flat_map(|left| [&b"ANMF"[..], &(left * 24 + 16).to_le_bytes(), &[0; 16]].concat());
        assert_eq!(code(&[nested.collect()]), Ok(()));
    }

    #[test]
    fn groups_of_codes_are_bounded_in_lossless_data_and_in_transparency() {
        let check = |chunks: &[Vec<u8>]| {
            let file = [&b"RIFF\0\0\0\0WEBP"[..], &chunks.concat()].concat();
            check(ImageKind::WebP, &file, &DecodeLimits::default()).map_err(|error| error.to_string())
        };
        let canvas = |flags, side| chunk(b"VP8X", &[flags, 0, 0, 0, side, 0, 0, side, 0, 0]);
        for (last, fits) in [(0, true), (4095, true), (4096, false), (65_535, false)] {
            let data = vp8l::tests::naming(last);
            // Transparency has no head of its own.
            let alpha = chunk(b"ALPH", &[&[1][..], &data[5..]].concat());
            let data = chunk(b"VP8L", &data);
            let frame = |inner: &[u8]| chunk(b"ANMF", &[&[0; 16][..], inner].concat());
            for chunks in [
                vec![data.clone()],
                vec![canvas(0, 0), data.clone()],
                vec![canvas(ALPHA, 0), alpha.clone(), lossy(1, 1)],
                vec![canvas(ANIMATION, 9), frame(&data)],
                vec![canvas(ANIMATION, 9), frame(&[alpha.clone(), lossy(1, 1)].concat())],
                vec![canvas(0, 0), frame(&data)],
            ] {
                let outcome = check(&chunks);
                assert_eq!(outcome.is_ok(), fits, "{last}: {outcome:?}");
                assert!(fits || outcome.unwrap_err().contains("groups of codes"));
            }
        }
        // What the decoder does not take is not looked at.
        let many = vp8l::tests::naming(65_535);
        let alpha = chunk(b"ALPH", &[&[1][..], &many[5..]].concat());
        let many = chunk(b"VP8L", &many);
        for chunks in [
            vec![lossy(1, 1), many.clone()],
            vec![canvas(0, 0), lossy(1, 1), alpha.clone()],
            vec![canvas(ANIMATION, 9), chunk(b"ANMF", &[&[0; 16][..], &lossy(1, 1), &many].concat()), many],
        ] {
            assert_eq!(check(&chunks), Ok(()));
        }
        let cut = chunk(b"VP8L", &vp8l::tests::naming(7)[..8]);
        assert!(check(&[cut]).unwrap_err().contains("cannot be read"));
        assert_eq!(check(&[chunk(b"VP8L", b"other")]), Ok(()));
    }

    #[test]
    fn a_frame_of_gif_may_not_be_larger_than_a_picture() {
        let gif = |width: u16, height: u16| {
            let mut file = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0".to_vec();
            file.extend_from_slice(&width.to_le_bytes());
            file.extend_from_slice(&height.to_le_bytes());
            file.extend_from_slice(&[0, 2, 1, 0x44, 0, 0x3b]);
            check(ImageKind::Gif, &file, &DecodeLimits::default()).map_err(|error| error.code())
        };
        assert_eq!(gif(1, 1), Ok(()));
        assert_eq!(gif(7_000, 7_000), Ok(()));
        assert_eq!(gif(9_990, 10_000), Err("too_many_pixels"));
    }
}
