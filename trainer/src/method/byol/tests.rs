//! Steps beside PyTorch's, and the whole network's gradient by finite differences.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors};

use super::*;
use crate::nn::config::{Arch, Norm};
use crate::nn::kernels::precision::Precision;
use crate::nn::weights::WeightTensor;

/// `tests/reference/byol_step.safetensors`: see `make_fixtures.py` beside it.
const FIXTURE: &[u8] = include_bytes!("../../../tests/reference/byol_step.safetensors");

type Arrays = HashMap<String, WeightTensor>;

fn fixture() -> Arrays {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView)| {
        let data = match view.dtype() {
            Dtype::F32 => {
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            }
            Dtype::BF16 => {
                let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
                view.data().chunks_exact(2).map(wide).collect()
            }
            other => panic!("{other:?}"),
        };
        (name, WeightTensor { shape: view.shape().to_vec(), data })
    };
    file.tensors().into_iter().map(read).collect()
}

/// The fixture's encoder in f32, which is what its bounds of 1e-4 are for.
fn encoder() -> EncoderConfig {
    EncoderConfig { precision: Precision::Highest, ..EncoderConfig::new(Arch::Resnet18, 0.125, 16) }
}

/// How far a gradient may be from PyTorch's in f64. bfloat16 alone is left out: this network of few
/// pictures is so ill-conditioned that its gradients say nothing at 8 bits.
const PRECISIONS: [(Precision, f64); 2] = [(Precision::Highest, 1e-4), (Precision::High, 5e-4)];

const HEADS: HeadConfig = HeadConfig::new(32, 16);
const LARS: LarsConfig = LarsConfig { weight_decay: 0.01, momentum: 0.9, trust: 0.02 };
const SETTINGS: StepSettings = StepSettings { learning_rate: 0.5, tau: 0.9, accumulate: 1 };

/// The arrays under `prefix`; the bias before a batch norm, which the trainer leaves out, dropped.
fn under(arrays: &Arrays, prefix: &str) -> Weights {
    let named = arrays.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_string(), t.clone())));
    Weights(named.filter(|(n, _)| !n.ends_with("linear1.bias")).collect())
}

fn reversed(weights: &Weights) -> Weights {
    let mut target = weights.clone();
    target.0.values_mut().for_each(|t| t.data.reverse());
    target
}

/// Every s-th value as the fixture samples.
fn sample(data: &[f32]) -> Vec<f32> {
    let step = data.len().div_ceil(1024);
    data.iter().step_by(if step.is_multiple_of(2) { step + 1 } else { step }).copied().collect()
}

/// ‖found − expected‖ / ‖expected‖ ≤ `bound`.
fn assert_near(what: &str, found: &[f32], expected: &[f32], bound: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e)));
    let size = norm(&mut expected.iter().map(|e| f64::from(*e)));
    assert!(error <= bound * size.max(1e-6), "{what}: relative error {:.2e}", error / size.max(1e-6));
}

fn start(arrays: &Arrays) -> Byol {
    let online = under(arrays, "online/");
    Byol::new(&encoder(), HEADS, LARS, &online, Some(&reversed(&online))).unwrap()
}

#[test]
fn representations_match_pytorch_in_eval_mode() {
    let arrays = fixture();
    let byol = start(&arrays);
    let views = byol.both_views(&arrays["view1"].data, &arrays["view2"].data).unwrap();
    let views = views.narrow(0, 0, 8).unwrap().contiguous().unwrap();
    let found = byol.online.encoder.forward(&views, Mode::Eval, &byol.pool, false).unwrap();
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_near("representation", &found, &arrays["representation"].data, 1e-5);
}

#[test]
fn gradients_match_pytorch() {
    for (precision, bound) in PRECISIONS {
        gradients_match(&EncoderConfig { precision, ..encoder() }, bound);
    }
}

fn gradients_match(encoder: &EncoderConfig, bound: f64) {
    let arrays = fixture();
    // Without decay, momentum or adaptation and at rate 1, the update is the gradient.
    let plain = LarsConfig { weight_decay: 0.0, momentum: 0.0, trust: 1.0 };
    let online = under(&arrays, "online/");
    let mut byol = Byol::new(encoder, HEADS, plain, &online, Some(&reversed(&online))).unwrap();
    byol.step(
        &arrays["view1"].data,
        &arrays["view2"].data,
        StepSettings { learning_rate: 1.0, tau: 1.0, accumulate: 1 },
    )
    .unwrap();
    let velocity = byol.snapshot().unwrap().velocity;
    let expected = under(&arrays, "grad/");
    assert_eq!(velocity.0.len(), expected.0.len());
    for (name, gradient) in &velocity.0 {
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let whole = f64::from(arrays[&format!("grad_norm/{name}")].data[0]);
        // LARS at η = 1 scales a weight's gradient to the weight's norm: undo it.
        let adapted = name.ends_with(".weight") && !name.contains("norm");
        let scale = if adapted { whole / norm(&online.0[name].data) } else { 1.0 };
        let found: Vec<f32> = gradient.data.iter().map(|v| (f64::from(*v) * scale) as f32).collect();
        assert!((norm(&found) / whole - 1.0).abs() < bound, "{name}: norm {} {whole}", norm(&found));
        assert_near(name, &sample(&found), &expected.0[name].data, bound);
    }
}

