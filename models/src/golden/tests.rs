//! Tests of the golden check.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::convert::Infallible;

use super::*;
use crate::preprocess::Filter;

/// A BMP of one colour, written by hand: no encoder is needed for it.
fn bmp(blue: u8) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    for word in [54 + 8 * 16u32, 0, 54, 40, 4, 4, 1 | 32 << 16, 0, 64, 0, 0, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([blue, 100, 50, 255].repeat(16));
    file
}

/// Stands for an encoder: the mean of each channel.
fn means(batch: &[Pixels]) -> Result<Vec<Embedding>, Infallible> {
    let mean = |p: &Pixels, c: usize| p.as_bytes().iter().skip(c).step_by(3).map(|&v| f32::from(v)).sum();
    Ok(batch
        .iter()
        .map(|p| Embedding::from_unnormalised((0..3).map(|c| mean(p, c)).collect()).unwrap())
        .collect())
}

fn preprocess() -> Preprocess {
    Preprocess::squash(2, 2, Filter::Bilinear)
}

fn golden() -> Golden {
    let picture = |blue: u8| GoldenPicture {
        name: format!("{blue}.bmp"),
        bytes: bmp(blue),
        expected: Embedding::from_unnormalised(vec![50.0, 100.0, f32::from(blue)]).unwrap(),
    };
    Golden { pictures: [0, 60, 250].map(picture).to_vec() }
}

fn write(golden: &Golden, dir: &Path) {
    for (name, bytes) in golden.files().unwrap() {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn files_and_back() {
    let dir = tempfile::tempdir().unwrap();
    write(&golden(), dir.path());
    assert_eq!(Golden::read(dir.path()).unwrap(), golden());
}

#[test]
fn the_same_encoder_passes() {
    let report = golden().check(means, &preprocess(), Golden::MIN_COSINE).unwrap();
    assert_eq!(report.cosines.len(), 3);
    assert!(report.worst > 0.999_999);
}

#[test]
fn another_encoder_is_told_by_the_picture() {
    let shifted = |batch: &[Pixels]| -> Result<Vec<Embedding>, Infallible> {
        let turn = |e: Embedding| {
            Embedding::from_unnormalised(e.as_slice().iter().rev().copied().collect()).unwrap()
        };
        Ok(means(batch)?.into_iter().map(turn).collect())
    };
    let error = golden().check(shifted, &preprocess(), Golden::MIN_COSINE).unwrap_err();
    assert!(matches!(&error, GoldenError::Differs { name, .. } if name == "0.bmp"), "{error}");
}

#[test]
fn other_faults_are_told_apart() {
    let empty = Golden { pictures: vec![] };
    assert!(matches!(empty.check(means, &preprocess(), 0.9), Err(GoldenError::NoPictures)));
    assert!(matches!(empty.files(), Err(GoldenError::NoPictures)));
    let fails = |_: &[Pixels]| Err("no memory");
    let error = golden().check(fails, &preprocess(), 0.9).unwrap_err();
    assert!(error.to_string().contains("no memory"));
    let too_few = |batch: &[Pixels]| means(&batch[1..]);
    assert!(matches!(golden().check(too_few, &preprocess(), 0.9), Err(GoldenError::Shape { .. })));
    let mut broken = golden();
    broken.pictures[1].bytes.truncate(20);
    assert!(
        matches!(broken.check(means, &preprocess(), 0.9), Err(GoldenError::Load { name, .. }) if name == "60.bmp")
    );
    broken.pictures[1].expected = Embedding::from_unnormalised(vec![1.0]).unwrap();
    broken.pictures[1].bytes = bmp(60);
    assert!(matches!(broken.check(means, &preprocess(), 0.9), Err(GoldenError::Shape { .. })));
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in ["../x.bmp", "/x.bmp", "", ".hidden", "expected.json", "a b.bmp"] {
        let mut bad = golden();
        bad.pictures[0].name = name.into();
        assert!(bad.files().is_err(), "{name}");
    }
    let mut twice = golden();
    twice.pictures[1].name = "0.bmp".into();
    assert!(twice.files().is_err());
    let dir = tempfile::tempdir().unwrap();
    for text in [
        "[{\"picture\":\"../x.bmp\",\"embedding\":[1.0]}]",
        "[{\"picture\":\"x\"}]",
        "{}",
        "",
        "[{\"picture\":\"0.bmp\",\"embedding\":[1.0],\"more\":1}]",
    ] {
        std::fs::write(dir.path().join("expected.json"), text).unwrap();
        assert!(matches!(Golden::read(dir.path()), Err(GoldenError::Files { .. })), "{text}");
    }
    std::fs::write(dir.path().join("0.bmp"), bmp(0)).unwrap();
    std::fs::write(dir.path().join("expected.json"), "[{\"picture\":\"0.bmp\",\"embedding\":[2.0]}]")
        .unwrap();
    assert!(matches!(Golden::read(dir.path()), Err(GoldenError::Expected { .. })));
}
