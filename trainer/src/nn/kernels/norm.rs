//! Batch and group normalisation with the addition and the ReLU that follow, channels last.
//!
//! Ioffe and Szegedy 2015. The two views of a step travel as one batch; each view has its own
//! statistics, as in BYOL's reference code, where the views are two forward passes. Forward is one
//! sweep for the statistics and one that writes `relu(scale · z + shift + residual)`; backward is
//! the same two sweeps.
//!
//! Group norm (Wu and He 2018) is the same with every image a view of its own, and statistics
//! shared by the channels of a group.

use rayon::prelude::*;

use super::geometry::Geometry;
use super::simd::{Kernel, Simd, dispatch};

/// Added to the variance under the root.
pub const EPSILON: f32 = 1e-5;

/// A batch of maps: where its pixels lie, and its values.
#[derive(Clone, Copy)]
pub struct Maps<'a> {
    /// Where pixels lie.
    pub at: Geometry,
    /// As many values as `at.len()`.
    pub data: &'a [f32],
}

/// Mean and biased variance of every channel, `[views, channels]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Means.
    pub mean: Vec<f32>,
    /// Variances, divided by the number of pixels.
    pub variance: Vec<f32>,
    /// Neighbouring channels that share both: 1 in batch norm.
    pub group: usize,
}

impl Moments {
    /// 1 / √(variance + ε) of every channel.
    pub fn inverse_std(&self) -> Vec<f32> {
        self.variance.iter().map(|v| 1.0 / (v + EPSILON).sqrt()).collect()
    }

    /// `(scale, shift)` such that `scale · z + shift` is the normalised, scaled and shifted z.
    pub fn affine(&self, gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let channels = gamma.len();
        let inverse = self.inverse_std();
        let scale: Vec<f32> = inverse.iter().enumerate().map(|(i, s)| s * gamma[i % channels]).collect();
        let shift = scale.iter().zip(&self.mean).enumerate().map(|(i, (s, m))| beta[i % channels] - s * m);
        let shift = shift.collect();
        (scale, shift)
    }
}

/// Images that one task takes: at least 256 pixels, never of two views.
fn images_per_task(g: Geometry, views: usize) -> usize {
    256usize.div_ceil(g.pixels().max(1)).min(g.images / views).max(1)
}

/// The image ranges of the tasks, each with its view. Depends on shapes alone, so sums do too.
fn tasks(g: Geometry, views: usize) -> Vec<(usize, std::ops::Range<usize>)> {
    assert!(views > 0 && g.images.is_multiple_of(views), "every view has as many images");
    let per_view = g.images / views;
    let step = images_per_task(g, views);
    let of_view = |view: usize| {
        (0..per_view)
            .step_by(step)
            .map(move |i| (view, view * per_view + i..view * per_view + (i + step).min(per_view)))
    };
    (0..views).flat_map(of_view).collect()
}

/// Calls `$body` with the start of every row of `$images` in geometry `$g`.
macro_rules! for_rows {
    ($g:expr, $images:expr, |$image:ident, $y:ident| $body:block) => {
        for $image in $images {
            for $y in 0..$g.height {
                $body
            }
        }
    };
}

fn row_start(g: Geometry, image: usize, y: usize) -> usize {
    g.origin() + image * g.image_stride() + y * g.row_stride()
}

