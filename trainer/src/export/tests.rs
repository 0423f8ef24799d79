//! Tests of the export on real pictures, against a plain reference of the network.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use latentd_model::decode::{DecodeLimits, decode};
use latentd_model::{Embedding, Pixels, ReferenceError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};

use super::{
    BoxError, Export, ExportError, Parity, eval_preprocess, export, open, reference, to_onnx, verify,
};
use crate::encode::PictureEncoder;
use crate::nn::config::{Arch, EncoderConfig, Norm, Stem};
use crate::nn::weights::{WeightTensor, Weights};
use crate::whiten::Whitening;

/// Random weights whose norms are as uneven as a trained network's.
fn weights(config: &EncoderConfig, seed: u64) -> Weights {
    let mut weights = Weights::random(config, seed);
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    for (name, tensor) in &mut weights.0 {
        let range = match name.rsplit('.').next() {
            Some("running_mean" | "bias") => -0.5..0.5_f32,
            Some("running_var") => 0.2..2.0,
            Some("weight") if name.contains("norm") => 0.5..1.5,
            _ => continue,
        };
        tensor.data.iter_mut().for_each(|x| *x = rng.random_range(range.clone()));
    }
    weights
}

/// Smooth pictures of that size, each with its own colours and noise.
fn pictures(size: u32, count: usize) -> Vec<Pixels> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    (0..count)
        .map(|_| {
            let (a, b, c): (f32, f32, f32) = (rng.random(), rng.random(), rng.random());
            let data = (0..size * size * 3)
                .map(|i| {
                    let (y, x, channel) = (i / 3 / size, i / 3 % size, i % 3);
                    let wave = (a * x as f32 * 0.4 + b * y as f32 * 0.3 + c * 6.0 * channel as f32).sin();
                    (128.0 + 90.0 * wave + rng.random_range(-30.0..30.0)) as u8
                })
                .collect();
            Pixels::new(size, size, data).unwrap()
        })
        .collect()
}

fn reference_embed(config: &EncoderConfig, weights: &Weights, pixels: &[Pixels]) -> Vec<Embedding> {
    let embed = |p| reference::embed(config, weights, p).iter().map(|&x| x as f32).collect();
    pixels.iter().map(|p| Embedding::from_unnormalised(embed(p)).unwrap()).collect()
}

fn assert_graph_is_the_network(config: &EncoderConfig, pixels: &[Pixels]) {
    let weights = weights(config, 3);
    let preprocess = eval_preprocess(config.image_size);
    let onnx = to_onnx(config, &weights, &preprocess).unwrap();
    let mut encoder = open(&onnx, &preprocess, config.dim()).unwrap();
    let exported = encoder.embed(pixels).unwrap();
    let parity = Parity::measure(&reference_embed(config, &weights, pixels), &exported).unwrap();
    println!("{:?} width {} at {} px: {parity:?}", config.arch, config.width, config.image_size);
    assert!(parity.min_cosine >= 0.99999, "{parity:?}");
    assert!(parity.relative_error <= 1e-3, "{parity:?}");
    // Alone and in a batch: the same vector.
    let alone = encoder.embed(&pixels[..1]).unwrap();
    assert!(alone[0].cosine(&exported[0]) >= 0.99999);
}

#[test]
fn the_reference_is_what_pytorch_computes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/byol_step.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let data: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => {
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            }
            // BF16 is the upper half of an f32.
            Dtype::BF16 => {
                tensor.data().chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect()
            }
            other => panic!("{other:?}"),
        };
        WeightTensor { shape: tensor.shape().to_vec(), data }
    };
    let names =
        file.names().into_iter().filter_map(|n| Some((n.strip_prefix("online/")?.to_owned(), read(n))));
    let weights = Weights(names.collect());
    let config = EncoderConfig::new(Arch::Resnet18, 0.125, 16);
    let (view, expected) = (read("view1"), read("representation"));
    for (picture, expected) in view.data.chunks(16 * 16 * 3).zip(expected.data.chunks(config.dim())) {
        let got = reference::represent(&config, &weights, picture.iter().map(|&x| f64::from(x)).collect());
        for (got, &expected) in got.iter().zip(expected) {
            let expected = f64::from(expected);
            assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{got} {expected}");
        }
    }
}

