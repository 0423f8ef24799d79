//! From a picture and the random choices to one normalised view.

use rand_chacha::ChaCha8Rng;

use super::blur::{BlurScratch, blur, radius};
use super::colour;
use super::config::ViewConfig;
use super::plan::{Jitter, ViewPlan};
use super::resample::{ResampleScratch, crop_resize};
use crate::data::PictureRef;

/// Buffers that a renderer reuses, so that a view allocates nothing once they have grown.
#[derive(Debug, Default)]
pub struct Scratch {
    planes: Vec<f32>,
    resample: ResampleScratch,
    blur: BlurScratch,
}

/// Draws and renders one view of `picture` into `out`: `[size, size, 3]`, `(value - mean) / std` per channel.
///
/// # Panics
/// When `out` is not `size * size * 3` long; the caller owns both.
#[allow(clippy::too_many_arguments)]
pub fn render(
    config: &ViewConfig,
    picture: PictureRef<'_>,
    size: usize,
    mean: [f32; 3],
    std: [f32; 3],
    rng: &mut ChaCha8Rng,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let plan = ViewPlan::sample(config, picture.height, picture.width, rng);
    render_plan(config, &plan, picture, size, mean, std, scratch, out);
}

/// Renders the view that `plan` describes; see [`render`].
///
/// # Panics
/// When `out` is not `size * size * 3` long.
#[allow(clippy::too_many_arguments)]
pub fn render_plan(
    config: &ViewConfig,
    plan: &ViewPlan,
    picture: PictureRef<'_>,
    size: usize,
    mean: [f32; 3],
    std: [f32; 3],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    assert_eq!(out.len(), size * size * 3, "a view of {size} needs {} floats", size * size * 3);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which was just asked.
        unsafe { body_avx2(config, plan, picture, size, mean, std, scratch, out) };
        return;
    }
    body(config, plan, picture, size, mean, std, scratch, out);
}

