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
