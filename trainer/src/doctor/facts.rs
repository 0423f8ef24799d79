//! What is kept of one picture: some 80 bytes beside its name.

use std::path::Path;
use std::time::Instant;

use fast_image_resize as fir;
use latentd_model::{DecodeLimits, ImageKind, Pixels, decode, sniff};
use sha2::{Digest, Sha256};

use super::fingerprint::{Fingerprint, luma, squeeze};
use crate::data::read_bounded;

/// Below this standard deviation of the luma (of 255) a picture shows nothing.
const BLANK_STD: f32 = 2.0;
/// Below this mean distance between its channels (of 255) a picture is grey.
const GREY: f32 = 3.0;
/// A decoder's filling for what is missing, and how far a row of it may stray.
const FILLING: u8 = 128;
const FILLING_SLACK: u8 = 2;

/// One readable picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Rows, upright.
    pub height: u32,
    /// Columns, upright.
    pub width: u32,
    /// Size of the file.
    pub bytes: u64,
    /// Format by its first bytes.
    pub kind: ImageKind,
    /// First half of the SHA-256 of the file.
    pub digest: [u8; 16],
    /// What it looks like.
    pub fingerprint: Fingerprint,
    /// Whether it is of one colour: its fingerprint says nothing then.
    pub blank: bool,
    /// Whether it has no colour.
    pub grey: bool,
    /// Whether its lower part looks like what a decoder fills in for missing data.
    pub damaged: bool,
    /// Whether its name promises another format.
    pub misnamed: bool,
    /// Time to read and decode it, in microseconds.
    pub decode_us: u32,
}

/// Why a file is no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A stable code: that of the decoder, or "unreadable_file".
    pub code: &'static str,
    /// In words.
    pub reason: String,
}

impl Facts {
    /// Reads, decodes and measures one file.
    ///
    /// # Errors
    /// When it cannot be read or decoded.
    pub fn of(path: &Path, limits: &DecodeLimits, resizer: &mut fir::Resizer) -> Result<Self, Refusal> {
        let started = Instant::now();
        let bytes = read_bounded(path, limits.max_bytes)
            .map_err(|reason| Refusal { code: "unreadable_file", reason })?;
        let pixels = decode(&bytes, limits).map_err(|e| Refusal { code: e.code(), reason: e.to_string() })?;
        let decode_us = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
        let refuse = |reason: &str| Refusal { code: "corrupt_image", reason: reason.to_owned() };
        let kind = sniff(&bytes).ok_or_else(|| refuse("the file has no known format"))?;
        let hash = Sha256::digest(&bytes);
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash[..16]);
        let small = squeeze(&pixels, resizer).ok_or_else(|| refuse("it cannot be resized"))?;
        let luma = luma(&small);
        let fingerprint = Fingerprint::of_luma(&luma).ok_or_else(|| refuse("it cannot be resized"))?;
        Ok(Self {
            height: pixels.height(),
            width: pixels.width(),
            bytes: bytes.len() as u64,
            kind,
            digest,
            fingerprint,
            blank: deviation(&luma) < BLANK_STD,
            grey: colourfulness(&small) < GREY,
            damaged: kind == ImageKind::Jpeg && filled_rows(&pixels) >= (pixels.height() / 10).max(8),
            misnamed: promised(path).is_some_and(|promised| promised != kind),
            decode_us,
        })
    }

    /// The shorter side in pixels.
    #[must_use]
    pub fn shorter(&self) -> u32 {
        self.height.min(self.width)
    }

    /// The longer side divided by the shorter.
    #[must_use]
    pub fn aspect(&self) -> f64 {
        f64::from(self.height.max(self.width)) / f64::from(self.shorter().max(1))
    }
}

fn deviation(values: &[f32]) -> f32 {
    let n = values.len().max(1) as f32;
    let mean = values.iter().sum::<f32>() / n;
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n).sqrt()
}

/// Mean distance between the largest and the smallest channel.
fn colourfulness(rgb: &[u8]) -> f32 {
    let (pixels, _) = rgb.as_chunks::<3>();
    let distance = |p: &[u8; 3]| f32::from(p.iter().max().unwrap_or(&0) - p.iter().min().unwrap_or(&0));
    pixels.iter().map(distance).sum::<f32>() / pixels.len().max(1) as f32
}

/// Rows at the bottom that are all of the grey that decoders fill in; 0 where the whole picture is.
fn filled_rows(picture: &Pixels) -> u32 {
    let row = picture.width() as usize * 3;
    let filled = |row: &&[u8]| row.iter().all(|v| v.abs_diff(FILLING) <= FILLING_SLACK);
    let rows = picture.as_bytes().chunks_exact(row).rev().take_while(filled).count() as u32;
    if rows == picture.height() { 0 } else { rows }
}

/// The format that a name promises.
fn promised(path: &Path) -> Option<ImageKind> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    Some(match extension.as_str() {
        "jpg" | "jpeg" | "jpe" | "jfif" => ImageKind::Jpeg,
        "png" => ImageKind::Png,
        "webp" => ImageKind::WebP,
        "gif" => ImageKind::Gif,
        "bmp" => ImageKind::Bmp,
        "tif" | "tiff" => ImageKind::Tiff,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    fn facts(name: &str, picture: &RgbImage, format: image::ImageFormat) -> Facts {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        picture.save_with_format(&path, format).unwrap();
        Facts::of(&path, &DecodeLimits::default(), &mut fir::Resizer::new()).unwrap()
    }

    fn ramp(height: u32, width: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 2) as u8, 90]))
    }

    #[test]
    fn says_what_a_picture_is() {
        let f = facts("a.png", &ramp(60, 80), image::ImageFormat::Png);
        assert_eq!((f.height, f.width, f.kind), (60, 80, ImageKind::Png));
        assert!(!f.blank && !f.grey && !f.damaged && !f.misnamed);
        assert_eq!(f.shorter(), 60);
        assert!((f.aspect() - 4.0 / 3.0).abs() < 1e-9);
        assert!(facts("a.jpg", &ramp(60, 80), image::ImageFormat::Png).misnamed);
    }

    #[test]
    fn blank_grey_and_half_decoded_pictures_are_told() {
        let flat = RgbImage::from_pixel(40, 40, Rgb([200, 30, 30]));
        assert!(facts("a.png", &flat, image::ImageFormat::Png).blank);
        let grey = RgbImage::from_fn(40, 40, |x, y| Rgb([(x * y % 251) as u8; 3]));
        let f = facts("a.png", &grey, image::ImageFormat::Png);
        assert!(f.grey && !f.blank);
        let half =
            RgbImage::from_fn(
                64,
                64,
                |x, y| if y < 32 { *ramp(64, 64).get_pixel(x, y) } else { Rgb([128; 3]) },
            );
        assert!(facts("a.jpg", &half, image::ImageFormat::Jpeg).damaged);
        assert!(!facts("a.png", &half, image::ImageFormat::Png).damaged, "PNG is never filled in");
    }

    #[test]
    fn a_file_cut_short_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.jpg");
        let whole = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shoes-1.jpg")).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let refusal = Facts::of(&path, &DecodeLimits::default(), &mut fir::Resizer::new()).unwrap_err();
        assert_eq!(refusal.code, "corrupt_image");
        assert!(refusal.reason.contains("ends before"), "{refusal:?}");
    }
}