/// Mean and variance of every channel for each view, by Chan's merging of blocks.
pub fn moments(z: Maps, views: usize) -> Moments {
    let channels = z.at.channels;
    assert_eq!(z.at.len(), z.data.len());
    let parts: Vec<_> = tasks(z.at, views)
        .into_par_iter()
        .map(|(view, images)| {
            let pixels = (images.len() * z.at.pixels()) as f64;
            let (mut sum, mut square) = (vec![0f32; channels], vec![0f32; channels]);
            dispatch(Sum { z, images: images.clone(), sum: &mut sum });
            sum.iter_mut().for_each(|s| *s /= pixels as f32);
            dispatch(Deviation { z, images, mean: &sum, square: &mut square });
            (view, pixels, sum, square)
        })
        .collect();
    let mut mean = vec![0f64; views * channels];
    let mut square = vec![0f64; views * channels];
    let mut count = vec![0f64; views];
    for (view, pixels, part_mean, part_square) in parts {
        let total = count[view] + pixels;
        for c in 0..channels {
            let i = view * channels + c;
            let delta = f64::from(part_mean[c]) - mean[i];
            mean[i] += delta * pixels / total;
            square[i] += f64::from(part_square[c]) + delta * delta * count[view] * pixels / total;
        }
        count[view] = total;
    }
    let variance = square.iter().enumerate().map(|(i, s)| (s / count[i / channels]) as f32).collect();
    Moments { mean: mean.into_iter().map(|m| m as f32).collect(), variance, group: 1 }
}

/// Mean and variance of every image's groups of `group` neighbouring channels.
///
/// # Panics
/// If `group` does not divide the channels.
pub fn group_moments(z: Maps, group: usize) -> Moments {
    assert!(group > 0 && z.at.channels.is_multiple_of(group));
    let mut moments = moments(z, z.at.images);
    let groups = moments.mean.chunks_exact_mut(group).zip(moments.variance.chunks_exact_mut(group));
    for (means, variances) in groups {
        let share = 1.0 / group as f64;
        let mean = means.iter().map(|m| f64::from(*m)).sum::<f64>() * share;
        let own = means.iter().zip(&*variances);
        let variance = own.map(|(m, v)| f64::from(*v) + (f64::from(*m) - mean).powi(2)).sum::<f64>() * share;
        means.fill(mean as f32);
        variances.fill(variance as f32);
    }
    Moments { group, ..moments }
}

struct Sum<'a> {
    z: Maps<'a>,
    images: std::ops::Range<usize>,
    sum: &'a mut [f32],
}

impl Kernel for Sum<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (g, c) = (self.z.at, self.z.at.channels);
        for_rows!(g, self.images, |image, y| {
            let start = row_start(g, image, y);
            for pixel in self.z.data[start..start + g.width * c].chunks_exact(c) {
                for (s, v) in self.sum.iter_mut().zip(pixel) {
                    *s += v;
                }
            }
        });
    }
}

struct Deviation<'a> {
    z: Maps<'a>,
    images: std::ops::Range<usize>,
    mean: &'a [f32],
    square: &'a mut [f32],
}

impl Kernel for Deviation<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (g, c) = (self.z.at, self.z.at.channels);
        for_rows!(g, self.images, |image, y| {
            let start = row_start(g, image, y);
            for pixel in self.z.data[start..start + g.width * c].chunks_exact(c) {
                for ((s, v), m) in self.square.iter_mut().zip(pixel).zip(self.mean) {
                    *s += (v - m) * (v - m);
                }
            }
        });
    }
}

/// A pointer that the tasks of one sweep share; each writes its own images.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: the sweeps hand each thread its own images.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}
impl Shared {
    /// The row of `g` at (image, y).
    ///
    /// # Safety
    /// The pointer is to `g.len()` values and no other thread has that image.
    unsafe fn row<'a>(self, g: Geometry, image: usize, y: usize) -> &'a mut [f32] {
        // SAFETY: within the map, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(row_start(g, image, y)), g.width * g.channels) }
    }
}

fn same_maps(a: Geometry, b: Geometry) -> bool {
    a.with_pad(0) == b.with_pad(0)
}

/// `y = scale · z + shift (+ residual)`, then ReLU if asked; the border of `y` stays as it is.
///
/// `scale` and `shift` are `[views, channels]`.
pub fn apply(
    z: Maps,
    (scale, shift): (&[f32], &[f32]),
    residual: Option<Maps>,
    relu: bool,
    yg: Geometry,
    y: &mut [f32],
) {
    assert!(same_maps(z.at, yg) && yg.len() == y.len() && z.at.len() == z.data.len());
    assert!(residual.is_none_or(|r| same_maps(r.at, yg) && r.at.len() == r.data.len()));
    let views = scale.len() / z.at.channels;
    let out = Shared(y.as_mut_ptr());
    tasks(z.at, views).into_par_iter().for_each(|(view, images)| {
        let c = view * z.at.channels..(view + 1) * z.at.channels;
        dispatch(Apply { z, scale: &scale[c.clone()], shift: &shift[c], residual, relu, images, yg, out });
    });
}

