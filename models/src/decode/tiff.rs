//! TIFF: what the strips or tiles of a file may cost, told before any of them is decoded.
//!
//! A file says where each of them lies, and nothing keeps it from naming the same bytes a million times, bytes that
//! unpack to nothing, or JPEGs far larger than the strip they stand for. The decoder underneath goes by what it finds.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use tiff::decoder::{ChunkType, Decoder};
use tiff::tags::Tag;
use zune_core::bytestream::ZCursor;
use zune_jpeg::JpegDecoder;

use super::jpeg::MAX_PASSES;
use super::{DecodeError, DecodeLimits, check_size};

/// Strips or tiles that a file may have. Each takes some microseconds, whatever is in it.
const MAX_CHUNKS: usize = 65_536;

/// How many times the pixels allowed all of them together may have: tiles go beyond the edges of the picture.
const MAX_BEYOND: u64 = 2;

/// How many bytes may be read for those of the file: a few encoders write equal tiles once.
const MAX_SHARED: u64 = 2;

/// Bytes of tables that all JPEGs in a file together may be read with; those of one are some hundreds.
const MAX_TABLES: usize = 8 << 20;

/// Ways of compression, in TIFF's numbers.
const NONE: u16 = 1;
const JPEG: u16 = 7;

/// A reader of a file, each of whose strips or tiles ends where [`Chunks::ends`] says, also for decompressors that ask for
/// more.
pub(super) struct Chunked<'a> {
    bytes: Cursor<&'a [u8]>,
    /// Where one that begins there ends.
    ends: HashMap<u64, u64>,
    end: u64,
}

impl<'a> Chunked<'a> {
    /// Of a file whose chunks are within their bounds, or that has none that could be understood.
    pub(super) fn open(bytes: &'a [u8], limits: &DecodeLimits) -> Result<Self, DecodeError> {
        let mut ends = HashMap::new();
        // What is no TIFF is told by whoever decodes it.
        if let Ok(decoder) = Decoder::new(Cursor::new(bytes)) {
            let chunks = Chunks::of(decoder).map_err(|error| corrupt(error.to_string()))?;
            check_size(chunks.picture.0, chunks.picture.1, 1, limits)?;
            ends = chunks.ends(bytes.len() as u64);
            chunks.check(&ends, bytes, limits)?;
        }
        Ok(Self { bytes: Cursor::new(bytes), ends, end: u64::MAX })
    }
}

/// The strips or tiles of a file's first picture.
struct Chunks {
    offsets: Vec<u64>,
    counts: Vec<u64>,
    /// How many times they show the picture: once for each of its samples, where these are kept apart.
    planes: usize,
    /// Columns and rows of the picture.
    picture: (u32, u32),
    /// Columns and rows of one of them.
    width: u32,
    height: u32,
    compression: u16,
    /// What JPEGs have in common.
    tables: Vec<u8>,
}

