//! Colour: an embedded ICC profile applied, so that the numbers are sRGB.

use std::cell::RefCell;
use std::sync::Arc;

use moxcms::{
    ColorProfile, DataColorSpace, Layout, ParsingOptions, RenderingIntent, Transform8BitExecutor,
    TransformOptions,
};

use crate::digest::sha256;

/// Largest profile that is looked at, in bytes; those of displays and cameras are some hundreds to some thousands.
pub(super) const MAX_PROFILE: usize = 1 << 20;

/// Transforms kept by each thread: a collection of pictures has few profiles, and most files one of them.
const KEPT: usize = 4;

/// Colours on each axis of the test for a transform that changes nothing.
const GRID: usize = 9;

/// A transform of RGB, or of grey that stands in all three channels; none for sRGB itself and for profiles that say
/// nothing about RGB or grey.
#[derive(Clone)]
enum Transform {
    None,
    Rgb(Arc<Transform8BitExecutor>),
    Grey(Arc<Transform8BitExecutor>),
}

thread_local! {
    static TRANSFORMS: RefCell<Vec<([u8; 32], Transform)>> = const { RefCell::new(Vec::new()) };
}

/// Brings `rgb` to sRGB, all of it grey or not. A profile that is broken, too large, or for another kind of colours
/// changes nothing, as browsers do.
pub(super) fn to_srgb(rgb: &mut Vec<u8>, profile: &[u8], grey: bool) {
    if profile.is_empty() || profile.len() > MAX_PROFILE {
        return;
    }
    let done = match transform_of(profile) {
        Transform::Grey(_) if !grey => None,
        Transform::None => None,
        Transform::Rgb(transform) => {
            let mut out = vec![0u8; rgb.len()];
            transform.transform(rgb, &mut out).ok().map(|()| out)
        }
        Transform::Grey(transform) => {
            let grey: Vec<u8> = rgb.iter().step_by(3).copied().collect();
            let mut out = vec![0u8; rgb.len()];
            transform.transform(&grey, &mut out).ok().map(|()| out)
        }
    };
    if let Some(done) = done {
        *rgb = done;
    }
}

fn transform_of(profile: &[u8]) -> Transform {
    let key = sha256(profile);
    TRANSFORMS.with_borrow_mut(|kept| {
        if let Some(place) = kept.iter().position(|(known, _)| *known == key) {
            // The latest comes first, so that the last is the one to go.
            kept[..=place].rotate_right(1);
            return kept[0].1.clone();
        }
        // What a stranger's profile makes panic is treated as a broken one.
        let made = std::panic::catch_unwind(|| make(profile)).ok().flatten().unwrap_or(Transform::None);
        kept.truncate(KEPT - 1);
        kept.insert(0, (key, made.clone()));
        made
    })
}

fn make(profile: &[u8]) -> Option<Transform> {
    let limits = ParsingOptions { max_profile_size: MAX_PROFILE + 1, ..ParsingOptions::default() };
    let source = ColorProfile::new_from_slice_with_options(profile, limits).ok()?;
    let layout = match source.color_space {
        DataColorSpace::Rgb => Layout::Rgb,
        DataColorSpace::Gray => Layout::Gray,
        _ => return None,
    };
    let options = TransformOptions {
        rendering_intent: RenderingIntent::RelativeColorimetric,
        ..TransformOptions::default()
    };
    let transform =
        source.create_transform_8bit(layout, &ColorProfile::new_srgb(), Layout::Rgb, options).ok()?;
    Some(match layout {
        _ if changes_nothing(&*transform, layout) => Transform::None,
        Layout::Gray => Transform::Grey(transform),
        _ => Transform::Rgb(transform),
    })
}

/// Whether colours stay what they are within one of 255: sRGB under any of its many profiles.
fn changes_nothing(transform: &Transform8BitExecutor, layout: Layout) -> bool {
    let step = |i: usize| (i * 255 / (GRID - 1)) as u8;
    let grey = layout == Layout::Gray;
    let colours: Vec<u8> = if grey {
        (0..=255).collect()
    } else {
        (0..GRID.pow(3))
            .flat_map(|i| [step(i % GRID), step(i / GRID % GRID), step(i / GRID.pow(2))])
            .collect()
    };
    let mut out = vec![0u8; if grey { colours.len() * 3 } else { colours.len() }];
    let expected: Vec<u8> =
        if grey { colours.iter().flat_map(|&v| [v; 3]).collect() } else { colours.clone() };
    let close = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
    transform.transform(&colours, &mut out).is_ok() && out.iter().zip(&expected).all(close)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn converted(profile: &ColorProfile, rgb: [u8; 3]) -> Vec<u8> {
        let mut data = rgb.to_vec();
        to_srgb(&mut data, &profile.encode().unwrap(), rgb[0] == rgb[1] && rgb[1] == rgb[2]);
        data
    }

    #[test]
    fn display_p3_becomes_srgb_and_srgb_stays() {
        // (200, 30, 40) of sRGB is (184, 50, 49) in Display P3, by the matrices of both (CSS Color 4).
        let found = converted(&ColorProfile::new_display_p3(), [184, 50, 49]);
        assert!(found.iter().zip([200u8, 30, 40]).all(|(a, b)| a.abs_diff(b) <= 2), "{found:?}");
        assert_eq!(converted(&ColorProfile::new_srgb(), [200, 30, 40]), [200, 30, 40]);
        assert!(matches!(transform_of(&ColorProfile::new_srgb().encode().unwrap()), Transform::None));
    }

    #[test]
    fn grey_of_another_gamma_becomes_srgb() {
        let linear = ColorProfile::new_gray_with_gamma(1.0);
        let found = converted(&linear, [55; 3]);
        // 55/255 of the light is 129 in sRGB.
        assert!(found.iter().all(|v| v.abs_diff(129) <= 2), "{found:?}");
        // Of a picture in colour it says nothing.
        assert_eq!(converted(&linear, [200, 30, 40]), [200, 30, 40]);
    }

    #[test]
    fn what_is_no_profile_changes_nothing() {
        let profile = ColorProfile::new_display_p3().encode().unwrap();
        for broken in [&b""[..], b"no profile", &profile[..profile.len() / 2], &vec![7; MAX_PROFILE + 1]] {
            let mut data = vec![184, 50, 49];
            to_srgb(&mut data, broken, false);
            assert_eq!(data, [184, 50, 49]);
        }
        // Other profiles that many files in a row have push out the first, which is made again.
        for gamma in 0..2 * KEPT {
            converted(&ColorProfile::new_gray_with_gamma(1.0 + gamma as f32 / 10.0), [9; 3]);
        }
        assert_eq!(TRANSFORMS.with_borrow(Vec::len), KEPT);
        assert_ne!(converted(&ColorProfile::new_display_p3(), [184, 50, 49]), [184, 50, 49]);
    }
}
