//! Tests of the comparison: real sessions of small graphs on real files.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use super::*;
use crate::artefact::{ArtefactDraft, write_artefact};
use crate::embedding::Embedding;
use crate::golden::{Golden, GoldenPicture};
use crate::manifest::OutputSpec;
use crate::preprocess::{Filter, Preprocess};
use crate::tiny_onnx;

/// The pictures themselves as vectors, at `side` pixels a side.
fn artefact(models: &Path, version: u32, side: u32) -> Artefact {
    let dim = (side * side * 3) as usize;
    let draft = ArtefactDraft {
        name: "tiny".into(),
        version,
        licence: "CC0-1.0".into(),
        description: "A test.".into(),
        preprocess: Preprocess::squash(side, side, Filter::Bilinear),
        output: OutputSpec { dim, normalised: true },
        training: None,
        evaluation: vec![],
        reference: None,
    };
    let expected = Embedding::from_unnormalised(vec![1.0; dim]).unwrap();
    let golden = Golden { pictures: vec![GoldenPicture { name: "0.png".into(), bytes: vec![0], expected }] };
    let onnx = tiny_onnx::encoder(side.into(), side.into());
    Artefact::open(&write_artefact(models, &draft, &onnx, &golden, "").unwrap()).unwrap()
}

fn pictures(dir: &Path) -> Vec<PathBuf> {
    let draw = |i: u32| {
        let path = dir.join(format!("{i:02}.png"));
        let pixel = |x: u32, y: u32| {
            let byte = |c: u32| {
                (x.wrapping_mul(37) ^ y.wrapping_mul(101) ^ c.wrapping_mul(53) ^ (i * i * 7 + 11)) as u8
            };
            image::Rgb([byte(0), byte(1), byte(2)])
        };
        image::RgbImage::from_fn(16, 16, pixel).save(&path).unwrap();
        path
    };
    (0..40).map(draw).collect()
}

#[test]
fn an_encoder_agrees_with_itself_and_less_with_a_coarser_one() {
    crate::runtime::init(None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (fine, coarse) = (artefact(dir.path(), 1, 8), artefact(dir.path(), 2, 2));
    let mut files = pictures(dir.path());
    let broken = dir.path().join("broken.png");
    std::fs::write(&broken, b"no picture").unwrap();
    files.insert(3, broken.clone());
    let told = std::sync::Mutex::new(0);
    let note = |done: usize| {
        let mut told = told.lock().unwrap();
        *told = done.max(*told);
    };

    let same = compare(&fine, &fine, &files, 5, &note).unwrap();
    assert_eq!(*told.lock().unwrap(), 41);
    assert_eq!((same.mean_overlap, same.same_nearest), (1.0, 1.0));
    assert_eq!((same.pictures.len(), same.offered), (40, 41));
    assert_eq!(same.unreadable[0].0, broken);
    assert!((same.overlap_by_chance - 5.0 / 39.0).abs() < 1e-9);

    let other = compare(&fine, &coarse, &files, 5, &|_| ()).unwrap();
    assert!(other.mean_overlap < 0.95 && other.mean_overlap > other.overlap_by_chance, "{other:?}");
    let mean = other.changes.iter().map(|c| c.overlap).sum::<f64>() / 40.0;
    assert!((mean - other.mean_overlap).abs() < 1e-9);
    assert!(other.changes.windows(2).all(|pair| pair[0].overlap <= pair[1].overlap));
    for change in &other.changes {
        assert_eq!((change.before.len(), change.after.len()), (5, 5));
        assert!(change.before.iter().all(|near| near.row != change.row));
        let common = change.before.iter().filter(|n| change.after.iter().any(|m| m.row == n.row)).count();
        assert_eq!(change.overlap, common as f64 / 5.0);
    }
    let html = page(&other, 3);
    assert_eq!(html.matches("<section>").count(), 3);
    assert_eq!(html.matches("data:image/jpeg;base64,").count(), 3 * 11);
    assert!(html.contains("class=\"gone\" title") && html.contains("class=\"come\" title"));
}

#[test]
fn too_few_pictures_and_a_bad_k_are_one_line() {
    crate::runtime::init(None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fine = artefact(dir.path(), 1, 8);
    let files = pictures(dir.path());
    let error = compare(&fine, &fine, &files[..3], 5, &|_| ()).unwrap_err();
    assert!(error.to_string().contains("takes at least 7"), "{error}");
    for k in [0, 1001] {
        assert!(matches!(compare(&fine, &fine, &files, k, &|_| ()), Err(CompareError::K(_))));
    }
}
