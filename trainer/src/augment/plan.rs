//! The random choices of one view, drawn before any pixel is touched.

use rand_chacha::ChaCha8Rng;

use super::config::ViewConfig;
use crate::data::random::{below, between, chance, unit};

/// A rectangle of the source picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// One colour jitter with its drawn strength.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Jitter {
    /// Adds the offset.
    Brightness(f32),
    /// Multiplies the distance to each channel's mean.
    Contrast(f32),
    /// Multiplies HSV saturation.
    Saturation(f32),
    /// Turns HSV hue.
    Hue(f32),
}

/// Everything random about one view.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewPlan {
    /// What of the picture is seen.
    pub crop: Crop,
    /// Whether left and right change places.
    pub flip: bool,
    /// Colour jitters in the order they act, if they do.
    pub jitter: Option<[Jitter; 4]>,
    /// Whether colours go.
    pub grayscale: bool,
    /// Standard deviation of the blur in pixels, if there is one.
    pub blur_sigma: Option<f32>,
    /// Whether bright values are inverted.
    pub solarize: bool,
}

impl ViewPlan {
    /// Draws a view of a picture of `height` × `width`. The draws that follow the crop are always the same number,
    /// so a changed probability leaves the other choices of a seed as they were.
    pub fn sample(config: &ViewConfig, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Self {
        let flip = chance(rng, config.flip_p);
        let jitter_acts = chance(rng, config.jitter_p);
        let jitter = sample_jitter(config, rng);
        let grayscale = chance(rng, config.grayscale_p);
        let blur_acts = chance(rng, config.blur_p);
        let sigma = between(rng, config.blur_sigma[0], config.blur_sigma[1]) as f32;
        let solarize = chance(rng, config.solarize_p);
        // Last: it may take several tries.
        let crop = sample_crop(config, height, width, rng);
        Self {
            crop,
            flip,
            jitter: jitter_acts.then_some(jitter),
            grayscale,
            blur_sigma: blur_acts.then_some(sigma),
            solarize,
        }
    }
}

fn sample_jitter(config: &ViewConfig, rng: &mut ChaCha8Rng) -> [Jitter; 4] {
    let around =
        |rng: &mut ChaCha8Rng, centre: f64, reach: f64| between(rng, centre - reach, centre + reach) as f32;
    let mut jitter = [
        Jitter::Brightness(around(rng, 0.0, config.brightness)),
        Jitter::Contrast(around(rng, 1.0, config.contrast)),
        Jitter::Saturation(around(rng, 1.0, config.saturation)),
        Jitter::Hue(around(rng, 0.0, config.hue)),
    ];
    for i in (1..jitter.len()).rev() {
        jitter.swap(i, below(rng, i + 1));
    }
    jitter
}

/// Tries before falling back to the centre, as torchvision's `RandomResizedCrop`.
const CROP_TRIES: usize = 10;

/// Area uniform, aspect log-uniform; a draw that does not fit is drawn again, and after ten the largest centred
/// rectangle of an allowed aspect is taken.
fn sample_crop(config: &ViewConfig, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Crop {
    let area = (height * width) as f64;
    let [low, high] = config.crop_aspect.map(f64::ln);
    for _ in 0..CROP_TRIES {
        let target = area * between(rng, config.crop_area[0], config.crop_area[1]);
        let aspect = between(rng, low, high).exp();
        let w = (target * aspect).sqrt().round() as usize;
        let h = (target / aspect).sqrt().round() as usize;
        let (u, v) = (unit(rng), unit(rng));
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = ((height - h + 1) as f64 * u) as usize;
            let left = ((width - w + 1) as f64 * v) as usize;
            return Crop { top, left, height: h, width: w };
        }
    }
    let aspect = (width as f64 / height as f64).clamp(config.crop_aspect[0], config.crop_aspect[1]);
    let w = ((height as f64 * aspect).round() as usize).clamp(1, width);
    let h = ((width as f64 / aspect).round() as usize).clamp(1, height);
    Crop { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Views;
    use crate::data::random::{Purpose, stream};

    const N: usize = 40_000;

    fn plans(config: &ViewConfig, h: usize, w: usize) -> Vec<ViewPlan> {
        (0..N as u64).map(|i| ViewPlan::sample(config, h, w, &mut stream(11, Purpose::View1, i, 0))).collect()
    }

    fn share(plans: &[ViewPlan], test: impl Fn(&ViewPlan) -> bool) -> f64 {
        plans.iter().filter(|p| test(p)).count() as f64 / plans.len() as f64
    }

    #[test]
    fn probabilities_are_those_of_table_6() {
        let Views { t1, t2 } = Views::byol();
        for (config, blur, solarize) in [(t1, 1.0, 0.0), (t2, 0.1, 0.2)] {
            let drawn = plans(&config, 256, 256);
            assert!((share(&drawn, |p| p.flip) - 0.5).abs() < 0.01);
            assert!((share(&drawn, |p| p.jitter.is_some()) - 0.8).abs() < 0.01);
            assert!((share(&drawn, |p| p.grayscale) - 0.2).abs() < 0.01);
            assert!((share(&drawn, |p| p.blur_sigma.is_some()) - blur).abs() < 0.01);
            assert!((share(&drawn, |p| p.solarize) - solarize).abs() < 0.01);
        }
    }

    #[test]
    fn jitter_strengths_are_uniform_and_orders_equally_likely() {
        let drawn = plans(&ViewConfig::byol_t1(), 64, 64);
        let mut orders = std::collections::BTreeMap::new();
        let (mut low, mut high, mut sum, mut n) = (f32::MAX, f32::MIN, 0.0, 0);
        for jitter in drawn.iter().filter_map(|p| p.jitter) {
            let mut order = Vec::new();
            for j in jitter {
                order.push(match j {
                    Jitter::Brightness(b) => {
                        assert!(b.abs() <= 0.4);
                        'b'
                    }
                    Jitter::Contrast(c) => {
                        (low, high, sum, n) = (low.min(c), high.max(c), sum + f64::from(c), n + 1);
                        'c'
                    }
                    Jitter::Saturation(s) => {
                        assert!((0.8..=1.2).contains(&s));
                        's'
                    }
                    Jitter::Hue(h) => {
                        assert!(h.abs() <= 0.1);
                        'h'
                    }
                });
            }
            *orders.entry(order).or_insert(0usize) += 1;
        }
        assert!(low < 0.605 && high > 1.395 && (sum / f64::from(n) - 1.0).abs() < 0.005);
        assert_eq!(orders.len(), 24);
        let expected = n as f64 / 24.0;
        for (order, count) in orders {
            assert!((count as f64 / expected - 1.0).abs() < 0.15, "{order:?}: {count} of {n}");
        }
    }

    #[test]
    fn crops_fit_and_their_areas_and_aspects_are_distributed_as_asked() {
        let config = ViewConfig::byol_t1();
        let drawn = plans(&config, 500, 500);
        let mut areas: Vec<f64> = Vec::new();
        let mut log_aspect = 0.0;
        for Crop { top, left, height, width } in drawn.iter().map(|p| p.crop) {
            assert!(height >= 1 && width >= 1 && top + height <= 500 && left + width <= 500);
            areas.push((height * width) as f64 / 250_000.0);
            log_aspect += (width as f64 / height as f64).ln();
        }
        areas.sort_by(f64::total_cmp);
        assert!(areas[0] >= 0.079 && areas[N - 1] <= 1.0);
        // Uniform where every aspect fits (area below 3/4), thinner above by rejection.
        let quantile = |x: f64| areas.partition_point(|&a| a < x) as f64 / N as f64;
        let below_half = quantile(0.5);
        assert!((quantile(0.29) / below_half - 0.5).abs() < 0.02, "{}", quantile(0.29));
        assert!((log_aspect / N as f64).abs() < 0.005);
    }

    #[test]
    fn narrow_pictures_fall_back_to_the_centre() {
        let config = ViewConfig { crop_area: [0.9, 1.0], ..ViewConfig::byol_t1() };
        let plan = ViewPlan::sample(&config, 10, 1000, &mut stream(0, Purpose::View1, 0, 0));
        assert_eq!(plan.crop.height, 10);
        assert_eq!(plan.crop.width, 13);
        assert_eq!(plan.crop.left, 493);
        let one = ViewPlan::sample(&config, 1, 1, &mut stream(0, Purpose::View1, 0, 0));
        assert_eq!((one.crop.height, one.crop.width), (1, 1));
    }

    #[test]
    fn whole_picture_when_asked() {
        let plan = ViewPlan::sample(&ViewConfig::identity(), 32, 32, &mut stream(5, Purpose::View1, 0, 0));
        // An aspect other than 1 cannot cover the whole square, so the fallback takes all of it.
        assert_eq!(plan.crop, Crop { top: 0, left: 0, height: 32, width: 32 });
    }
}