#[test]
fn group_norms_stay_in_the_graph_and_standardised_weights_are_folded() {
    for (arch, size) in [(Arch::Resnet18, 32), (Arch::Resnet50, 72)] {
        let config = EncoderConfig { norm: Norm::GnWs, ..EncoderConfig::new(arch, 0.25, size) };
        assert_graph_is_the_network(&config, &pictures(size as u32, 3));
    }
}

#[test]
fn a_resnet18_with_the_cifar_stem_is_exported_exactly() {
    assert_graph_is_the_network(&EncoderConfig::new(Arch::Resnet18, 0.25, 32), &pictures(32, 6));
}

#[test]
fn a_resnet34_of_an_odd_size_is_exported_exactly() {
    let config = EncoderConfig { stem: Stem::Imagenet, ..EncoderConfig::new(Arch::Resnet34, 0.125, 45) };
    assert_graph_is_the_network(&config, &pictures(45, 4));
}

#[test]
fn a_resnet50_with_the_imagenet_stem_is_exported_exactly() {
    assert_graph_is_the_network(&EncoderConfig::new(Arch::Resnet50, 0.125, 96), &pictures(96, 4));
}

#[test]
fn a_grid_and_fewer_dimensions_are_exported_exactly() {
    // A last map of 5 × 5 pixels in 2 × 2 cells, which share a row and a column; and one that divides evenly.
    for (size, grid) in [(40, 2), (32, 4)] {
        let config = EncoderConfig { grid, ..EncoderConfig::new(Arch::Resnet18, 0.125, size) };
        let mut weights = weights(&config, 5);
        let pixels = pictures(size as u32, 60);
        let plain = PictureEncoder::new(&config, &weights).unwrap().embed(&pixels).unwrap();
        assert_eq!(plain[0].dim(), 64 * grid * grid);
        Whitening::fit_leading(&plain, 12).unwrap().save(&mut weights);
        let trained = PictureEncoder::new(&config, &weights).unwrap().embed(&pixels).unwrap();
        let preprocess = eval_preprocess(config.image_size);
        let mut encoder = open(&to_onnx(&config, &weights, &preprocess).unwrap(), &preprocess, 12).unwrap();
        let parity = Parity::measure(&trained, &encoder.embed(&pixels).unwrap()).unwrap();
        assert!(parity.min_cosine >= 0.9999, "{parity:?}");
    }
}

#[test]
fn an_extreme_picture_gives_finite_numbers() {
    let config = EncoderConfig::new(Arch::Resnet18, 0.125, 16);
    // All weights zero and no bias: every representation is zero, which has no direction.
    let mut zero = Weights::random(&config, 1);
    zero.0.values_mut().for_each(|t| t.data.iter_mut().for_each(|x| *x = 0.0));
    let preprocess = eval_preprocess(16);
    let onnx = to_onnx(&config, &zero, &preprocess).unwrap();
    let mut encoder = open(&onnx, &preprocess, config.dim()).unwrap();
    let black = ndarray::Array4::<u8>::zeros((2, 16, 16, 3));
    let rows = encoder.embed_raw(black.view()).unwrap();
    assert!(rows.iter().all(|x| *x == 0.0), "zeros, not NaN");
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let config = EncoderConfig::new(Arch::Resnet18, 0.125, 16);
    let message = |w: &Weights, size| to_onnx(&config, w, &eval_preprocess(size)).unwrap_err().to_string();
    let mut missing = weights(&config, 1);
    missing.0.remove("stage3.block0.shortcut.norm.running_var");
    assert!(message(&missing, 16).contains("stage3.block0.shortcut.norm.running_var"));
    let mut diverged = weights(&config, 1);
    diverged.0.get_mut("stem.conv.weight").unwrap().data[5] = f32::NAN;
    assert!(message(&diverged, 16).contains("diverged"));
    assert!(message(&weights(&EncoderConfig::new(Arch::Resnet18, 0.25, 16), 1), 16).contains("shape"));
    assert!(message(&weights(&config, 1), 32).contains("32x32"));
}

