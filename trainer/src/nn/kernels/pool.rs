//! Max-pooling 3×3 stride 2 padding 1, and average pooling of whole maps or of a grid's cells, channels last.

use rayon::prelude::*;

use super::geometry::Geometry;

/// The geometry after [`max_pool`], without a border.
pub fn max_pool_output(x: Geometry) -> Geometry {
    Geometry { height: x.height.div_ceil(2), width: x.width.div_ceil(2), pad: 0, ..x }
}

/// The rows or columns of the input under one output position.
fn window(o: usize, size: usize) -> std::ops::Range<usize> {
    (2 * o).saturating_sub(1)..(2 * o + 2).min(size)
}

/// 3×3 maximum at stride 2 and padding 1: the ResNet stem's. Overwrites `y`, whose border stays.
pub fn max_pool(xg: Geometry, x: &[f32], yg: Geometry, y: &mut [f32]) {
    assert!(xg.len() == x.len() && yg.len() == y.len() && max_pool_output(xg) == yg.with_pad(0));
    let c = xg.channels;
    y.par_chunks_mut(yg.image_stride()).zip(x.par_chunks(xg.image_stride())).for_each(|(y, x)| {
        for oy in 0..yg.height {
            for ox in 0..yg.width {
                let start = yg.origin() + oy * yg.row_stride() + ox * c;
                let out = &mut y[start..start + c];
                out.fill(f32::NEG_INFINITY);
                for iy in window(oy, xg.height) {
                    for ix in window(ox, xg.width) {
                        let from = &x[xg.origin() + iy * xg.row_stride() + ix * c..][..c];
                        out.iter_mut().zip(from).for_each(|(o, v)| *o = o.max(*v));
                    }
                }
            }
        }
    });
}

/// Gradient of [`max_pool`]'s input, overwriting `dx`: each output's gradient goes to the first
/// pixel that holds its maximum.
pub fn max_pool_backward(
    (xg, x): (Geometry, &[f32]),
    (yg, y): (Geometry, &[f32]),
    (dyg, dy): (Geometry, &[f32]),
    (dxg, dx): (Geometry, &mut [f32]),
) {
    assert!(xg.len() == x.len() && yg.len() == y.len() && dyg.len() == dy.len() && dxg.len() == dx.len());
    let c = xg.channels;
    dx.par_chunks_mut(dxg.image_stride()).enumerate().for_each(|(n, dx)| {
        dx.fill(0.0);
        let (x, y, dy) =
            (&x[n * xg.image_stride()..], &y[n * yg.image_stride()..], &dy[n * dyg.image_stride()..]);
        let mut taken = vec![false; c];
        for oy in 0..yg.height {
            for ox in 0..yg.width {
                let y = &y[yg.origin() + oy * yg.row_stride() + ox * c..][..c];
                let dy = &dy[dyg.origin() + oy * dyg.row_stride() + ox * c..][..c];
                taken.fill(false);
                for iy in window(oy, xg.height) {
                    for ix in window(ox, xg.width) {
                        let x = &x[xg.origin() + iy * xg.row_stride() + ix * c..][..c];
                        let dx = &mut dx[dxg.origin() + iy * dxg.row_stride() + ix * c..][..c];
                        for i in 0..c {
                            let here = x[i] == y[i] && !taken[i];
                            dx[i] += if here { dy[i] } else { 0.0 };
                            taken[i] |= here;
                        }
                    }
                }
            }
        }
    });
}

/// Mean over the pixels of every image: `[images, channels]`, overwriting `y`.
pub fn average_pool(xg: Geometry, x: &[f32], y: &mut [f32]) {
    assert!(xg.len() == x.len() && y.len() == xg.images * xg.channels);
    let c = xg.channels;
    let scale = 1.0 / xg.pixels() as f32;
    y.par_chunks_mut(c).zip(x.par_chunks(xg.image_stride())).for_each(|(y, x)| {
        y.fill(0.0);
        for row in 0..xg.height {
            let start = xg.origin() + row * xg.row_stride();
            for pixel in x[start..start + xg.width * c].chunks_exact(c) {
                y.iter_mut().zip(pixel).for_each(|(y, v)| *y += v);
            }
        }
        y.iter_mut().for_each(|y| *y *= scale);
    });
}

/// The rows or columns of a map of `size` under cell `i` of `cells`: they meet where `cells` divides `size`, and share
/// a row otherwise, as PyTorch's adaptive pooling has it.
pub fn cell(i: usize, cells: usize, size: usize) -> std::ops::Range<usize> {
    i * size / cells..((i + 1) * size).div_ceil(cells)
}