struct Apply<'a> {
    z: Maps<'a>,
    scale: &'a [f32],
    shift: &'a [f32],
    residual: Option<Maps<'a>>,
    relu: bool,
    images: std::ops::Range<usize>,
    yg: Geometry,
    out: Shared,
}

impl Kernel for Apply<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (g, c) = (self.z.at, self.z.at.channels);
        let floor = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        for_rows!(g, self.images.clone(), |image, y| {
            // SAFETY: `apply` checked the sizes; images are this task's own.
            let out = unsafe { self.out.row(self.yg, image, y) };
            let z = &self.z.data[row_start(g, image, y)..][..out.len()];
            if let Some(r) = self.residual {
                let r = &r.data[row_start(r.at, image, y)..][..out.len()];
                for ((o, z), r) in out.chunks_exact_mut(c).zip(z.chunks_exact(c)).zip(r.chunks_exact(c)) {
                    for ((((o, z), r), a), b) in o.iter_mut().zip(z).zip(r).zip(self.scale).zip(self.shift) {
                        *o = (a * z + b + r).max(floor);
                    }
                }
            } else {
                for (o, z) in out.chunks_exact_mut(c).zip(z.chunks_exact(c)) {
                    for (((o, z), a), b) in o.iter_mut().zip(z).zip(self.scale).zip(self.shift) {
                        *o = (a * z + b).max(floor);
                    }
                }
            }
        });
    }
}

/// What [`backward`] gives beside the gradient of its input: `[channels]` each, summed over views.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterGradients {
    /// Of the scale.
    pub gamma: Vec<f32>,
    /// Of the shift.
    pub beta: Vec<f32>,
}

/// Backward through ReLU, addition and normalisation.
///
/// `dy` (any border) is the gradient of the output; where `y` is given the output went through a
/// ReLU, and `dy` is masked in place, after which it is the gradient of the residual too. `dz` is
/// overwritten; its border stays as it is.
pub fn backward(
    z: Maps,
    moments: &Moments,
    gamma: &[f32],
    y: Option<Maps>,
    (dyg, dy): (Geometry, &mut [f32]),
    (dzg, dz): (Geometry, &mut [f32]),
) -> ParameterGradients {
    let channels = z.at.channels;
    assert!(same_maps(z.at, dyg) && same_maps(z.at, dzg) && dyg.len() == dy.len() && dzg.len() == dz.len());
    assert!(y.is_none_or(|y| same_maps(y.at, z.at) && y.at.len() == y.data.len()));
    let views = moments.mean.len() / channels;
    let inverse = moments.inverse_std();
    let all = tasks(z.at, views);
    let shared = Shared(dy.as_mut_ptr());
    let parts: Vec<_> = all
        .par_iter()
        .map(|(view, images)| {
            let (mut sum, mut dot) = (vec![0f32; channels], vec![0f32; channels]);
            let mean = &moments.mean[view * channels..][..channels];
            let images = images.clone();
            dispatch(Reduce { z, mean, y, images, dyg, dy: shared, sum: &mut sum, dot: &mut dot });
            (*view, sum, dot)
        })
        .collect();
    let mut sums = vec![0f64; views * channels];
    let mut dots = vec![0f64; views * channels];
    for (view, sum, dot) in parts {
        for c in 0..channels {
            let i = view * channels + c;
            sums[i] += f64::from(sum[c]);
            dots[i] += f64::from(dot[c]) * f64::from(inverse[i]);
        }
    }
    // With ĝ = γ·g: dz = (ĝ − mean(ĝ) − x̂ · mean(ĝ·x̂)) / σ, as one affine map of g and z.
    let pixels = (z.at.images / views * z.at.pixels() * moments.group) as f64;
    let mut coefficients = vec![[0f32; 3]; views * channels];
    for (n, group) in coefficients.chunks_exact_mut(moments.group).enumerate() {
        let own = || n * moments.group..(n + 1) * moments.group;
        let gamma = |i: usize| f64::from(gamma[i % channels]);
        let sum = own().map(|i| gamma(i) * sums[i]).sum::<f64>() / pixels;
        let dot = own().map(|i| gamma(i) * dots[i]).sum::<f64>() / pixels;
        for (i, k) in own().zip(group) {
            let inverse = f64::from(inverse[i]);
            let slope = -inverse * inverse * dot;
            let shift = -inverse * sum - slope * f64::from(moments.mean[i]);
            *k = [(gamma(i) * inverse) as f32, slope as f32, shift as f32];
        }
    }
    let columns = |k: usize| coefficients.iter().map(|c| c[k]).collect::<Vec<f32>>();
    let (scale, slope, shift) = (columns(0), columns(1), columns(2));
    let (dy, out) = (Maps { at: dyg, data: dy }, Shared(dz.as_mut_ptr()));
    all.into_par_iter().for_each(|(view, images)| {
        let c = view * channels..(view + 1) * channels;
        let (scale, slope, shift) = (&scale[c.clone()], &slope[c.clone()], &shift[c]);
        dispatch(Spread { z, dy, scale, slope, shift, images, dzg, out });
    });
    let total = |of: &[f64]| {
        (0..channels).map(|c| (0..views).map(|v| of[v * channels + c]).sum::<f64>() as f32).collect()
    };
    ParameterGradients { gamma: total(&dots), beta: total(&sums) }
}

