//! Colour operations on planar RGB in [0, 1]; every one clips its result to [0, 1].

/// The three planes of a picture, equally long.
pub type Planes<'a> = [&'a mut [f32]; 3];

/// Adds `delta`.
#[inline(always)]
pub fn brightness(planes: Planes<'_>, delta: f32) {
    for plane in planes {
        for v in plane {
            *v = (*v + delta).clamp(0.0, 1.0);
        }
    }
}

/// Multiplies the distance to each channel's mean by `factor`.
#[inline(always)]
pub fn contrast(planes: Planes<'_>, factor: f32) {
    for plane in planes {
        let mean = mean(plane);
        for v in plane {
            *v = (factor * (*v - mean) + mean).clamp(0.0, 1.0);
        }
    }
}

/// The mean, in 16 partial sums so that the loop vectorises and rounding stays small.
#[inline(always)]
fn mean(plane: &[f32]) -> f32 {
    let mut total = 0.0f64;
    for block in plane.chunks(4096) {
        let mut sums = [0.0f32; 16];
        let (whole, rest) = block.as_chunks::<16>();
        for chunk in whole {
            for (s, v) in sums.iter_mut().zip(chunk) {
                *s += v;
            }
        }
        total += f64::from(sums.iter().sum::<f32>() + rest.iter().sum::<f32>());
    }
    (total / plane.len().max(1) as f64) as f32
}

/// Multiplies HSV saturation by `factor`, at most to full saturation.
///
/// With hue and value kept, a channel's distance to the value `v` scales with the saturation `s = (v - min) / v`,
/// so the round trip through HSV is `v - (v - x) * min(factor, 1 / s)`.
#[inline(always)]
pub fn saturation([red, green, blue]: Planes<'_>, factor: f32) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let high = max(max(*r, *g), *b);
        let chroma = high - min(min(*r, *g), *b);
        let most = high / max(chroma, 1e-12);
        let scale = min(factor, most);
        *r = (high - (high - *r) * scale).clamp(0.0, 1.0);
        *g = (high - (high - *g) * scale).clamp(0.0, 1.0);
        *b = (high - (high - *b) * scale).clamp(0.0, 1.0);
    }
}

/// Turns HSV hue by `delta` of the circle (within ±1).
#[inline(always)]
pub fn hue([red, green, blue]: Planes<'_>, delta: f32) {
    let turn = (delta - delta.floor()) * 6.0;
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let high = max(max(*r, *g), *b);
        let chroma = high - min(min(*r, *g), *b);
        let unit = 1.0 / max(chroma, 1e-12);
        // Hue in sixths of the circle, in [-1, 5]; grey gets 0 and keeps its chroma of 0.
        let from_red = (*g - *b) * unit;
        let from_green = (*b - *r) * unit + 2.0;
        let from_blue = (*r - *g) * unit + 4.0;
        let h = if *r == high {
            from_red
        } else if *g == high {
            from_green
        } else {
            from_blue
        };
        let h = h + turn;
        *r = channel(h, 5.0, high, chroma);
        *g = channel(h, 3.0, high, chroma);
        *b = channel(h, 1.0, high, chroma);
    }
}

/// One channel of an HSV colour: `value - chroma * clamp(min(k, 4 - k), 0, 1)` with `k = (offset + h) mod 6`.
#[inline(always)]
fn channel(h: f32, offset: f32, value: f32, chroma: f32) -> f32 {
    // h + offset lies in [0, 16), so two subtractions bring it below 6.
    let k = h + offset;
    let k = if k >= 6.0 { k - 6.0 } else { k };
    let k = if k >= 6.0 { k - 6.0 } else { k };
    (value - chroma * max(min(min(k, 4.0 - k), 1.0), 0.0)).clamp(0.0, 1.0)
}

/// Greyscale with the weights of Rec. 601.
#[inline(always)]
pub fn grayscale([red, green, blue]: Planes<'_>) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let grey = (0.2989 * *r + 0.5870 * *g + 0.1140 * *b).clamp(0.0, 1.0);
        (*r, *g, *b) = (grey, grey, grey);
    }
}

/// Inverts values at or above `threshold`.
#[inline(always)]
pub fn solarize(planes: Planes<'_>, threshold: f32) {
    for plane in planes {
        for v in plane {
            *v = if *v < threshold { *v } else { 1.0 - *v };
        }
    }
}