/// Mean over each of `grid` × `grid` cells of every image, `[images, channels, grid · grid]`, overwriting `y`.
pub fn grid_pool(xg: Geometry, x: &[f32], grid: usize, y: &mut [f32]) {
    let cells = grid * grid;
    assert!(xg.len() == x.len() && y.len() == xg.images * xg.channels * cells);
    let c = xg.channels;
    y.par_chunks_mut(c * cells).zip(x.par_chunks(xg.image_stride())).for_each(|(y, x)| {
        y.fill(0.0);
        for at in 0..cells {
            let (rows, columns) = (cell(at / grid, grid, xg.height), cell(at % grid, grid, xg.width));
            let scale = 1.0 / (rows.len() * columns.len()) as f32;
            for row in rows {
                let start = xg.origin() + row * xg.row_stride();
                for pixel in x[start + columns.start * c..start + columns.end * c].chunks_exact(c) {
                    y.iter_mut().skip(at).step_by(cells).zip(pixel).for_each(|(y, v)| *y += v * scale);
                }
            }
        }
    });
}

/// Gradient of [`average_pool`]'s input, overwriting `dx`, whose border stays.
pub fn average_pool_backward(dy: &[f32], dxg: Geometry, dx: &mut [f32]) {
    assert!(dxg.len() == dx.len() && dy.len() == dxg.images * dxg.channels);
    let c = dxg.channels;
    let scale = 1.0 / dxg.pixels() as f32;
    dx.par_chunks_mut(dxg.image_stride()).zip(dy.par_chunks(c)).for_each(|(dx, dy)| {
        for row in 0..dxg.height {
            let start = dxg.origin() + row * dxg.row_stride();
            for pixel in dx[start..start + dxg.width * c].chunks_exact_mut(c) {
                pixel.iter_mut().zip(dy).for_each(|(d, v)| *d = v * scale);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distinct values, so that no maximum is tied and finite differences are exact.
    fn distinct(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 1009) as f32 / 100.0).collect()
    }

    #[test]
    fn max_pooling_and_its_gradient_match_the_formula() {
        for (height, width) in [(6, 8), (5, 7), (1, 1)] {
            let xg = Geometry { images: 2, height, width, channels: 3, pad: 0 };
            let yg = max_pool_output(xg);
            let x = distinct(xg.len());
            let mut y = vec![0f32; yg.len()];
            max_pool(xg, &x, yg, &mut y);
            let dy: Vec<f32> = (0..yg.len()).map(|i| 1.0 + i as f32).collect();
            let mut dx = vec![9f32; xg.len()];
            max_pool_backward((xg, &x), (yg, &y), (yg, &dy), (xg, &mut dx));
            let loss = |x: &[f32]| -> f64 {
                let mut y = vec![0f32; yg.len()];
                max_pool(xg, x, yg, &mut y);
                y.iter().zip(&dy).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            for i in 0..x.len() {
                let (mut up, mut down) = (x.clone(), x.clone());
                up[i] += 1e-3;
                down[i] -= 1e-3;
                let slope = (loss(&up) - loss(&down)) / 2e-3;
                assert!(
                    (slope - f64::from(dx[i])).abs() < 0.05 * (1.0 + slope.abs()),
                    "{i}: {slope} {}",
                    dx[i]
                );
            }
        }
    }

    #[test]
    fn average_pooling_and_its_gradient_match_the_formula() {
        let xg = Geometry { images: 2, height: 3, width: 2, channels: 2, pad: 1 };
        let mut x = vec![0f32; xg.len()];
        average_pool_backward(&[6.0, 12.0, 18.0, 24.0], xg, &mut x);
        let mut y = vec![0f32; 4];
        average_pool(xg, &x, &mut y);
        assert_eq!(y, [1.0, 2.0, 3.0, 4.0]);
        assert!(x[0] == 0.0, "the border stays");
    }

    #[test]
    fn grids_cut_as_adaptive_pooling_does() {
        // Two channels; the first counts pixels, the second is its negative.
        let xg = Geometry { images: 2, height: 3, width: 4, channels: 2, pad: 1 };
        let mut x = vec![9f32; xg.len()];
        for image in 0..2 {
            for i in 0..12 {
                let at = image * xg.image_stride() + xg.origin() + i / 4 * xg.row_stride() + i % 4 * 2;
                x[at] = (12 * image + i) as f32;
                x[at + 1] = -x[at];
            }
        }
        let mut y = vec![0f32; 16];
        grid_pool(xg, &x, 2, &mut y);
        // torch.nn.functional.adaptive_avg_pool2d(torch.arange(12.).view(1, 1, 3, 4), 2): rows 0..2 and 1..3.
        assert_eq!(y[..8], [2.5, 4.5, 6.5, 8.5, -2.5, -4.5, -6.5, -8.5]);
        assert_eq!(y[8..12], [14.5, 16.5, 18.5, 20.5]);
        let (mut whole, mut one) = (vec![0f32; 4], vec![0f32; 4]);
        average_pool(xg, &x, &mut whole);
        grid_pool(xg, &x, 1, &mut one);
        whole.iter().zip(&one).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} {b}"));
    }
}
