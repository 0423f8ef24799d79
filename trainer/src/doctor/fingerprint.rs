//! The perceptual fingerprint of a picture: signs of its low frequencies.
//!
//! The luma, squeezed to 32 × 32, goes through a cosine transform; the signs of its lowest 16 × 16 coefficients are the
//! fingerprint (the classic "pHash" of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
//! 2010, with 16 × 16 instead of 8 × 8). Scaling, recompression and mild changes of brightness leave nearly all signs
//! alone; two unrelated pictures differ in about half of them. Mirroring a picture turns the signs of the odd
//! frequencies over and transposing it transposes them, so that all eight orientations follow from one fingerprint.

use fast_image_resize as fir;
use latentd_model::Pixels;

/// Side of the luma that is transformed.
pub const SIDE: usize = 32;
/// Frequencies that are kept in each direction.
const KEPT: usize = 16;
/// Bits of the odd columns of every row of 16.
const ODD_COLUMNS: u64 = 0xaaaa_aaaa_aaaa_aaaa;
/// Bits of the odd rows: four rows of 16 bits a word.
const ODD_ROWS: u64 = 0xffff_0000_ffff_0000;
/// The constant term has no sign worth keeping.
const NOT_CONSTANT: u64 = !1;

/// One of the eight ways to lay a picture: bit 2 transposes it, then bit 1 turns it upside down, bit 0 mirrors it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orientation(u8);

impl Orientation {
    /// All eight, the picture as it is first.
    pub const ALL: [Self; 8] = [Self(0), Self(1), Self(2), Self(3), Self(4), Self(5), Self(6), Self(7)];

    /// What was done to the copy, in words; empty when nothing.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self.0 {
            0 => "",
            1 => "mirrored",
            2 => "upside down and mirrored",
            3 => "turned by 180°",
            5 | 6 => "turned by 90°",
            _ => "turned by 90° and mirrored",
        }
    }
}

/// 256 signs, row by row: bit `16 v + u` is set where the coefficient of frequency `v` down and `u` across is positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Fingerprint([u64; 4]);

impl Fingerprint {
    /// Of a luma of 32 × 32 values, row by row; `None` for another number of values.
    #[must_use]
    pub fn of_luma(luma: &[f32]) -> Option<Self> {
        if luma.len() != SIDE * SIDE {
            return None;
        }
        // Across: [32 rows, 16 frequencies], then down: [16, 16].
        let mut across = [[0f32; KEPT]; SIDE];
        for (row, out) in luma.chunks_exact(SIDE).zip(&mut across) {
            for (x, value) in row.iter().enumerate() {
                out.iter_mut().zip(&COSINES[x]).for_each(|(o, c)| *o += value * c);
            }
        }
        let mut down = [[0f32; KEPT]; KEPT];
        for (y, row) in across.iter().enumerate() {
            for (out, c) in down.iter_mut().zip(&COSINES[y]) {
                out.iter_mut().zip(row).for_each(|(o, value)| *o += value * c);
            }
        }
        let mut bits = [0u64; 4];
        for (v, row) in down.iter().enumerate() {
            for (u, value) in row.iter().enumerate() {
                bits[v / 4] |= u64::from(*value > 0.0) << (16 * (v % 4) + u);
            }
        }
        bits[0] &= NOT_CONSTANT;
        Some(Self(bits))
    }

    /// The fingerprint of the same picture laid another way.
    #[must_use]
    pub fn oriented(self, orientation: Orientation) -> Self {
        let mut bits = if orientation.0 & 4 == 0 { self.0 } else { self.transposed() };
        for word in &mut bits {
            if orientation.0 & 2 != 0 {
                *word ^= ODD_ROWS;
            }
            if orientation.0 & 1 != 0 {
                *word ^= ODD_COLUMNS;
            }
        }
        bits[0] &= NOT_CONSTANT;
        Self(bits)
    }

    fn transposed(self) -> [u64; 4] {
        let mut bits = [0u64; 4];
        for v in 0..KEPT {
            for u in 0..KEPT {
                let bit = self.0[u / 4] >> (16 * (u % 4) + v) & 1;
                bits[v / 4] |= bit << (16 * (v % 4) + u);
            }
        }
        bits
    }

    /// The lowest 8 × 8 signs, a byte a row: what candidates are looked up by.
    #[must_use]
    pub fn coarse(self) -> u64 {
        (0..8).map(|v| (self.0[v / 4] >> (16 * (v % 4)) & 0xff) << (8 * v)).sum()
    }

