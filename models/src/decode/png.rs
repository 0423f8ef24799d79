//! PNG: what of a file is read apart from its decoder.

use std::borrow::Cow;

use fdeflate::decompress_to_vec_bounded;

use super::colour::MAX_PROFILE;

const SIGNATURE: usize = 8;

/// The size in the first chunk.
pub(super) fn size(file: &[u8]) -> Option<(u32, u32)> {
    let (name, body) = chunks(file).next().map(|chunk| (chunk.name, chunk.body))?;
    let number = |at: usize| Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?));
    (name == b"IHDR").then_some(())?;
    Some((number(0)?, number(4)?))
}

/// The file without its colour profiles, which its decoder would unpack to whatever size they have.
pub(super) fn without_profile(file: &[u8]) -> Cow<'_, [u8]> {
    let mut profiles = header(file).filter(|chunk| chunk.name == b"iCCP").peekable();
    if profiles.peek().is_none() {
        return Cow::Borrowed(file);
    }
    let (mut rest, mut from) = (Vec::with_capacity(file.len()), 0);
    for profile in profiles {
        rest.extend_from_slice(&file[from..profile.from]);
        from = profile.to.min(file.len());
    }
    rest.extend_from_slice(&file[from..]);
    Cow::Owned(rest)
}

/// The colour profile, of several the first whose checksum holds; none where it is broken or too large to be looked at.
pub(super) fn profile(file: &[u8]) -> Option<Vec<u8>> {
    let sound = |chunk: &Chunk<'_>| {
        let checksum = file.get(chunk.to - 4..chunk.to).unwrap_or_default();
        chunk.name == b"iCCP"
            && checksum == crc32fast::hash(&file[chunk.from + 4..chunk.to - 4]).to_be_bytes()
    };
    let body = header(file).filter(|chunk| chunk.to <= file.len()).find(sound)?.body;
    // Its name, a zero, and how it is packed: by zlib.
    let name = body.iter().take(81).position(|&byte| byte == 0).filter(|&name| name > 0)?;
    let &[0, ref packed @ ..] = body.get(name + 1..)? else { return None };
    decompress_to_vec_bounded(packed, MAX_PROFILE).ok()
}

/// The eXIf chunk, also where it stands behind the pixels, where the decoder has not been.
pub(super) fn exif(file: &[u8]) -> Option<&[u8]> {
    chunks(file).find(|chunk| chunk.name == b"eXIf").map(|chunk| chunk.body)
}

/// A chunk, and where it lies in the file with its length and checksum.
struct Chunk<'a> {
    name: &'a [u8],
    body: &'a [u8],
    from: usize,
    to: usize,
}

/// The chunks that stand before the pixels, of a file that begins as it must.
fn header(file: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let begins = chunks(file).next().is_some_and(|first| first.name == b"IHDR");
    chunks(file).take_while(move |chunk| begins && chunk.name != b"IDAT")
}

/// The chunks that follow each other; of one that is cut short, what there is.
fn chunks(file: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut from = SIGNATURE;
    std::iter::from_fn(move || {
        let (head, behind) = file.get(from..)?.split_first_chunk::<8>()?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let to = from.saturating_add(8).saturating_add(length).saturating_add(4);
        let chunk = Chunk { name: &head[4..], body: &behind[..length.min(behind.len())], from, to };
        from = to;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let named = [&name[..], body].concat();
        let checksum = crc32fast::hash(&named).to_be_bytes();
        [&(body.len() as u32).to_be_bytes()[..], &named, &checksum].concat()
    }

    fn packed(profile: &[u8]) -> Vec<u8> {
        chunk(b"iCCP", &[b"name\0\0".to_vec(), fdeflate::compress_to_vec(profile)].concat())
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
    }

    #[test]
    fn a_profile_is_read_apart_and_within_bounds() {
        let (head, pixels) =
            (chunk(b"IHDR", &[0, 0, 0, 3, 0, 0, 1, 0, 8, 2, 0, 0, 0]), chunk(b"IDAT", b"..."));
        let with = |profile: &[u8]| file(&[head.clone(), packed(profile), pixels.clone()]);
        let without = file(&[head.clone(), pixels.clone()]);
        assert_eq!(size(&without), Some((3, 256)));
        assert_eq!(profile(&with(b"profile")).unwrap(), b"profile");
        assert_eq!(profile(&with(&vec![7; MAX_PROFILE])).unwrap().len(), MAX_PROFILE);
        assert_eq!(profile(&with(&vec![7; MAX_PROFILE + 1])), None);
        assert_eq!(profile(&without), None);
        let nameless = [&b"\0\0"[..], &fdeflate::compress_to_vec(b"a")].concat();
        for odd in [&b"no zero"[..], b"name\0\x01packed", b"name\0\0not packed", b"", &nameless] {
            assert_eq!(profile(&file(&[chunk(b"iCCP", odd)])), None);
        }
        assert_eq!(without_profile(&with(b"profile")), without);
        let twice = file(&[head.clone(), packed(b"a"), packed(b"b"), pixels.clone()]);
        assert_eq!(without_profile(&twice), without);
        assert!(matches!(without_profile(&without), Cow::Borrowed(_)));
        // Of two the first that is sound counts.
        let mut broken = packed(b"a");
        *broken.last_mut().unwrap() ^= 1;
        assert_eq!(profile(&file(&[head.clone(), broken, packed(b"b"), pixels.clone()])).unwrap(), b"b");
        // However many there are, they are stepped over once.
        let many = vec![chunk(b"iCCP", b""); 300_000].concat();
        let large = chunk(b"IDAT", &vec![7; 8 << 20]);
        let began = std::time::Instant::now();
        assert_eq!(
            without_profile(&file(&[head.clone(), many, large.clone()])),
            file(&[head.clone(), large])
        );
        assert!(began.elapsed().as_secs() < 5);
        // What does not begin with a header is left to the decoder.
        let headless = file(&[packed(b"a"), head.clone(), pixels.clone()]);
        assert_eq!((without_profile(&headless), profile(&headless)), (headless.as_slice().into(), None));
        // One behind the pixels is none.
        let late = file(&[head.clone(), pixels.clone(), packed(b"a")]);
        assert_eq!((without_profile(&late), profile(&late)), (late.as_slice().into(), None));
        // One that is cut short.
        let cut = &with(b"profile")[..60];
        assert_eq!(without_profile(cut), file(std::slice::from_ref(&head)));
        assert_eq!((size(&cut[..12]), exif(cut)), (None, None));
    }
}