/// A folder of `count` little pictures as PNG files.
fn folder(count: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for (i, p) in pictures(24, count).into_iter().enumerate() {
        let name = PathBuf::from(format!("{i:03}.png"));
        let picture = image::RgbImage::from_raw(24, 24, p.into_bytes()).unwrap();
        picture.save(dir.path().join(&name)).unwrap();
        names.push(name);
    }
    (dir, names)
}

fn parts<'a>(
    models_dir: &'a Path,
    encoder: &'a EncoderConfig,
    weights: &'a Weights,
    root: &'a Path,
    pictures: &'a [PathBuf],
) -> Export<'a> {
    Export {
        models_dir,
        name: "test-r18",
        version: None,
        licence: "CC0-1.0",
        description: "Random weights.",
        encoder,
        weights,
        training: None,
        evaluation: Vec::new(),
        networks: None,
        report_html: "<!doctype html><title>report</title>",
        command: "latentd-trainer export",
        pictures_root: root,
        pictures,
        trained_on: &[],
    }
}

#[test]
fn an_artefact_is_written_verified_and_never_overwritten() {
    let config = EncoderConfig::new(Arch::Resnet18, 0.125, 16);
    let weights = weights(&config, 5);
    let (root, names) = folder(70);
    let models = tempfile::tempdir().unwrap();
    let models = models.path().join("models");
    let mut input = parts(&models, &config, &weights, root.path(), &names);
    let trained = |pixels: &[Pixels]| -> Result<Vec<Embedding>, BoxError> {
        Ok(reference_embed(&config, &weights, pixels))
    };

    let first = export(&input, trained).unwrap();
    assert_eq!(first.dir, models.join("test-r18-v1"));
    assert_eq!(first.parity.pictures, 70);
    assert_eq!(first.golden.cosines.len(), 8);
    assert_eq!(verify(&first.dir).unwrap().0, first.contract);
    assert!(matches!(first.reference, Err(ReferenceError::TooFew(0))));

    // The same pictures often enough.
    let trained_on: Vec<_> = names.iter().map(|name| root.path().join(name)).cycle().take(700).collect();
    input.trained_on = &trained_on;
    let second = export(&input, trained).unwrap();
    let reference = second.reference.unwrap();
    assert_eq!((reference.pictures, reference.held_out, reference.window), (560, 140, 70));
    let written = latentd_model::Artefact::open(&second.dir).unwrap().reference().unwrap().unwrap();
    assert_eq!(written.reference, reference);
    assert_eq!(second.dir, models.join("test-r18-v2"));
    assert_eq!(second.contract, first.contract, "the same graph and pixels");

    input.version = Some(2);
    assert!(matches!(export(&input, trained), Err(ExportError::Artefact(_))));
    // What the golden pictures say is what anybody gets from the file on disk.
    let golden = latentd_model::Artefact::open(&first.dir).unwrap().golden().unwrap();
    let picture = decode(&golden.pictures[0].bytes, &DecodeLimits::default()).unwrap();
    let pixels = eval_preprocess(16).apply(&picture).unwrap();
    let expected = reference_embed(&config, &weights, &[pixels]);
    assert!(golden.pictures[0].expected.cosine(&expected[0]) > 0.99999);
}

#[test]
fn a_graph_that_is_not_the_trained_network_is_refused() {
    let config = EncoderConfig::new(Arch::Resnet18, 0.125, 16);
    let (exported, other) = (weights(&config, 5), weights(&config, 6));
    let (root, names) = folder(20);
    let models = tempfile::tempdir().unwrap();
    let input = parts(models.path(), &config, &exported, root.path(), &names);
    let error = export(&input, |pixels| Ok(reference_embed(&config, &other, pixels))).unwrap_err();
    assert!(error.to_string().contains("cosine min"), "{error}");
    assert_eq!(std::fs::read_dir(models.path()).unwrap().count(), 0);

    let input = parts(models.path(), &config, &exported, root.path(), &names[..5]);
    let error = export(&input, |pixels| Ok(reference_embed(&config, &exported, pixels))).unwrap_err();
    assert!(error.to_string().contains("need 8"), "{error}");
}