impl Chunks {
    fn of(mut decoder: Decoder<Cursor<&[u8]>>) -> tiff::TiffResult<Self> {
        let strips = decoder.get_chunk_type() == ChunkType::Strip;
        let (offsets, counts) = match strips {
            true => (Tag::StripOffsets, Tag::StripByteCounts),
            false => (Tag::TileOffsets, Tag::TileByteCounts),
        };
        let (width, height) = decoder.chunk_dimensions();
        let picture = decoder.dimensions()?;
        let apart = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration)? == Some(2);
        let samples = decoder.find_tag_unsigned::<u16>(Tag::SamplesPerPixel)?.unwrap_or(1);
        Ok(Self {
            offsets: decoder.find_tag_unsigned_vec(offsets)?.unwrap_or_default(),
            counts: decoder.find_tag_unsigned_vec(counts)?.unwrap_or_default(),
            planes: if apart { usize::from(samples.max(1)) } else { 1 },
            picture,
            width,
            // A picture that is one strip may say that it has all the rows there can be.
            height: if strips { height.min(picture.1) } else { height },
            compression: decoder.find_tag_unsigned(Tag::Compression)?.unwrap_or(1),
            tables: match decoder.find_tag(Tag::JPEGTables)? {
                Some(tables) => tables.into_u8_vec()?,
                None => Vec::new(),
            },
        })
    }

    /// Where the chunk at each offset ends: by the largest byte count given for it, or where the next begins, or the file
    /// of so many bytes does. Some writers give counts of 0, and not every decompressor goes by them. What is not
    /// compressed is read as far as it is shown.
    fn ends(&self, length: u64) -> HashMap<u64, u64> {
        if self.compression == NONE {
            return HashMap::new();
        }
        let mut chunks: Vec<_> = self.offsets.iter().copied().zip(self.counts.iter().copied()).collect();
        // The largest count of an offset first.
        chunks.sort_unstable_by_key(|&(offset, count)| (offset, Reverse(count)));
        chunks.dedup_by_key(|(offset, _)| *offset);
        let next = chunks.iter().skip(1).map(|&(offset, _)| offset).chain([length]);
        let end = |((offset, count), next): ((u64, u64), u64)| {
            let own = if count == 0 { next } else { offset.saturating_add(count).min(next) };
            (offset, own.min(length))
        };
        chunks.iter().copied().zip(next).map(end).collect()
    }

    fn check(
        &self,
        ends: &HashMap<u64, u64>,
        bytes: &[u8],
        limits: &DecodeLimits,
    ) -> Result<(), DecodeError> {
        let count = self.offsets.len().div_ceil(self.planes);
        if count > MAX_CHUNKS {
            let reason = format!("the TIFF has {count} strips or tiles, more than {MAX_CHUNKS}");
            return Err(DecodeError::UnsupportedFormat { reason });
        }
        let area = u64::from(self.width) * u64::from(self.height);
        if area.saturating_mul(count as u64) > MAX_BEYOND.saturating_mul(limits.max_pixels) {
            let (width, height) = (self.width, self.height);
            let reason = format!(
                "TIFF: {count} strips or tiles of {width}x{height} pixels are far more than it shows"
            );
            return Err(corrupt(reason));
        }
        let each = |offset: &u64| ends.get(offset).map_or(0, |end| end.saturating_sub(*offset));
        let read = self.offsets.iter().map(each).fold(0u64, u64::saturating_add);
        let tables = self.offsets.len().saturating_mul(self.tables.len());
        if read > MAX_SHARED * bytes.len() as u64 || tables > MAX_TABLES {
            return Err(corrupt("TIFF: its strips or tiles share bytes many times over".to_owned()));
        }
        if self.compression == JPEG { self.check_jpegs(ends, bytes, limits) } else { Ok(()) }
    }

    /// Whether the JPEGs are no larger together than what they stand for, with what goes beyond the edges, and have no
    /// more scans together than a picture may.
    fn check_jpegs(
        &self,
        ends: &HashMap<u64, u64>,
        bytes: &[u8],
        limits: &DecodeLimits,
    ) -> Result<(), DecodeError> {
        let (mut file, mut pixels, mut passes) = (Vec::new(), 0u64, 0u64);
        for (&from, &count) in self.offsets.iter().zip(&self.counts) {
            let end = ends.get(&from).map_or(from, |&end| end.min(from.saturating_add(count)));
            let piece = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let own = &bytes[piece(from)..piece(end).max(piece(from))];
            file.clear();
            match self.tables.split_last_chunk::<2>() {
                // The end of the one and the start of the other are left out, as by the decoder.
                Some((tables, _)) => {
                    file.extend_from_slice(tables);
                    file.extend_from_slice(own.get(2..).unwrap_or_default());
                }
                None => file.extend_from_slice(own),
            }
            let mut jpeg = JpegDecoder::new(ZCursor::new(&file));
            jpeg.decode_headers().map_err(|error| corrupt(format!("TIFF: a JPEG in it: {error:?}")))?;
            let (width, height) = jpeg.dimensions().unwrap_or_default();
            let area = (width * height) as u64;
            pixels = pixels.saturating_add(area);
            let most = MAX_BEYOND.saturating_mul(limits.max_pixels).saturating_mul(self.planes as u64);
            if area > limits.max_pixels || pixels > most {
                let (width_of, height_of) = (self.width, self.height);
                let reason = format!(
                    "TIFF: a JPEG of {width}x{height} pixels stands for {width_of}x{height_of} of the picture"
                );
                return Err(corrupt(reason));
            }
            // As many scans as there could be, wherever the decoder finds them.
            let scans = file.windows(2).filter(|pair| *pair == [0xff, 0xda]).count() as u64;
            passes = passes.saturating_add(scans.saturating_mul(area));
            if passes > MAX_PASSES.saturating_mul(limits.max_pixels) {
                return Err(corrupt("TIFF: the JPEGs in it have too many scans".to_owned()));
            }
        }
        Ok(())
    }
}

