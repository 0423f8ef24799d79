//! Tests of preprocess, some of them against Pillow.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn gradient(height: u32, width: u32) -> Pixels {
    let pixel = |y: u32, x: u32| [(x * 255 / width) as u8, (y * 255 / height) as u8, ((x ^ y) & 255) as u8];
    let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(y, x))).collect();
    Pixels::new(height, width, data).unwrap()
}

fn policy() -> impl Strategy<Value = Preprocess> {
    let policies = [ResizePolicy::Squash, ResizePolicy::ShortestEdgeCenterCrop, ResizePolicy::FitPad];
    let filters = [Filter::Bilinear, Filter::Bicubic];
    (
        prop::sample::select(policies.to_vec()),
        prop::sample::select(filters.to_vec()),
        1u32..40,
        1u32..40,
        0u32..8,
    )
        .prop_map(|(policy, filter, height, width, more)| Preprocess {
            policy,
            height,
            width,
            filter,
            resize_shortest: (policy == ResizePolicy::ShortestEdgeCenterCrop)
                .then(|| height.max(width) + more),
            background: [1, 2, 3],
            decoding: Decoding::default(),
        })
}

proptest! {
    #[test]
    fn always_gives_exactly_the_size(preprocess in policy(), height in 1u32..300, width in 1u32..300) {
        let out = preprocess.apply(&gradient(height, width)).unwrap();
        prop_assert_eq!((out.height(), out.width()), (preprocess.height, preprocess.width));
    }

    #[test]
    fn one_colour_stays_that_colour(mut preprocess in policy(), height in 1u32..80, width in 1u32..80, colour: [u8; 3]) {
        preprocess.background = colour;
        let picture = Pixels::new(height, width, colour.repeat((height * width) as usize)).unwrap();
        let out = preprocess.apply(&picture).unwrap();
        prop_assert!(out.as_bytes().chunks(3).all(|pixel| pixel == colour));
    }
}

proptest! {
    #[test]
    fn what_is_cut_off_need_not_be_made(
        filter in prop::sample::select(vec![Filter::Bilinear, Filter::Bicubic]),
        (side, more) in (1u32..40, 0u32..8),
        (height, width) in (1u32..300, 1u32..300),
    ) {
        let cut = Preprocess {
            policy: ResizePolicy::ShortestEdgeCenterCrop,
            resize_shortest: Some(side + more),
            ..Preprocess::squash(side, side, filter)
        };
        let picture = gradient(height, width);
        prop_assume!(height.max(width) <= height.min(width) * MAX_ASPECT);
        let (whole_height, whole_width) = cut.resized(height, width);
        let whole = Preprocess::squash(whole_height, whole_width, filter).apply(&picture).unwrap();
        let (found, expected) = (cut.apply(&picture).unwrap(), crop(&whole, side, side).unwrap());
        prop_assert_eq!((found.height(), found.width()), (side, side));
        // The resampler's weights are integers, of more bits where no pixel lies at the picture's edge.
        let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 2;
        prop_assert!(found.as_bytes().iter().zip(expected.as_bytes()).all(near));
    }
}

#[test]
fn a_picture_of_the_right_size_is_unchanged() {
    let picture = gradient(24, 32);
    let mut preprocess = Preprocess::squash(24, 32, Filter::Bicubic);
    assert_eq!(preprocess.apply(&picture).unwrap(), picture);
    preprocess.policy = ResizePolicy::FitPad;
    assert_eq!(preprocess.apply(&picture).unwrap(), picture);
    let square = gradient(32, 32);
    let mut cut = Preprocess::squash(32, 32, Filter::Bilinear);
    cut.policy = ResizePolicy::ShortestEdgeCenterCrop;
    cut.resize_shortest = Some(32);
    assert_eq!(cut.apply(&square).unwrap(), square);
}