// Comparisons instead of f32::max and min: one instruction each, as no value is NaN.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::{Purpose, stream, unit};

    const N: usize = 5_000;

    /// Random colours, and the corners, greys and ties of the cube.
    fn colours() -> [Vec<f32>; 3] {
        let mut rng = stream(3, Purpose::Split, 0, 0);
        let mut planes: [Vec<f32>; 3] =
            std::array::from_fn(|_| (0..N).map(|_| unit(&mut rng) as f32).collect());
        for i in 0..27 {
            let digits = [i % 3, i / 3 % 3, i / 9];
            for (plane, d) in planes.iter_mut().zip(digits) {
                plane[i] = d as f32 * 0.5;
            }
        }
        planes
    }

    fn apply(f: impl Fn(Planes<'_>)) -> ([Vec<f32>; 3], [Vec<f32>; 3]) {
        let before = colours();
        let mut after = before.clone();
        let [r, g, b] = &mut after;
        f([r, g, b]);
        (before, after)
    }

    /// The textbook conversion, in f64.
    fn rgb_to_hsv([r, g, b]: [f64; 3]) -> [f64; 3] {
        let v = r.max(g).max(b);
        let c = v - r.min(g).min(b);
        let h = if c == 0.0 {
            0.0
        } else if v == r {
            ((g - b) / c).rem_euclid(6.0)
        } else if v == g {
            (b - r) / c + 2.0
        } else {
            (r - g) / c + 4.0
        };
        [h / 6.0, if v == 0.0 { 0.0 } else { c / v }, v]
    }

    fn hsv_to_rgb([h, s, v]: [f64; 3]) -> [f64; 3] {
        let sector = h.rem_euclid(1.0) * 6.0;
        let c = s * v;
        let x = c * (1.0 - (sector % 2.0 - 1.0).abs());
        let m = v - c;
        let [r, g, b] = match sector as usize {
            0 => [c, x, 0.0],
            1 => [x, c, 0.0],
            2 => [0.0, c, x],
            3 => [0.0, x, c],
            4 => [x, 0.0, c],
            _ => [c, 0.0, x],
        };
        [r + m, g + m, b + m]
    }

    fn compare(before: &[Vec<f32>; 3], after: &[Vec<f32>; 3], want: impl Fn([f64; 3]) -> [f64; 3]) {
        for i in 0..N {
            let source = [0, 1, 2].map(|c| f64::from(before[c][i]));
            let expected = want(source).map(|v| v.clamp(0.0, 1.0));
            for c in 0..3 {
                let got = f64::from(after[c][i]);
                assert!(
                    (got - expected[c]).abs() < 3e-6,
                    "{source:?}: channel {c} is {got}, not {}",
                    expected[c]
                );
            }
        }
    }

    #[test]
    fn hue_is_the_hsv_round_trip() {
        for delta in [-0.5, -0.1, -0.03, 0.0, 0.07, 0.1, 0.5] {
            let (before, after) = apply(|p| hue(p, delta));
            compare(&before, &after, |rgb| {
                let [h, s, v] = rgb_to_hsv(rgb);
                hsv_to_rgb([h + f64::from(delta), s, v])
            });
        }
    }

    #[test]
    fn saturation_is_the_hsv_round_trip() {
        for factor in [0.0, 0.8, 1.0, 1.2, 2.0] {
            let (before, after) = apply(|p| saturation(p, factor));
            compare(&before, &after, |rgb| {
                let [h, s, v] = rgb_to_hsv(rgb);
                hsv_to_rgb([h, (s * f64::from(factor)).min(1.0), v])
            });
        }
    }

    #[test]
    fn brightness_contrast_grayscale_and_solarize_are_their_formulas() {
        let (before, after) = apply(|p| brightness(p, -0.3));
        compare(&before, &after, |rgb| rgb.map(|v| v - f64::from(0.3f32)));
        let (before, after) = apply(|p| contrast(p, 1.4));
        let means = [0, 1, 2].map(|c: usize| before[c].iter().map(|&v| f64::from(v)).sum::<f64>() / N as f64);
        compare(&before, &after, |rgb| {
            std::array::from_fn(|c| f64::from(1.4f32) * (rgb[c] - means[c]) + means[c])
        });
        let (before, after) = apply(grayscale);
        compare(&before, &after, |[r, g, b]| [0.2989 * r + 0.5870 * g + 0.1140 * b; 3]);
        let (before, after) = apply(|p| solarize(p, 0.5));
        compare(&before, &after, |rgb| rgb.map(|v| if v < 0.5 { v } else { 1.0 - v }));
    }
}