#[test]
fn steps_match_pytorch() {
    let arrays = fixture();
    let mut byol = start(&arrays);
    let mut first = None;
    for expected in &arrays["loss"].data {
        let report = byol.step(&arrays["view1"].data, &arrays["view2"].data, SETTINGS).unwrap();
        assert!((report.loss - f64::from(*expected)).abs() < 2e-3, "loss {} {expected}", report.loss);
        if first.is_none() {
            assert!((report.loss - f64::from(*expected)).abs() < 1e-5, "first loss {}", report.loss);
            first = Some(byol.snapshot().unwrap());
        }
    }
    let first = first.unwrap();
    for (prefix, found) in [("after/", &first.online), ("target_after/", &first.target)] {
        for (name, expected) in &under(&arrays, prefix).0 {
            assert_near(&format!("{prefix}{name}"), &sample(&found.0[name].data), &expected.data, 1e-4);
        }
    }
    let moved = |bias: &WeightTensor, factor: f32, t: &[f32]| -> Vec<f32> {
        t.iter().zip(&bias.data).map(|(t, b)| t + factor * b).collect()
    };
    for (prefix, found, bias_of) in [("stats/", &first.online, false), ("target_stats/", &first.target, true)]
    {
        for (name, expected) in &under(&arrays, prefix).0 {
            let Some(found) = found.0.get(name) else { continue };
            let mut found = found.data.clone();
            // The left-out bias shifts the mean by itself, in each of the two updates.
            if let Some(part) = name.strip_suffix(".norm.running_mean").filter(|p| !p.contains("st")) {
                let mut bias = arrays[&format!("online/{part}.linear1.bias")].clone();
                if bias_of {
                    bias.data.reverse();
                }
                found = moved(&bias, 0.19, &found);
            }
            assert_near(&format!("{prefix}{name}"), &found, &expected.data, 1e-4);
        }
    }
}

#[test]
fn the_gradient_of_a_whole_network_matches_finite_differences() {
    for (arch, size, norm) in [
        (Arch::Resnet18, 16, Norm::Batch),
        (Arch::Resnet50, 72, Norm::Batch),
        (Arch::Resnet18, 16, Norm::GnWs),
        (Arch::Resnet50, 72, Norm::GnWs),
    ] {
        let config = EncoderConfig { norm, ..EncoderConfig::new(arch, 0.125, size) };
        let weights = random_weights(&config, HEADS, 3);
        let rest = LarsConfig { weight_decay: 0.0, momentum: 0.0, trust: 1.0 };
        let mut rng = 1u32;
        let mut draw = |n: usize| -> Vec<f32> {
            let next = |_| {
                rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (rng >> 8) as f32 / 8_388_608.0 - 1.0
            };
            (0..n).map(next).collect()
        };
        let (a, b) = (draw(8 * size * size * 3), draw(8 * size * size * 3));
        let still = StepSettings { learning_rate: 0.0, tau: 1.0, accumulate: 1 };
        let mut byol = Byol::new(&config, HEADS, rest, &weights, None).unwrap();
        byol.step(&a, &b, still).unwrap();
        let velocity = byol.snapshot().unwrap().velocity;
        // Along the shifts and scales of all norms, which LARS leaves as they are.
        let along: Vec<_> = velocity.0.iter().filter(|(n, _)| n.contains("norm")).collect();
        let square: f64 = along.iter().flat_map(|(_, t)| &t.data).map(|g| f64::from(*g).powi(2)).sum();
        let h = 3e-4 / square.sqrt();
        let loss = |sign: f64| {
            let mut moved = weights.clone();
            for (name, gradient) in &along {
                let to = moved.0.get_mut(*name).unwrap();
                to.data
                    .iter_mut()
                    .zip(&gradient.data)
                    .for_each(|(w, g)| *w += (sign * h * f64::from(*g)) as f32);
            }
            let mut byol = Byol::new(&config, HEADS, rest, &moved, Some(&weights)).unwrap();
            byol.step(&a, &b, still).unwrap().loss
        };
        let slope = (loss(1.0) - loss(-1.0)) / (2.0 * h);
        assert!((slope / square - 1.0).abs() < 0.05, "{arch:?} {norm:?}: {slope} {square}");
    }
}

#[test]
fn blocks_computed_again_give_the_same_bits() {
    for (arch, size, norm) in [(Arch::Resnet18, 16, Norm::Batch), (Arch::Resnet50, 72, Norm::GnWs)] {
        let config = EncoderConfig { norm, ..EncoderConfig::new(arch, 0.125, size) };
        let weights = random_weights(&config, HEADS, 3);
        let views: Vec<f32> =
            (0..8 * size * size * 3).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
        let after = |recompute| {
            let config = EncoderConfig { recompute, ..config.clone() };
            let mut byol = Byol::new(&config, HEADS, LARS, &weights, None).unwrap();
            let reversed: Vec<f32> = views.iter().rev().copied().collect();
            for _ in 0..2 {
                byol.step(&views, &reversed, SETTINGS).unwrap();
            }
            byol.snapshot().unwrap()
        };
        assert!(after(true) == after(false), "{arch:?} {norm:?}");
    }
}