/// The same code compiled for wider registers. AVX2 alone fuses no multiplication with an addition, so the results
/// are bit for bit those of the plain version.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[allow(clippy::too_many_arguments)]
fn body_avx2(
    config: &ViewConfig,
    plan: &ViewPlan,
    picture: PictureRef<'_>,
    size: usize,
    mean: [f32; 3],
    std: [f32; 3],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    body(config, plan, picture, size, mean, std, scratch, out);
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn body(
    config: &ViewConfig,
    plan: &ViewPlan,
    picture: PictureRef<'_>,
    size: usize,
    mean: [f32; 3],
    std: [f32; 3],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let Scratch { planes, resample, blur: blur_scratch } = scratch;
    planes.resize(size * size * 3, 0.0);
    let (red, rest) = planes.split_at_mut(size * size);
    let (green, blue) = rest.split_at_mut(size * size);
    crop_resize(picture, plan.crop, plan.flip, size, resample, [red, green, blue]);
    for jitter in plan.jitter.iter().flatten() {
        match *jitter {
            Jitter::Brightness(delta) => colour::brightness([red, green, blue], delta),
            Jitter::Contrast(factor) => colour::contrast([red, green, blue], factor),
            Jitter::Saturation(factor) => colour::saturation([red, green, blue], factor),
            Jitter::Hue(delta) => colour::hue([red, green, blue], delta),
        }
    }
    if plan.grayscale {
        colour::grayscale([red, green, blue]);
    }
    if let Some(sigma) = plan.blur_sigma {
        let reach = radius(size, config.blur_kernel);
        for plane in [&mut *red, &mut *green, &mut *blue] {
            blur(plane, size, sigma, reach, blur_scratch);
        }
    }
    if plan.solarize {
        colour::solarize([red, green, blue], config.solarize_threshold as f32);
    }
    let scale = std.map(|s| 1.0 / s);
    let (pixels, _) = out.as_chunks_mut::<3>();
    for (((pixel, r), g), b) in pixels.iter_mut().zip(red.iter()).zip(green.iter()).zip(blue.iter()) {
        *pixel = [(r - mean[0]) * scale[0], (g - mean[1]) * scale[1], (b - mean[2]) * scale[2]];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Views;
    use crate::data::random::{Purpose, stream, unit};

    fn picture(h: usize, w: usize) -> Vec<u8> {
        let mut rng = stream(9, Purpose::Split, 0, 0);
        (0..h * w * 3).map(|_| (unit(&mut rng) * 256.0) as u8).collect()
    }

    const PLAIN: ([f32; 3], [f32; 3]) = ([0.0; 3], [1.0; 3]);

    #[test]
    fn identity_view_is_the_normalised_picture() {
        let rgb = picture(16, 16);
        let source = PictureRef::new(16, 16, &rgb).unwrap();
        let (mean, std) = ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]);
        let mut out = vec![0.0; 16 * 16 * 3];
        let mut rng = stream(0, Purpose::View1, 0, 0);
        let config = ViewConfig::identity();
        render(&config, source, 16, mean, std, &mut rng, &mut Scratch::default(), &mut out);
        for (i, v) in out.iter().enumerate() {
            let want = (f32::from(rgb[i]) / 255.0 - mean[i % 3]) / std[i % 3];
            assert!((v - want).abs() < 1e-5, "{i}: {v} {want}");
        }
    }

    #[test]
    fn views_stay_in_range_and_depend_on_the_seed_alone() {
        for (h, w, size) in [(32, 32, 32), (40, 61, 48), (3, 200, 24), (1, 1, 8)] {
            let rgb = picture(h, w);
            let source = PictureRef::new(h, w, &rgb).unwrap();
            let mut scratch = Scratch::default();
            let mut out = vec![0.0; size * size * 3];
            let mut again = out.clone();
            for config in [Views::byol().t1, Views::byol().t2, Views::small().t2] {
                for i in 0..60 {
                    let rng = || stream(1, Purpose::View1, i, 0);
                    render(&config, source, size, PLAIN.0, PLAIN.1, &mut rng(), &mut scratch, &mut out);
                    assert!(out.iter().all(|v| (0.0..=1.0).contains(v)), "{i}");
                    render(
                        &config,
                        source,
                        size,
                        PLAIN.0,
                        PLAIN.1,
                        &mut rng(),
                        &mut Scratch::default(),
                        &mut again,
                    );
                    assert_eq!(out, again);
                }
            }
        }
    }

    #[test]
    fn wide_and_plain_code_agree_bit_for_bit() {
        let rgb = picture(50, 40);
        let source = PictureRef::new(50, 40, &rgb).unwrap();
        let config = Views::byol().t1;
        let (mut a, mut b) = (vec![0.0; 32 * 32 * 3], vec![0.0; 32 * 32 * 3]);
        for i in 0..40 {
            let plan = ViewPlan::sample(&config, 50, 40, &mut stream(2, Purpose::View1, i, 0));
            render_plan(&config, &plan, source, 32, PLAIN.0, PLAIN.1, &mut Scratch::default(), &mut a);
            body(&config, &plan, source, 32, PLAIN.0, PLAIN.1, &mut Scratch::default(), &mut b);
            assert_eq!(a, b);
        }
    }

    #[test]
    #[ignore = "prints timings: cargo test --release -p latentd-trainer views_take -- --ignored --nocapture"]
    fn views_take_microseconds() {
        for (source_size, size, views) in
            [(32, 32, Views::small()), (32, 32, Views::byol()), (256, 224, Views::byol())]
        {
            let rgb = picture(source_size, source_size);
            let source = PictureRef::new(source_size, source_size, &rgb).unwrap();
            let mut out = vec![0.0; size * size * 3];
            let mut scratch = Scratch::default();
            for (name, config) in [("T", &views.t1), ("T'", &views.t2)] {
                let count = if size > 100 { 300 } else { 10_000 };
                let started = std::time::Instant::now();
                for i in 0..count {
                    let mut rng = stream(1, Purpose::View1, i, 0);
                    render(config, source, size, PLAIN.0, PLAIN.1, &mut rng, &mut scratch, &mut out);
                }
                let micros = started.elapsed().as_secs_f64() * 1e6 / count as f64;
                println!("{source_size} -> {size}, {name}, blur {}: {micros:.1} µs per view", config.blur_p);
            }
        }
    }
}