fn corrupt(reason: String) -> DecodeError {
    DecodeError::Corrupt { reason }
}

impl Read for Chunked<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut left = self.fill_buf()?;
        let read = left.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Chunked<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = self.end.saturating_sub(self.bytes.position());
        let rest = self.bytes.fill_buf()?;
        Ok(&rest[..rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))])
    }

    fn consume(&mut self, amount: usize) {
        self.bytes.consume(amount);
    }
}

impl Seek for Chunked<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = self.bytes.seek(to)?;
        if matches!(to, SeekFrom::Start(_)) {
            self.end = self.ends.get(&at).copied().unwrap_or(u64::MAX);
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::decode;
    use super::*;
    use std::time::{Duration, Instant};

    /// A grey TIFF of `width` x `rows`·`each` pixels in strips of `each` rows, which all lie at the same place.
    fn strips(width: u32, rows: u32, each: u32, compression: u32, counts: u32, data: &[u8]) -> Vec<u8> {
        let mut file = b"II*\0\0\0\0\0".to_vec();
        file.extend_from_slice(data);
        file.resize(file.len().next_multiple_of(4), 0);
        let mut list = |value: u32| {
            let at = file.len() as u32;
            (0..rows).for_each(|_| file.extend_from_slice(&value.to_le_bytes()));
            if rows == 1 { value } else { at }
        };
        let (offsets, counts) = (list(8), list(counts));
        let tags = [(256, width), (257, rows * each), (258, 8), (259, compression), (262, 1), (277, 1)];
        let lists = [(273, rows, offsets), (278, 1, each), (279, rows, counts)];
        let all: Vec<_> = tags.map(|(tag, value)| (tag, 1, value)).into_iter().chain(lists).collect();
        let directory = (file.len() as u32).to_le_bytes();
        file[4..8].copy_from_slice(&directory);
        let mut entries = all;
        entries.sort_unstable();
        file.extend_from_slice(&(entries.len() as u16).to_le_bytes());
        for (tag, count, value) in entries {
            file.extend_from_slice(&(tag as u16).to_le_bytes());
            file.extend_from_slice(&4u16.to_le_bytes());
            file.extend_from_slice(&count.to_le_bytes());
            file.extend_from_slice(&value.to_le_bytes());
        }
        file.extend_from_slice(&[0; 4]);
        file
    }

    fn grey_jpeg(side: u32) -> Vec<u8> {
        let mut file = Vec::new();
        let grey = vec![77; (side * side) as usize];
        let mut encoder = image::codecs::jpeg::JpegEncoder::new(&mut file);
        encoder.encode(&grey, side, side, image::ExtendedColorType::L8).unwrap();
        file
    }

    fn chunks(width: u32, height: u32, count: usize) -> Chunks {
        Chunks {
            offsets: vec![8; count],
            counts: vec![1; count],
            planes: 1,
            picture: (1, 1),
            width,
            height,
            compression: 1,
            tables: Vec::new(),
        }
    }

    fn code(file: &[u8]) -> &'static str {
        let began = Instant::now();
        let outcome = decode(file, &DecodeLimits::default());
        assert!(began.elapsed() < Duration::from_secs(2), "{outcome:?}");
        outcome.map_or_else(|error| error.code(), |_| "ok")
    }

    #[test]
    fn strips_of_all_kinds_are_read() {
        let grey = |file: &[u8]| decode(file, &DecodeLimits::default()).unwrap().as_bytes().to_vec();
        assert_eq!(grey(&strips(2, 3, 1, 1, 2, &[9, 8])), [9, 9, 9, 8, 8, 8].repeat(3));
        // Nine bytes of zlib: a stored block of two bytes.
        let stored = [0x78, 1, 1, 2, 0, 0xfd, 0xff, 9, 8, 0, 0x1c, 0, 0x12];
        assert_eq!(grey(&strips(2, 3, 1, 8, stored.len() as u32, &stored)), [9, 9, 9, 8, 8, 8].repeat(3));
        // Writers get the counts wrong.
        assert_eq!(grey(&strips(2, 1, 1, 8, 0, &stored)), [9, 9, 9, 8, 8, 8]);
        assert_eq!(grey(&strips(2, 3, 1, 1, 0, &[9, 8])), [9, 9, 9, 8, 8, 8].repeat(3));
        assert_eq!(grey(&strips(2, 3, 1, 1, 1 << 20, &[9, 8])), [9, 9, 9, 8, 8, 8].repeat(3));
        let jpeg = grey_jpeg(8);
        assert_eq!(grey(&strips(8, 2, 8, 7, jpeg.len() as u32, &jpeg)), [77; 8 * 16 * 3]);
    }

    #[test]
    fn too_many_strips_are_refused() {
        assert_eq!(code(&strips(1, 60_000, 1, 1, 1, &[9])), "ok");
        assert_eq!(code(&strips(1, 65_537, 1, 1, 1, &[9])), "too_many_pixels");
        let check = |chunks: Chunks| chunks.check(&HashMap::new(), &[0; 9], &DecodeLimits::default());
        assert_eq!(check(chunks(1, 1, 65_537)).unwrap_err().code(), "unsupported_format");
        assert_eq!(check(Chunks { planes: 3, ..chunks(1, 1, 65_537) }), Ok(()));
    }

    #[test]
    fn a_jpeg_is_no_larger_than_its_strip() {
        let jpeg = grey_jpeg(4000);
        assert_eq!(code(&strips(8, 1000, 8, 7, jpeg.len() as u32, &jpeg)), "corrupt_image");
        let limits = DecodeLimits { max_pixels: 1_000_000, ..DecodeLimits::default() };
        let one = strips(8, 1, 1, 7, jpeg.len() as u32, &jpeg);
        assert_eq!(decode(&one, &limits).unwrap_err().code(), "corrupt_image");
        // Writers fill the last strip up to whole blocks.
        let jpeg = grey_jpeg(16);
        assert_eq!(code(&strips(16, 1, 10, 7, jpeg.len() as u32, &jpeg)), "ok");
    }

    #[test]
    fn bytes_are_not_read_many_times_over() {
        // Blocks of zlib that hold nothing, before one that ends it.
        let mut nothing = vec![0x78, 1];
        (0..1_000_000).for_each(|_| nothing.extend_from_slice(&[0, 0, 0, 0xff, 0xff]));
        let all = nothing.len() as u32;
        assert_eq!(code(&strips(1, 60_000, 1, 8, all, &nothing)), "corrupt_image");
        // The same, said to be short, and all but one of them.
        assert_eq!(code(&strips(1, 60_000, 1, 8, 9, &nothing)), "corrupt_image");
        let mut mixed = strips(1, 60_000, 1, 8, 9, &nothing);
        let counts = mixed.len() - 2 - 9 * 12 - 4 - 4 * 60_000;
        mixed[counts..counts + 4].copy_from_slice(&all.to_le_bytes());
        assert_eq!(code(&mixed), "corrupt_image");
        let mut stuffed = grey_jpeg(8);
        let comment = [&[0xff, 0xfe, 0xff, 0xff][..], &[0; 65_533]].concat().repeat(30);
        stuffed.splice(2..2, comment);
        assert_eq!(code(&strips(8, 8_000, 8, 7, stuffed.len() as u32, &stuffed)), "corrupt_image");
    }

    #[test]
    fn tiles_do_not_hide_a_picture_many_times_its_size() {
        assert_eq!(code(&strips(60_000, 60_000, 1, 1, 1, &[9])), "too_many_pixels");
        let limits = DecodeLimits::default();
        let check = |chunks: Chunks| chunks.check(&HashMap::new(), &[0; 9], &limits);
        assert_eq!(check(chunks(5_000, 5_000, 4)), Ok(()));
        assert_eq!(check(chunks(5_000, 5_000, 5)).unwrap_err().code(), "corrupt_image");
        assert_eq!(check(Chunks { planes: 3, ..chunks(5_000, 5_000, 12) }), Ok(()));
        assert_eq!(check(chunks(50_001, 2_000, 1)).unwrap_err().code(), "corrupt_image");
    }
}