#[test]
fn without_batch_statistics_a_picture_does_not_depend_on_the_others() {
    let config = EncoderConfig { norm: Norm::GnWs, ..encoder() };
    let weights = random_weights(&config, HEADS, 3);
    assert!(weights.0.keys().all(|name| !name.contains("running_")));
    let byol = Byol::new(&config, HEADS, LARS, &weights, None).unwrap();
    let views: Vec<f32> = (0..4 * 16 * 16 * 3).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
    let (together, projections) = byol.encode(&views).unwrap();
    let (alone, projection) = byol.encode(&views[..16 * 16 * 3]).unwrap();
    assert_near("representation", &alone, &together[..alone.len()], 1e-6);
    assert_near("projection", &projection, &projections[..projection.len()], 1e-6);
}

#[test]
fn two_parts_of_the_same_pictures_update_as_one() {
    let arrays = fixture();
    let (a, b) = (&arrays["view1"].data, &arrays["view2"].data);
    let (mut once, mut twice) = (start(&arrays), start(&arrays));
    let one = once.step(a, b, SETTINGS).unwrap();
    let two = twice.step(&a.repeat(2), &b.repeat(2), StepSettings { accumulate: 2, ..SETTINGS }).unwrap();
    assert!((one.loss - two.loss).abs() < 1e-6);
    let (once, twice) = (once.snapshot().unwrap(), twice.snapshot().unwrap());
    for (one, two) in
        [(&once.online, &twice.online), (&once.target, &twice.target), (&once.velocity, &twice.velocity)]
    {
        for (name, expected) in &one.0 {
            let found = &two.0[name].data;
            if name.contains(".running_") {
                assert_ne!(found, &expected.data, "{name}: each part moves the running statistics");
            } else {
                assert_near(name, found, &expected.data, 1e-6);
            }
        }
    }
    let uneven = start(&arrays).step(a, b, StepSettings { accumulate: 3, ..SETTINGS });
    assert!(uneven.unwrap_err().to_string().contains("3 equal parts"));
}

#[test]
fn a_part_is_weighed_by_its_share() {
    let arrays = fixture();
    let (a, b) = (&arrays["view1"].data, &arrays["view2"].data);
    let plain = LarsConfig { weight_decay: 0.0, momentum: 0.0, trust: 1.0 };
    let online = under(&arrays, "online/");
    let still = |accumulate| StepSettings { learning_rate: 0.0, tau: 1.0, accumulate };
    let gradient = |a: &[f32], b: &[f32], parts| {
        let mut byol = Byol::new(&encoder(), HEADS, plain, &online, Some(&reversed(&online))).unwrap();
        byol.step(a, b, still(parts)).unwrap();
        // LARS leaves the norms' gradients as they are.
        byol.snapshot().unwrap().velocity.0["stem.norm.bias"].data.clone()
    };
    let half = a.len() / 2;
    let (first, second) = (gradient(&a[..half], &b[..half], 1), gradient(&a[half..], &b[half..], 1));
    let mean: Vec<f32> = first.iter().zip(&second).map(|(f, s)| (f + s) / 2.0).collect();
    assert_near("mean of both halves", &gradient(a, b, 2), &mean, 1e-5);
}

#[test]
fn without_a_predictor_there_are_two_parts_and_representations_are_the_same() {
    let arrays = fixture();
    let online = under(&arrays, "online/");
    let heads = HeadConfig { predictor: false, ..HEADS };
    let mut bare = Byol::new(&encoder(), heads, LARS, &online, None).unwrap();
    let views = &arrays["view1"].data;
    let (representations, projections) = bare.encode(views).unwrap();
    assert_near("representation", &representations, &arrays["representation"].data, 1e-5);
    assert_eq!(projections.len() / HEADS.projection, representations.len() / encoder().dim());
    bare.step(views, &arrays["view2"].data, SETTINGS).unwrap();
    let snapshot = bare.snapshot().unwrap();
    assert!(!snapshot.online.0.keys().any(|name| name.starts_with("predictor")));
    let mut again = Byol::new(&encoder(), heads, LARS, &snapshot.online, Some(&snapshot.target)).unwrap();
    again.restore_velocity(&snapshot.velocity).unwrap();
    assert_eq!(again.snapshot().unwrap(), snapshot);
}

#[test]
fn spread_is_one_for_all_directions_and_zero_for_one() {
    let axes: Vec<f32> = (0..8)
        .flat_map(|i| (0..4).map(move |j| if i / 2 == j { if i % 2 == 0 { 1.0 } else { -1.0 } } else { 0.0 }))
        .collect();
    assert!((representation_std(&axes, 8) - 1.0).abs() < 1e-9);
    assert_eq!(representation_std(&[1.0, 2.0, 2.0, 4.0], 2), 0.0);
}
