//! Gaussian blur of planar pictures, separable, mirrored at the border.

/// Buffers of the blur, kept between views.
#[derive(Debug, Default)]
pub struct BlurScratch {
    weights: Vec<f32>,
    line: Vec<f32>,
    temp: Vec<f32>,
}

/// Lanes that one step of the loops below works on.
const LANES: usize = 32;

/// Half the kernel's width for a view of `size` pixels: 11 (a kernel of 23) at 224 with a share of 0.1.
#[must_use]
pub fn radius(size: usize, share: f64) -> usize {
    // The mirror needs a border narrower than the picture.
    ((size as f64 * share / 2.0) as usize).min(size.saturating_sub(1))
}

/// Blurs one plane of `size` × `size` with standard deviation `sigma` and a kernel of `2 * radius + 1`.
#[inline(always)]
pub fn blur(plane: &mut [f32], size: usize, sigma: f32, radius: usize, scratch: &mut BlurScratch) {
    if radius == 0 || size == 0 {
        return;
    }
    let BlurScratch { weights, line, temp } = scratch;
    fill_weights(weights, sigma, radius);
    // Rounded up to whole steps: what is computed beyond the row is never read.
    let steps = size.div_ceil(LANES) * LANES;
    line.clear();
    line.resize(steps + 2 * radius, 0.0);
    temp.clear();
    temp.resize((size + 2 * radius) * steps, 0.0);
    for (y, row) in plane.chunks_exact(size).enumerate() {
        line[radius..radius + size].copy_from_slice(row);
        for k in 1..=radius {
            line[radius - k] = row[k];
            line[radius + size - 1 + k] = row[size - 1 - k];
        }
        let out = &mut temp[(radius + y) * steps..(radius + y + 1) * steps];
        convolve(out, |k, at| &line[at + k..at + k + LANES], weights);
    }
    for k in 1..=radius {
        temp.copy_within((radius + k) * steps..(radius + k + 1) * steps, (radius - k) * steps);
        let last = radius + size - 1;
        temp.copy_within((last - k) * steps..(last - k + 1) * steps, (last + k) * steps);
    }
    let out = &mut line[..steps];
    for (y, row) in plane.chunks_exact_mut(size).enumerate() {
        convolve(out, |k, at| &temp[(y + k) * steps + at..(y + k) * steps + at + LANES], weights);
        for (v, o) in row.iter_mut().zip(out.iter()) {
            *v = o.clamp(0.0, 1.0);
        }
    }
}

/// `out[x] = Σ_k weights[k] * source(k, x)`, where `source(k, at)` gives the values for `at..at + LANES`.
#[inline(always)]
fn convolve<'s>(out: &mut [f32], source: impl Fn(usize, usize) -> &'s [f32], weights: &[f32]) {
    let (steps, _) = out.as_chunks_mut::<LANES>();
    for (i, step) in steps.iter_mut().enumerate() {
        let mut sum = [0.0f32; LANES];
        for (k, &weight) in weights.iter().enumerate() {
            for (s, v) in sum.iter_mut().zip(source(k, i * LANES)) {
                *s += weight * v;
            }
        }
        *step = sum;
    }
}

/// The normalised kernel.
fn fill_weights(weights: &mut Vec<f32>, sigma: f32, radius: usize) {
    let sigma = f64::from(sigma).max(1e-3);
    let value = |k: usize| {
        let distance = k as f64 - radius as f64;
        (-0.5 * (distance / sigma).powi(2)).exp()
    };
    let total: f64 = (0..=2 * radius).map(value).sum();
    weights.clear();
    weights.extend((0..=2 * radius).map(|k| (value(k) / total) as f32));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, stream, unit};

    #[test]
    fn kernel_is_23_at_224_and_3_at_32() {
        assert_eq!(radius(224, 0.1), 11);
        assert_eq!(radius(32, 0.1), 1);
        assert_eq!(radius(8, 0.1), 0);
        assert_eq!(radius(1, 0.5), 0);
    }

    #[test]
    fn equals_the_definition() {
        for (size, sigma, r) in [(33, 1.3, 4), (32, 0.1, 1), (5, 2.0, 4), (70, 2.0, 11)] {
            let mut rng = stream(1, Purpose::Split, 0, 0);
            let before: Vec<f32> = (0..size * size).map(|_| unit(&mut rng) as f32).collect();
            let mut after = before.clone();
            let mut scratch = BlurScratch::default();
            blur(&mut after, size, sigma, r, &mut scratch);
            let mirror = |i: isize| {
                let n = size as isize;
                (if i < 0 {
                    -i
                } else if i >= n {
                    2 * n - 2 - i
                } else {
                    i
                }) as usize
            };
            let reach = r as isize;
            let gauss = |d: isize| (-0.5 * (d as f64 / f64::from(sigma)).powi(2)).exp();
            let total: f64 = (-reach..=reach).map(gauss).sum();
            for y in 0..size {
                for x in 0..size {
                    let mut want = 0.0;
                    for j in -reach..=reach {
                        for i in -reach..=reach {
                            let v = before[mirror(y as isize + j) * size + mirror(x as isize + i)];
                            want += gauss(j) * gauss(i) / total / total * f64::from(v);
                        }
                    }
                    let got = f64::from(after[y * size + x]);
                    assert!((got - want).abs() < 2e-6, "{size} {sigma} {y},{x}: {got} {want}");
                }
            }
        }
    }
}
