//! The format of a picture file, told by its first bytes and never by a name.

use std::fmt;

/// A format that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    WebP,
    /// GIF.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF.
    Tiff,
}

impl ImageKind {
    /// The media type of the format, for a `Content-Type`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::WebP => "image/webp",
            Self::Gif => "image/gif",
            Self::Bmp => "image/bmp",
            Self::Tiff => "image/tiff",
        }
    }
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        })
    }
}

/// The format of a picture file by its first bytes; `None` when it is none that can be decoded.
pub fn sniff(bytes: &[u8]) -> Option<ImageKind> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some(ImageKind::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(ImageKind::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageKind::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageKind::Gif),
        [b'B', b'M', ..] => Some(ImageKind::Bmp),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(ImageKind::Tiff),
        _ => None,
    }
}

/// What a file that cannot be decoded looks like, to put into an error.
pub(super) fn describe_unknown(bytes: &[u8]) -> &'static str {
    let head = &bytes[..bytes.len().min(512)];
    match head {
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', b'f' | b's', ..] => "an AVIF",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => "a HEIC or MP4",
        [0, 0, 0, 12, b'j', b'P', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => "a JPEG 2000",
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', ..] => "a JPEG XL",
        [0, 0, 1, 0, ..] => "an icon (ICO)",
        [0, 0, 2, 0, ..] => "a cursor (CUR) or TGA",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop file",
        [b'D', b'D', b'S', b' ', ..] => "a DDS texture",
        [b'q', b'o', b'i', b'f', ..] => "a QOI",
        [b'%', b'P', b'D', b'F', ..] => "a PDF",
        [b'P', b'K', 3, 4, ..] => "a ZIP",
        [0x1f, 0x8b, ..] => "gzip-compressed",
        _ => describe_text(head),
    }
}

fn describe_text(head: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let start = text.trim_start_matches('\u{feff}').trim_start();
    if text.contains("<svg") {
        "an SVG"
    } else if start.starts_with("<!doctype html") || start.starts_with("<html") {
        "a web page"
    } else if start.starts_with("data:") || start.starts_with("/9j/") || start.starts_with("ivborw0kggo") {
        "base64 text (send the decoded bytes)"
    } else if head.iter().all(|&b| b >= 0x20 && b != 0x7f || matches!(b, b'\t' | b'\n' | b'\r')) {
        "text"
    } else {
        "of an unknown format"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_formats_by_their_first_bytes() {
        assert_eq!(sniff(b"\xff\xd8\xff\xe0"), Some(ImageKind::Jpeg));
        assert_eq!(sniff(b"RIFF\x10\0\0\0WEBPVP8L"), Some(ImageKind::WebP));
        assert_eq!(sniff(b"RIFF\x10\0\0\0WAVE"), None);
        assert_eq!(sniff(b"GIF89a"), Some(ImageKind::Gif));
        assert_eq!(sniff(b"MM\0*"), Some(ImageKind::Tiff));
        assert_eq!(sniff(b"\x89PN"), None);
        assert_eq!(sniff(b""), None);
    }

    #[test]
    fn says_what_an_unknown_file_looks_like() {
        assert_eq!(describe_unknown(b"\0\0\0 ftypavif"), "an AVIF");
        assert_eq!(describe_unknown(b"<?xml version='1.0'?><svg/>"), "an SVG");
        assert_eq!(describe_unknown(b"hello\n"), "text");
        assert_eq!(describe_unknown(b"iVBORw0KGgo="), "base64 text (send the decoded bytes)");
        assert_eq!(describe_unknown(b"\x01\x02"), "of an unknown format");
    }
}