struct Reduce<'a> {
    z: Maps<'a>,
    mean: &'a [f32],
    y: Option<Maps<'a>>,
    images: std::ops::Range<usize>,
    dyg: Geometry,
    dy: Shared,
    sum: &'a mut [f32],
    dot: &'a mut [f32],
}

impl Kernel for Reduce<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (g, c) = (self.z.at, self.z.at.channels);
        for_rows!(g, self.images.clone(), |image, row| {
            // SAFETY: `backward` checked the sizes; images are this task's own.
            let dy = unsafe { self.dy.row(self.dyg, image, row) };
            let z = &self.z.data[row_start(g, image, row)..][..dy.len()];
            if let Some(y) = self.y {
                let y = &y.data[row_start(y.at, image, row)..][..dy.len()];
                for (d, y) in dy.iter_mut().zip(y) {
                    *d = if *y > 0.0 { *d } else { 0.0 };
                }
            }
            for (d, z) in dy.chunks_exact(c).zip(z.chunks_exact(c)) {
                let sums = self.sum.iter_mut().zip(self.dot.iter_mut());
                for ((((s, t), d), z), m) in sums.zip(d).zip(z).zip(self.mean) {
                    *s += d;
                    *t += d * (z - m);
                }
            }
        });
    }
}

struct Spread<'a> {
    z: Maps<'a>,
    dy: Maps<'a>,
    scale: &'a [f32],
    slope: &'a [f32],
    shift: &'a [f32],
    images: std::ops::Range<usize>,
    dzg: Geometry,
    out: Shared,
}

impl Kernel for Spread<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (g, c) = (self.z.at, self.z.at.channels);
        for_rows!(g, self.images.clone(), |image, y| {
            // SAFETY: `backward` checked the sizes; images are this task's own.
            let out = unsafe { self.out.row(self.dzg, image, y) };
            let z = &self.z.data[row_start(g, image, y)..][..out.len()];
            let dy = &self.dy.data[row_start(self.dy.at, image, y)..][..out.len()];
            for ((o, z), d) in out.chunks_exact_mut(c).zip(z.chunks_exact(c)).zip(dy.chunks_exact(c)) {
                let values = o.iter_mut().zip(z).zip(d);
                for (((((o, z), d), a), b), s) in values.zip(self.scale).zip(self.slope).zip(self.shift) {
                    *o = a * d + b * z + s;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