#[test]
fn an_extreme_strip_is_bounded() {
    let mut preprocess = Preprocess::squash(224, 224, Filter::Bicubic);
    preprocess.policy = ResizePolicy::ShortestEdgeCenterCrop;
    preprocess.resize_shortest = Some(256);
    let start = std::time::Instant::now();
    preprocess.apply(&gradient(1, 60_000)).unwrap();
    preprocess.apply(&gradient(60_000, 1)).unwrap();
    assert!(start.elapsed().as_secs() < 5);
}

#[test]
fn pads_with_the_background() {
    let mut preprocess = Preprocess::squash(4, 4, Filter::Bilinear);
    preprocess.policy = ResizePolicy::FitPad;
    preprocess.background = [9, 8, 7];
    let black = Pixels::new(2, 4, vec![0; 24]).unwrap();
    let out = preprocess.apply(&black).unwrap();
    let bar = [9u8, 8, 7].repeat(4);
    assert_eq!(out.as_bytes(), [&bar[..], &[0; 24], &bar[..]].concat());
}

#[test]
fn contradictions_are_refused() {
    let good = Preprocess::squash(8, 8, Filter::Bilinear);
    let cut = |shortest| Preprocess {
        policy: ResizePolicy::ShortestEdgeCenterCrop,
        resize_shortest: shortest,
        ..good.clone()
    };
    assert!(cut(Some(8)).validate().is_ok());
    for bad in [
        Preprocess { height: 0, ..good.clone() },
        Preprocess { width: 5000, ..good.clone() },
        Preprocess { resize_shortest: Some(8), ..good.clone() },
        cut(None),
        cut(Some(7)),
        cut(Some(u32::MAX)),
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
        assert!(bad.apply(&gradient(3, 3)).is_err());
    }
}

#[test]
fn json_is_strict() {
    let text = r#"{"policy":"shortest_edge_center_crop","height":224,"width":224,"resize_shortest":256,"filter":"bicubic","background":[0,0,0]}"#;
    let preprocess: Preprocess = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&preprocess).unwrap(), text);
    let decoding = text.replace('}', r#","decoding":{"reducing_gap":2,"colour":"srgb"}}"#);
    let preprocess: Preprocess = serde_json::from_str(&decoding).unwrap();
    assert_eq!(preprocess.decoding, Decoding::NEW);
    assert_eq!(serde_json::to_string(&preprocess).unwrap(), decoding);
    preprocess.validate().unwrap();
    let none: Preprocess = serde_json::from_str(&decoding.replace("gap\":2", "gap\":0")).unwrap();
    assert!(none.validate().unwrap_err().to_string().contains("reducing_gap is 0"));
    let typo = text.replace("filter", "fitler");
    assert!(serde_json::from_str::<Preprocess>(&typo).is_err());
}

#[derive(Deserialize)]
struct Case {
    file: String,
    preprocess: Preprocess,
}

