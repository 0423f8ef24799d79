//! The real pictures that an encoder is checked with before and after it is written.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use latentd_model::decode::{ImageKind, decode_as, sniff};
use latentd_model::{DecodeLimits, Pixels, Preprocess};

/// Pictures that parity is measured on, when the folder has as many.
const SAMPLES: usize = 128;
/// Pictures in `golden/`.
pub const GOLDEN: usize = 8;
/// A golden picture above this is shrunk, so that an artefact stays small to move.
const GOLDEN_MAX_BYTES: usize = 256 * 1024;

/// A picture file and the pixels that an encoder sees of it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The undecoded file.
    pub bytes: Vec<u8>,
    /// Decoded and preprocessed.
    pub pixels: Pixels,
}

impl Sample {
    /// Takes a file's bytes through decode and `preprocess`.
    fn new(bytes: Vec<u8>, preprocess: &Preprocess) -> Result<Self, String> {
        let pixels = preprocess.load(&bytes, &DecodeLimits::default()).map_err(|e| e.to_string())?;
        Ok(Self { bytes, pixels })
    }

    /// The usual ending of the file's format, by its content.
    pub fn extension(&self) -> &'static str {
        match sniff(&self.bytes) {
            Some(ImageKind::Jpeg) => "jpg",
            Some(ImageKind::Png) => "png",
            Some(ImageKind::WebP) => "webp",
            Some(ImageKind::Gif) => "gif",
            Some(ImageKind::Bmp) => "bmp",
            Some(ImageKind::Tiff) => "tiff",
            None => "bin",
        }
    }

    /// Whether there is next to nothing on it: its grey values spread over fewer than 8 of 255.
    fn is_blank(&self) -> bool {
        let bytes = self.pixels.as_bytes();
        let n = bytes.len() as f64;
        let mean = bytes.iter().map(|&b| f64::from(b)).sum::<f64>() / n;
        bytes.iter().map(|&b| (f64::from(b) - mean).powi(2)).sum::<f64>() / n < 64.0
    }
}

/// Up to [`SAMPLES`] readable pictures, evenly spread over the list; the same for the same folder.
///
/// The list is cut into as many runs as pictures are wanted. Of each run the first file that can
/// be read counts, so one broken file costs nothing.
pub fn choose(root: &Path, pictures: &[PathBuf], preprocess: &Preprocess) -> Vec<Sample> {
    let wanted = SAMPLES.min(pictures.len());
    let run = |i: usize| i * pictures.len() / wanted..(i + 1) * pictures.len() / wanted;
    let readable = |path: &PathBuf| {
        let path = root.join(path);
        let read = std::fs::read(&path).map_err(|e| e.to_string());
        read.and_then(|bytes| Sample::new(bytes, preprocess))
            .inspect_err(|reason| tracing::debug!(path = %path.display(), reason, "not used as a sample"))
            .ok()
    };
    (0..wanted).filter_map(|i| pictures[run(i)].iter().take(16).find_map(readable)).collect()
}

/// [`GOLDEN`] of the samples, spread over them: of each run the smallest file that shows something.
/// Fewer if there are fewer samples.
pub fn choose_golden(samples: &[Sample], preprocess: &Preprocess) -> Result<Vec<Sample>, String> {
    let wanted = GOLDEN.min(samples.len());
    (0..wanted)
        .filter_map(|i| {
            let run = &samples[i * samples.len() / wanted..(i + 1) * samples.len() / wanted];
            run.iter().min_by_key(|s| (s.is_blank(), s.bytes.len()))
        })
        .map(|sample| {
            if sample.bytes.len() <= GOLDEN_MAX_BYTES {
                Ok(sample.clone())
            } else {
                Sample::new(shrink(sample, preprocess)?, preprocess)
            }
        })
        .collect()
}

/// The same picture as a JPEG whose shorter edge is twice what the encoder's resize asks for.
fn shrink(sample: &Sample, preprocess: &Preprocess) -> Result<Vec<u8>, String> {
    let (limits, decoding) = (DecodeLimits::default(), preprocess.decoding.whole());
    let (picture, _) = decode_as(&sample.bytes, &limits, &decoding, &|height, width| (height, width))
        .map_err(|e| e.to_string())?;
    let (width, height) = (picture.width(), picture.height());
    let target = 2 * preprocess.resize_shortest.unwrap_or(preprocess.height.max(preprocess.width));
    let factor = (f64::from(target) / f64::from(width.min(height))).min(1.0);
    let scaled = |edge: u32| ((f64::from(edge) * factor).round() as u32).max(1);
    let picture = image::RgbImage::from_raw(width, height, picture.into_bytes())
        .ok_or("the decoded picture has another size than it says")?;
    let small = imageops::resize(&picture, scaled(width), scaled(height), FilterType::CatmullRom);
    let mut bytes = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&small).map_err(|e| e.to_string())?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::export::eval_preprocess;
    use latentd_model::decode;

    fn picture(width: u32, height: u32, seed: u32) -> Vec<u8> {
        let picture = image::RgbImage::from_fn(width, height, |x, y| {
            let v = x.wrapping_mul(31) ^ y.wrapping_mul(17) ^ seed.wrapping_mul(0x9e37);
            image::Rgb([v as u8, (v >> 3) as u8, (x + y) as u8])
        });
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn broken_files_are_passed_over_and_the_choice_is_stable() {
        let dir = tempfile::tempdir().unwrap();
        let mut names = Vec::new();
        for i in 0..300u32 {
            let name = PathBuf::from(format!("{i:04}.png"));
            let bytes = if i % 2 == 0 { b"no picture".to_vec() } else { picture(8, 8, i) };
            std::fs::write(dir.path().join(&name), bytes).unwrap();
            names.push(name);
        }
        let preprocess = eval_preprocess(8);
        let samples = choose(dir.path(), &names, &preprocess);
        assert_eq!(samples.len(), SAMPLES);
        let again = choose(dir.path(), &names, &preprocess);
        assert!(samples.iter().zip(&again).all(|(a, b)| a.bytes == b.bytes));
        assert_eq!(choose_golden(&samples, &preprocess).unwrap().len(), GOLDEN);
        assert!(choose(dir.path(), &[], &preprocess).is_empty());
    }

    #[test]
    fn a_large_golden_picture_is_shrunk_and_a_blank_one_avoided() {
        let preprocess = eval_preprocess(32);
        let sample = |bytes| Sample::new(bytes, &preprocess).unwrap();
        let large = sample(picture(700, 500, 3));
        assert!(large.bytes.len() > GOLDEN_MAX_BYTES);
        let golden = choose_golden(&[large], &preprocess).unwrap();
        assert_eq!(golden.len(), 1);
        assert_eq!(golden[0].extension(), "jpg");
        let shrunk = decode(&golden[0].bytes, &DecodeLimits::default()).unwrap();
        assert_eq!((shrunk.width(), shrunk.height()), (90, 64));

        let mut blank = Cursor::new(Vec::new());
        image::RgbImage::new(40, 40).write_to(&mut blank, image::ImageFormat::Png).unwrap();
        let mut samples = vec![sample(blank.into_inner()); 12];
        samples.extend((0..12).map(|i| sample(picture(40, 40, i))));
        let golden = choose_golden(&samples, &preprocess).unwrap();
        assert!(golden[4..].iter().all(|s| !s.is_blank()));
    }
}
