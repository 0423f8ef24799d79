//! Histograms of oriented gradients: what hand-made features know of a picture, as a baseline.
//!
//! Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", 2005, computed as scikit-image's
//! `skimage.feature.hog` does with 9 orientations, cells of 8 × 8 pixels, blocks of 2 × 2 cells, "L2-Hys": no
//! interpolation between cells or orientations, and of several channels the one with the strongest gradient.

/// Pixels of a cell in each direction.
const CELL: usize = 8;
/// Cells of a block in each direction.
const BLOCK: usize = 2;
const ORIENTATIONS: usize = 9;
/// Added before a block is normalised.
const EPSILON: f64 = 1e-5;
/// What a normalised value is cut to.
const CLIP: f64 = 0.2;

/// Number of features of a picture of `side` × `side` pixels: 324 at 32, 1,764 at 64; 0 below 16.
#[must_use]
pub fn hog_len(side: usize) -> usize {
    let blocks = (side / CELL).saturating_sub(BLOCK - 1);
    blocks * blocks * BLOCK * BLOCK * ORIENTATIONS
}

/// Features of an RGB picture `[side, side, 3]`, block by block, in each cell by cell, in each by orientation; empty
/// when there are not `side * side * 3` bytes or `side` is below 16.
#[must_use]
pub fn hog(rgb: &[u8], side: usize) -> Vec<f32> {
    let length = hog_len(side);
    if rgb.len() != side * side * 3 || length == 0 {
        return Vec::new();
    }
    let cells = histograms(rgb, side);
    let per_side = side / CELL;
    let mut features = Vec::with_capacity(length);
    for top in 0..=per_side - BLOCK {
        for left in 0..=per_side - BLOCK {
            let mut block = Vec::with_capacity(BLOCK * BLOCK * ORIENTATIONS);
            for row in top..top + BLOCK {
                for column in left..left + BLOCK {
                    block.extend_from_slice(&cells[row * per_side + column]);
                }
            }
            normalise(&mut block);
            block.iter_mut().for_each(|v| *v = v.min(CLIP));
            normalise(&mut block);
            features.extend(block.iter().map(|v| *v as f32));
        }
    }
    features
}

fn normalise(block: &mut [f64]) {
    let norm = (block.iter().map(|v| v * v).sum::<f64>() + EPSILON * EPSILON).sqrt();
    block.iter_mut().for_each(|v| *v /= norm);
}

/// Gradient magnitude by orientation of every cell, row by row, averaged over its pixels.
fn histograms(rgb: &[u8], side: usize) -> Vec<[f64; ORIENTATIONS]> {
    let per_side = side / CELL;
    let mut cells = vec![[0.0; ORIENTATIONS]; per_side * per_side];
    for y in 0..per_side * CELL {
        for x in 0..per_side * CELL {
            let (down, across) = gradient(rgb, side, y, x);
            let degrees = down.atan2(across).to_degrees().rem_euclid(180.0);
            let bin = (degrees * ORIENTATIONS as f64 / 180.0) as usize;
            if let Some(sum) = cells[y / CELL * per_side + x / CELL].get_mut(bin) {
                *sum += down.hypot(across) / (CELL * CELL) as f64;
            }
        }
    }
    cells
}

/// Central differences of the channel in which they are largest; 0 at the border.
fn gradient(rgb: &[u8], side: usize, y: usize, x: usize) -> (f64, f64) {
    let at = |y: usize, x: usize, c: usize| f64::from(rgb[(y * side + x) * 3 + c]);
    let inside = |v: usize| v > 0 && v + 1 < side;
    let one = |c: usize| {
        let down = if inside(y) { at(y + 1, x, c) - at(y - 1, x, c) } else { 0.0 };
        let across = if inside(x) { at(y, x + 1, c) - at(y, x - 1, c) } else { 0.0 };
        (down, across)
    };
    let mut best = one(0);
    for c in 1..3 {
        let other = one(c);
        // Strictly more only: of equals numpy's argmax takes the first.
        if other.0.hypot(other.1) > best.0.hypot(best.1) {
            best = other;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// Computed by scikit-image on real pictures: tests/reference/make_hog.py.
    const REFERENCE: &[u8] = include_bytes!("../../tests/reference/hog.safetensors");

    #[test]
    fn equals_scikit_image_on_real_pictures() {
        let file = SafeTensors::deserialize(REFERENCE).unwrap();
        let mut compared = 0;
        for side in [32, 64] {
            let pixels = file.tensor(&format!("pixels.{side}")).unwrap();
            let want = file.tensor(&format!("hog.{side}")).unwrap();
            let want: Vec<f32> =
                want.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            for (rgb, want) in pixels.data().chunks(side * side * 3).zip(want.chunks(hog_len(side))) {
                let got = hog(rgb, side);
                assert_eq!(got.len(), want.len());
                let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-6, "{worst}");
                compared += 1;
            }
        }
        assert_eq!(compared, 8);
    }

    #[test]
    fn lengths_and_odd_sizes() {
        assert_eq!([8, 16, 32, 64].map(hog_len), [0, 36, 324, 1764]);
        assert!(hog(&[0; 5], 32).is_empty() && hog(&[0; 8 * 8 * 3], 8).is_empty());
        assert!(hog(&[7; 16 * 16 * 3], 16).iter().all(|v| *v == 0.0), "a flat picture has no gradient");
    }
}