/// Figures of the references in tests/fixtures/pillow, made by make.py there.
#[test]
fn equals_pillow() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pillow");
    let read = |name: &str| {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        crate::decode::decode(&bytes, &crate::decode::DecodeLimits::default()).unwrap()
    };
    let cases = std::fs::read(folder.join("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    assert_eq!(cases.len(), 18);
    let source = read("source.png");
    for Case { file, preprocess } in cases {
        let (ours, pillow) = (preprocess.apply(&source).unwrap(), read(&file));
        assert_eq!((ours.height(), ours.width()), (pillow.height(), pillow.width()), "{file}");
        let pairs = ours.as_bytes().iter().zip(pillow.as_bytes());
        let differences: Vec<u32> = pairs.map(|(a, b)| u32::from(a.abs_diff(*b))).collect();
        let mean = f64::from(differences.iter().sum::<u32>()) / differences.len() as f64;
        let largest = differences.iter().max().copied().unwrap();
        println!("{file}: mean {mean:.3}, largest {largest}");
        // Pillow rounds between the two passes with another precision.
        let allowed = if preprocess.filter == Filter::Bilinear { 1 } else { 8 };
        assert!(mean < 0.3 && largest <= allowed, "{file}: mean {mean:.3}, largest {largest}");
    }
}

mod scaled {
    use std::path::{Path, PathBuf};

    use image::codecs::jpeg::JpegEncoder;
    use image::{ImageBuffer, ImageEncoder, Rgb};

    use super::*;
    use crate::decode::decode_as;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
    }

    fn example(name: &str) -> Vec<u8> {
        std::fs::read(root().join("../examples").join(name)).unwrap()
    }

    /// Mean and largest difference of two pictures of one size.
    fn difference(a: &Pixels, b: &Pixels) -> (f64, u8) {
        assert_eq!((a.height(), a.width()), (b.height(), b.width()));
        let pairs = a.as_bytes().iter().zip(b.as_bytes());
        let all: Vec<u8> = pairs.map(|(a, b)| a.abs_diff(*b)).collect();
        let mean = all.iter().map(|&d| f64::from(d)).sum::<f64>() / all.len() as f64;
        (mean, all.into_iter().max().unwrap())
    }

    fn with_gap(preprocess: &Preprocess, gap: u32) -> Preprocess {
        let decoding = Decoding { reducing_gap: Some(gap), ..Decoding::default() };
        Preprocess { decoding, ..preprocess.clone() }
    }

    #[derive(Deserialize)]
    struct Case {
        source: String,
        file: String,
        gap: u32,
        width: u32,
        height: u32,
    }

    /// References in tests/fixtures/scaled, made by make.py there.
    #[test]
    fn is_what_pillow_makes_of_a_draft() {
        let folder = root().join("tests/fixtures/scaled");
        let cases: Vec<Case> =
            serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        assert_eq!(cases.len(), 3);
        for Case { source, file, gap, width, height } in cases {
            let preprocess = with_gap(&Preprocess::squash(height, width, Filter::Bicubic), gap);
            let ours = preprocess.load(&example(&source), &DecodeLimits::default()).unwrap();
            let reference = std::fs::read(folder.join(&file)).unwrap();
            let pillow = crate::decode::decode(&reference, &DecodeLimits::default()).unwrap();
            let (mean, largest) = difference(&ours, &pillow);
            println!("{file}: mean {mean:.3}, largest {largest}");
            assert!(mean < 1.5 && largest <= 16, "{file}: mean {mean:.3}, largest {largest}");
        }
    }

    /// A JPEG of smooth shapes without symmetry, with this EXIF orientation.
    fn jpeg(height: u32, width: u32, orientation: u8) -> Vec<u8> {
        let wave = |at: u32, side: u32, turns: f64| {
            (127.0 + 120.0 * (f64::from(at) / f64::from(side) * turns * std::f64::consts::TAU).sin()) as u8
        };
        let picture = ImageBuffer::from_fn(width, height, |x, y| {
            Rgb([wave(x, width, 1.3), wave(y, height, 1.7), wave(x + y, width + height, 2.2)])
        });
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        // A TIFF header and one entry: orientation (0x112), a SHORT.
        let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        encoder.set_exif_metadata(exif).unwrap();
        encoder.encode_image(&picture).unwrap();
        bytes
    }

    #[test]
    fn is_close_to_the_whole_picture_for_any_orientation_policy_and_remainder() {
        let policies = [ResizePolicy::Squash, ResizePolicy::ShortestEdgeCenterCrop, ResizePolicy::FitPad];
        for policy in policies {
            let mut whole = Preprocess::squash(24, 24, Filter::Bicubic);
            whole.policy = policy;
            whole.resize_shortest = (policy == ResizePolicy::ShortestEdgeCenterCrop).then_some(28);
            for (height, width) in [(256, 256), (301, 263), (250, 407)] {
                for orientation in 1..=8 {
                    let file = jpeg(height, width, orientation);
                    let limits = DecodeLimits::default();
                    let exact = whole.load(&file, &limits).unwrap();
                    let fast = with_gap(&whole, 2).load(&file, &limits).unwrap();
                    let (mean, largest) = difference(&exact, &fast);
                    let what = format!("{policy:?} {height}x{width} EXIF {orientation}");
                    assert!(mean < 1.0 && largest <= 9, "{what}: mean {mean:.2}, largest {largest}");
                }
            }
        }
    }

    #[test]
    fn is_as_small_as_the_gap_allows() {
        let sides = |file: &[u8], gap: u32, least: (u32, u32)| {
            let decoding = Decoding { reducing_gap: Some(gap), ..Decoding::default() };
            let (pixels, extent) =
                decode_as(file, &DecodeLimits::default(), &decoding, &move |_, _| least).unwrap();
            (pixels.height(), pixels.width(), extent.height, extent.width)
        };
        let file = jpeg(301, 263, 1);
        assert_eq!(sides(&file, 1, (30, 30)), (38, 33, 301, 263));
        assert_eq!(sides(&file, 2, (30, 30)), (76, 66, 301, 263));
        assert_eq!(sides(&file, 2, (60, 60)), (151, 132, 301, 263));
        assert_eq!(sides(&file, 2, (75, 66)), (301, 263, 301, 263));
        assert_eq!(sides(&file, 8, (30, 30)), (301, 263, 301, 263));
        // Turned, the bounds go with the upright sides.
        let turned = jpeg(301, 263, 6);
        assert_eq!(sides(&turned, 2, (60, 75)), (132, 151, 263, 301));
        assert_eq!(sides(&turned, 2, (75, 60)), (263, 301, 263, 301));
        // A long strip is cut in whole pixels first.
        assert_eq!(sides(&jpeg(16, 400, 1), 1, (2, 50)), (16, 400, 16, 400));
        // Other formats have no such thing.
        let png = std::fs::read(root().join("tests/fixtures/pillow/source.png")).unwrap();
        assert_eq!(sides(&png, 1, (5, 5)), (131, 97, 131, 97));
    }

    #[test]
    fn files_that_are_cut_short_fail_as_they_do_whole() {
        let file = jpeg(301, 263, 1);
        let preprocess = with_gap(&Preprocess::squash(24, 24, Filter::Bicubic), 2);
        for end in [file.len() / 2, file.len() - 60] {
            let cut = &file[..end];
            let whole = crate::decode::decode(cut, &DecodeLimits::default()).unwrap_err();
            assert_eq!(preprocess.load(cut, &DecodeLimits::default()).unwrap_err(), LoadError::Decode(whole));
        }
    }

    #[test]
    fn many_threads_that_decode_within_a_pool_finish() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let file = jpeg(1200, 900, 1);
        let preprocess = with_gap(&Preprocess::squash(100, 100, Filter::Bicubic), 2);
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        preprocess.load(&file, &DecodeLimits::default()).unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 160);
    }

    #[test]
    fn a_profile_is_applied_where_colours_are_to_be_srgb() {
        let picture = ImageBuffer::from_pixel(64, 64, Rgb([184u8, 50, 49]));
        let mut file = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut file, 100);
        encoder.set_icc_profile(moxcms::ColorProfile::new_display_p3().encode().unwrap()).unwrap();
        encoder.encode_image(&picture).unwrap();
        let mut png = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut png);
        encoder.set_icc_profile(moxcms::ColorProfile::new_display_p3().encode().unwrap()).unwrap();
        encoder.write_image(picture.as_raw(), 64, 64, image::ExtendedColorType::Rgb8).unwrap();
        let plain = Preprocess::squash(8, 8, Filter::Bilinear);
        for (file, gap) in [(&file, None), (&file, Some(2)), (&png, None)] {
            let colour = |colour| {
                let decoding = Decoding { reducing_gap: gap, colour };
                let preprocess = Preprocess { decoding, ..plain.clone() };
                preprocess.load(file, &DecodeLimits::default()).unwrap().as_bytes()[..3].to_vec()
            };
            let close = |found: &[u8], wanted: [u8; 3]| {
                assert!(found.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= 3), "{gap:?}: {found:?}");
            };
            close(&colour(crate::decode::Colour::AsStored), [184, 50, 49]);
            close(&colour(crate::decode::Colour::Srgb), [200, 30, 40]);
        }
    }
}