    /// Signs that differ, of 255.
    #[must_use]
    pub fn distance(self, other: Self) -> u32 {
        self.0.iter().zip(other.0).map(|(a, b)| (a ^ b).count_ones()).sum()
    }
}

/// `COSINES[x][u] = cos(π u (2 x + 1) / 64)`.
static COSINES: std::sync::LazyLock<[[f32; KEPT]; SIDE]> = std::sync::LazyLock::new(|| {
    std::array::from_fn(|x| {
        std::array::from_fn(|u| {
            (std::f64::consts::PI * (u * (2 * x + 1)) as f64 / (2 * SIDE) as f64).cos() as f32
        })
    })
});

/// A picture squeezed to 32 × 32 RGB with an antialiasing filter; `None` when it cannot be resized.
#[must_use]
pub fn squeeze(picture: &Pixels, resizer: &mut fir::Resizer) -> Option<Vec<u8>> {
    let (height, width) = (picture.height(), picture.width());
    let source = fir::images::ImageRef::new(width, height, picture.as_bytes(), fir::PixelType::U8x3).ok()?;
    let mut target = fir::images::Image::new(SIDE as u32, SIDE as u32, fir::PixelType::U8x3);
    let options = fir::ResizeOptions::new()
        .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Bilinear))
        .use_alpha(false);
    resizer.resize(&source, &mut target, &options).ok()?;
    Some(target.into_vec())
}

/// Luma (ITU-R BT.601) of RGB bytes.
#[must_use]
pub fn luma(rgb: &[u8]) -> Vec<f32> {
    let (pixels, _) = rgb.as_chunks::<3>();
    pixels
        .iter()
        .map(|p| 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::imageops;

    fn examples() -> Vec<image::RgbImage> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "jpg"));
        paths.sort();
        paths.iter().map(|p| image::open(p).unwrap().to_rgb8()).collect()
    }

    fn fingerprint(picture: &image::RgbImage) -> Fingerprint {
        let pixels = Pixels::new(picture.height(), picture.width(), picture.as_raw().clone()).unwrap();
        let small = squeeze(&pixels, &mut fir::Resizer::new()).unwrap();
        Fingerprint::of_luma(&luma(&small)).unwrap()
    }

    #[test]
    fn copies_are_near_and_other_pictures_far() {
        let all = examples();
        assert!(all.len() >= 8);
        for (i, picture) in all.iter().enumerate() {
            let own = fingerprint(picture);
            let small = imageops::resize(picture, 120, 150, imageops::FilterType::CatmullRom);
            let mut jpeg = std::io::Cursor::new(Vec::new());
            image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 40).encode_image(&small).unwrap();
            let copy = image::load_from_memory(jpeg.get_ref()).unwrap().to_rgb8();
            let copy = imageops::brighten(&copy, 12);
            let distance = own.distance(fingerprint(&copy));
            assert!(distance < 40, "{i}: {distance}");
            for (j, other) in all.iter().enumerate().filter(|(j, _)| *j != i) {
                let other = fingerprint(other);
                let nearest = Orientation::ALL.map(|o| own.oriented(o).distance(other));
                assert!(nearest.iter().all(|d| *d > 70), "{i} {j}: {nearest:?}");
            }
        }
    }

    #[test]
    fn orientations_follow_from_one_fingerprint() {
        for picture in examples() {
            let own = fingerprint(&picture);
            let turned = [
                (Orientation(1), imageops::flip_horizontal(&picture)),
                (Orientation(2), imageops::flip_vertical(&picture)),
                (Orientation(3), imageops::rotate180(&picture)),
                (Orientation(5), imageops::rotate90(&picture)),
                (Orientation(6), imageops::rotate270(&picture)),
                (Orientation(7), imageops::rotate90(&imageops::flip_horizontal(&picture))),
                (Orientation(4), imageops::rotate270(&imageops::flip_horizontal(&picture))),
            ];
            for (orientation, copy) in turned {
                let distance = own.oriented(orientation).distance(fingerprint(&copy));
                assert!(distance < 12, "{orientation:?} {}: {distance}", orientation.words());
            }
        }
    }

    #[test]
    fn the_coarse_part_is_the_lowest_frequencies() {
        let print = Fingerprint([NOT_CONSTANT, 0, 0, 0]);
        assert_eq!(print.coarse(), 0xffff_fffe);
        assert!(Fingerprint::of_luma(&[0.0; 5]).is_none());
    }
}
