//! Crop and bicubic resize in one pass, from 8-bit pixels to planar floats in [0, 1].

use super::plan::Crop;
use crate::data::PictureRef;

/// Buffers of the resampler, kept between views.
#[derive(Debug, Default)]
pub struct ResampleScratch {
    rows: Taps,
    columns: Taps,
    line: Vec<f32>,
}

/// For each output position, the first source position and the weights from there.
#[derive(Debug, Default)]
struct Taps {
    count: usize,
    starts: Vec<usize>,
    weights: Vec<f32>,
}

/// Keys' cubic with a = -0.5, as Pillow and TensorFlow use it.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

impl Taps {
    /// Weights that bring `source` positions to `target`; when shrinking, the filter is widened so that nothing
    /// aliases (Pillow's rule). Every position has `count` weights, which add up to `gain`.
    fn fill(&mut self, source: usize, target: usize, mirrored: bool, gain: f64) {
        let scale = source as f64 / target as f64;
        let widen = scale.max(1.0);
        let support = 2.0 * widen;
        self.count = ((support.ceil() as usize) * 2 + 1).min(source);
        self.starts.clear();
        self.weights.clear();
        for i in 0..target {
            let i = if mirrored { target - 1 - i } else { i };
            let centre = (i as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5).floor().max(0.0) as usize).min(source - self.count);
            let weight = |k: usize| cubic(((first + k) as f64 + 0.5 - centre) / widen);
            let total: f64 = (0..self.count).map(weight).sum();
            self.starts.push(first);
            self.weights.extend((0..self.count).map(|k| (weight(k) / total * gain) as f32));
        }
    }
}

/// Writes the `crop` of `picture`, resized to `size` × `size` and mirrored if `flip`, into the three `planes`
/// (red, green, blue, each `size * size`), clamped to [0, 1].
#[inline(always)]
pub fn crop_resize(
    picture: PictureRef<'_>,
    crop: Crop,
    flip: bool,
    size: usize,
    scratch: &mut ResampleScratch,
    planes: [&mut [f32]; 3],
) {
    let ResampleScratch { rows, columns, line } = scratch;
    rows.fill(crop.height, size, false, 1.0 / 255.0);
    columns.fill(crop.width, size, flip, 1.0);
    let span = crop.width * 3;
    // One float more, so that every pixel can be read as four.
    line.clear();
    line.resize(span + 1, 0.0);
    let [red, green, blue] = planes;
    let stride = picture.width * 3;
    let lines = red.chunks_exact_mut(size).zip(green.chunks_exact_mut(size)).zip(blue.chunks_exact_mut(size));
    let row_taps = rows.starts.iter().zip(rows.weights.chunks_exact(rows.count));
    for (((red, green), blue), (&start, weights)) in lines.zip(row_taps) {
        let sum = &mut line[..span];
        sum.fill(0.0);
        for (k, &weight) in weights.iter().enumerate() {
            if weight != 0.0 {
                let at = (crop.top + start + k) * stride + crop.left * 3;
                accumulate(sum, &picture.rgb[at..at + span], weight);
            }
        }
        let column_taps = columns.starts.iter().zip(columns.weights.chunks_exact(columns.count));
        let out = red.iter_mut().zip(green.iter_mut()).zip(blue.iter_mut());
        for (((r, g), b), (&start, weights)) in out.zip(column_taps) {
            let mut pixel = [0.0f32; 4];
            for (k, &weight) in weights.iter().enumerate() {
                let at = (start + k) * 3;
                let source = &line[at..at + 4];
                for (p, s) in pixel.iter_mut().zip(source) {
                    *p += weight * s;
                }
            }
            *r = pixel[0].clamp(0.0, 1.0);
            *g = pixel[1].clamp(0.0, 1.0);
            *b = pixel[2].clamp(0.0, 1.0);
        }
    }
}

#[inline(always)]
fn accumulate(sum: &mut [f32], source: &[u8], weight: f32) {
    for (s, &v) in sum.iter_mut().zip(source) {
        *s += weight * f32::from(v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resized(rgb: &[u8], h: usize, w: usize, crop: Crop, flip: bool, size: usize) -> Vec<f32> {
        let picture = PictureRef::new(h, w, rgb).unwrap();
        let mut planes = vec![0.0; 3 * size * size];
        let (r, rest) = planes.split_at_mut(size * size);
        let (g, b) = rest.split_at_mut(size * size);
        crop_resize(picture, crop, flip, size, &mut ResampleScratch::default(), [r, g, b]);
        planes
    }

    fn noise(n: usize) -> Vec<u8> {
        let mut state = 12345u32;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect()
    }

    /// The definition in f64, without any sharing of work.
    fn reference(rgb: &[u8], w: usize, crop: Crop, size: usize, c: usize, y: usize, x: usize) -> f64 {
        let axis = |source: usize, i: usize| -> Vec<f64> {
            let scale = source as f64 / size as f64;
            let widen = scale.max(1.0);
            let centre = (i as f64 + 0.5) * scale;
            let raw: Vec<f64> = (0..source).map(|j| cubic((j as f64 + 0.5 - centre) / widen)).collect();
            let total: f64 = raw.iter().sum();
            raw.iter().map(|v| v / total).collect()
        };
        let (wy, wx) = (axis(crop.height, y), axis(crop.width, x));
        let mut sum = 0.0;
        for (j, a) in wy.iter().enumerate() {
            for (i, b) in wx.iter().enumerate() {
                let at = ((crop.top + j) * w + crop.left + i) * 3 + c;
                sum += a * b * f64::from(rgb[at]) / 255.0;
            }
        }
        sum.clamp(0.0, 1.0)
    }

    #[test]
    fn equals_the_definition_growing_and_shrinking() {
        let (h, w) = (37, 41);
        let rgb = noise(h * w * 3);
        for (crop, size) in [
            (Crop { top: 3, left: 5, height: 20, width: 17 }, 32),
            (Crop { top: 0, left: 0, height: 37, width: 41 }, 8),
            (Crop { top: 36, left: 40, height: 1, width: 1 }, 4),
            (Crop { top: 10, left: 0, height: 3, width: 41 }, 16),
        ] {
            let got = resized(&rgb, h, w, crop, false, size);
            for c in 0..3 {
                for y in 0..size {
                    for x in 0..size {
                        let want = reference(&rgb, w, crop, size, c, y, x);
                        let have = f64::from(got[(c * size + y) * size + x]);
                        assert!((want - have).abs() < 2e-6, "{crop:?} {c},{y},{x}: {want} {have}");
                    }
                }
            }
        }
    }

    #[test]
    fn same_size_is_the_identity_and_flip_mirrors() {
        let rgb = noise(8 * 8 * 3);
        let crop = Crop { top: 0, left: 0, height: 8, width: 8 };
        let plain = resized(&rgb, 8, 8, crop, false, 8);
        let mirrored = resized(&rgb, 8, 8, crop, true, 8);
        for c in 0..3 {
            for y in 0..8 {
                for x in 0..8 {
                    let v = plain[(c * 8 + y) * 8 + x];
                    assert!((v - f32::from(rgb[(y * 8 + x) * 3 + c]) / 255.0).abs() < 1e-6);
                    assert_eq!(v, mirrored[(c * 8 + y) * 8 + 7 - x]);
                }
            }
        }
    }
}
