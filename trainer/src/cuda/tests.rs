//! The engine on the processor beside the CPU's own implementation.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::byol::DeviceByol;
use super::host::Host;
use crate::device::Precision;
use crate::method::byol::{Byol, HeadConfig, Snapshot, StepReport, StepSettings, random_weights};
use crate::method::learner::Start;
use crate::nn::config::{Arch, EncoderConfig};
use crate::nn::kernels::precision;
use crate::nn::weights::Weights;
use crate::optim::lars::LarsConfig;

const LARS: LarsConfig = LarsConfig { weight_decay: 0.01, momentum: 0.9, trust: 0.02 };
const SETTINGS: StepSettings = StepSettings { learning_rate: 0.05, tau: 0.9, accumulate: 1 };

/// A configuration whose CPU computes in f32.
fn encoder(arch: Arch, width: f64, size: usize) -> EncoderConfig {
    EncoderConfig { precision: precision::Precision::Highest, ..EncoderConfig::new(arch, width, size) }
}

fn values(count: usize, mut state: u32) -> Vec<f32> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// ‖found − expected‖ / ‖expected‖ of the array that is worst, with its name.
fn worst(found: &Weights, expected: &Weights) -> (f64, String) {
    assert!(found.0.keys().eq(expected.0.keys()));
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let error = |name: &String| {
        let (f, e) = (&found.0[name], &expected.0[name]);
        assert_eq!(f.shape, e.shape, "{name}");
        let difference = f.data.iter().zip(&e.data).map(|(f, e)| f64::from(*f) - f64::from(*e));
        let size = norm(&mut e.data.iter().map(|e| f64::from(*e)));
        let relative = norm(&mut difference.into_iter()) / size.max(1e-6);
        // A NaN is the worst.
        (if relative.is_nan() { f64::MAX } else { relative }, name.clone())
    };
    found.0.keys().map(error).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

struct Case {
    encoder: EncoderConfig,
    heads: HeadConfig,
    batch: usize,
    accumulate: usize,
}

/// What a step gave: its loss, its spread and all arrays.
type Outcome = (StepReport, Snapshot);

/// A step on the device and two on the CPU, all from `from`: (device, CPU, CPU with views that are off
/// by what rounding does).
fn step(case: &Case, precision: Precision, from: &Snapshot, seed: u32) -> Option<[Outcome; 3]> {
    let Case { encoder, heads, batch, accumulate } = case;
    let start =
        Start { encoder, heads: *heads, lars: LARS, online: &from.online, target: Some(&from.target) };
    let settings = StepSettings { accumulate: *accumulate, ..SETTINGS };
    let pixels = batch * encoder.image_size * encoder.image_size * 3;
    let (a, b) = (values(pixels, seed), values(pixels, seed + 1));
    let off = |view: &[f32]| -> Vec<f32> {
        view.iter().zip(values(pixels, 99)).map(|(v, noise)| v * (1.0 + 5e-7 * noise)).collect()
    };
    let mut device = DeviceByol::new(Host::new(precision)?, &start).unwrap();
    device.restore_velocity(&from.velocity).unwrap();
    let reports = device.step(&a, &b, settings).unwrap();
    assert_eq!(reports.len(), 1);
    let cpu = |a: &[f32], b: &[f32]| {
        let mut cpu = Byol::new(encoder, *heads, LARS, &from.online, Some(&from.target)).unwrap();
        cpu.restore_velocity(&from.velocity).unwrap();
        (cpu.step(a, b, settings).unwrap(), cpu.snapshot().unwrap())
    };
    Some([(reports[0], device.snapshot().unwrap()), cpu(&a, &b), cpu(&off(&a), &off(&b))])
}

/// Random networks, the optimiser at rest.
fn at_rest(case: &Case) -> Snapshot {
    let online = random_weights(&case.encoder, case.heads, 3);
    let mut target = online.clone();
    target.0.values_mut().filter(|t| t.shape.len() > 1).for_each(|t| t.data.reverse());
    let byol = Byol::new(&case.encoder, case.heads, LARS, &online, Some(&target)).unwrap();
    byol.snapshot().unwrap()
}

/// Two steps, the second from where the CPU's first one ended, are the CPU's as nearly as its own are
/// when its views are off by a rounding: behind a ReLU a bit can decide whether a gradient passes.
fn assert_equal(case: &Case) {
    let mut from = at_rest(case);
    for seed in [0, 2] {
        let Some([device, cpu, rounded]) = step(case, Precision::F32, &from, seed) else { return };
        let relative = |f: f64, e: f64| (f - e).abs() / e.abs().max(0.1);
        assert!(relative(device.0.loss, cpu.0.loss) < 1e-4, "{:?} {:?}", device.0, cpu.0);
        let spread = relative(device.0.representation_std, cpu.0.representation_std);
        assert!(spread < 1e-4, "{:?} {:?}", device.0, cpu.0);
        let parts = |of: &Snapshot| [of.online.clone(), of.target.clone(), of.velocity.clone()];
        let (device, cpu, rounded) = (parts(&device.1), parts(&cpu.1), parts(&rounded.1));
        for (i, what) in ["online", "target", "velocity"].into_iter().enumerate() {
            let (error, name) = worst(&device[i], &cpu[i]);
            let (own, _) = worst(&rounded[i], &cpu[i]);
            println!("{what}: {name} is off by {error:.1e}; the CPU's own by {own:.1e}");
            assert!(error < (10.0 * own).clamp(1e-3, 0.2), "{what} {name}: {error:.1e}, {own:.1e}");
        }
        let [online, target, velocity] = cpu;
        from = Snapshot { online, target, velocity };
    }
}

#[test]
fn steps_of_a_small_picture_resnet_are_the_cpus() {
    let encoder = encoder(Arch::Resnet18, 0.125, 16);
    assert_equal(&Case { encoder, heads: HeadConfig::new(32, 16), batch: 8, accumulate: 1 });
}

#[test]
fn steps_of_a_large_picture_resnet_are_the_cpus() {
    let encoder = encoder(Arch::Resnet50, 0.125, 66);
    assert_equal(&Case { encoder, heads: HeadConfig::new(30, 17), batch: 4, accumulate: 1 });
}

#[test]
fn accumulated_gradients_are_the_cpus() {
    let encoder = encoder(Arch::Resnet34, 0.125, 16);
    let heads = HeadConfig { predictor: false, ..HeadConfig::new(32, 16) };
    assert_equal(&Case { encoder, heads, batch: 8, accumulate: 2 });
}

#[test]
fn bf16_steps_stay_near_the_cpus() {
    let encoder = encoder(Arch::Resnet18, 0.125, 16);
    let case = Case { encoder, heads: HeadConfig::new(32, 16), batch: 8, accumulate: 1 };
    let Some([found, expected, _]) = step(&case, Precision::Bf16, &at_rest(&case), 0) else { return };
    assert!((found.0.loss / expected.0.loss - 1.0).abs() < 5e-2, "{:?} {:?}", found.0, expected.0);
    let (found, expected) = (found.1, expected.1);
    let flat = |w: &Weights, prefix: &str| -> Vec<f64> {
        let arrays = w.0.iter().filter(|(name, _)| name.starts_with(prefix));
        arrays.flat_map(|(_, t)| &t.data).map(|v| f64::from(*v)).collect()
    };
    // LARS makes every layer count alike, and rounding adds up on the way back to the first.
    for (prefix, least) in [("predictor", 0.99), ("", 0.85)] {
        let (f, e) = (flat(&found.velocity, prefix), flat(&expected.velocity, prefix));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = dot(&f, &e) / (dot(&f, &f) * dot(&e, &e)).sqrt();
        println!("cosine of the update with the CPU's, {prefix}…: {cosine:.5}");
        assert!(cosine > least, "{prefix} {cosine}");
    }
}

#[test]
fn pictures_are_encoded_as_on_the_cpu() {
    let encoder = encoder(Arch::Resnet18, 0.125, 72);
    let heads = HeadConfig::new(32, 16);
    let online = random_weights(&encoder, heads, 3);
    let start = Start { encoder: &encoder, heads, lars: LARS, online: &online, target: None };
    let Some(host) = Host::new(Precision::F32) else { return };
    let device = DeviceByol::new(host, &start).unwrap();
    let cpu = Byol::new(&encoder, heads, LARS, &online, None).unwrap();
    // Not a power of two: the last chunk is filled up.
    let views = values(5 * 72 * 72 * 3, 1);
    let (found, expected) = (device.encode(&views).unwrap(), cpu.encode(&views).unwrap());
    for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0f32, f32::max);
        let most = expected.iter().fold(0f32, |m, e| m.max(e.abs()));
        assert!(worst < 1e-4 * most, "{worst} of {most}");
    }
}

#[test]
fn a_run_goes_on_from_its_snapshot() {
    let encoder = encoder(Arch::Resnet18, 0.125, 16);
    let heads = HeadConfig::new(32, 16);
    let online = random_weights(&encoder, heads, 3);
    let open = |online: &Weights, target: Option<&Weights>| {
        let start = Start { encoder: &encoder, heads, lars: LARS, online, target };
        Some(DeviceByol::new(Host::new(Precision::F32)?, &start).unwrap())
    };
    let Some(mut whole) = open(&online, None) else { return };
    let (a, b) = (values(8 * 16 * 16 * 3, 1), values(8 * 16 * 16 * 3, 2));
    whole.step(&a, &b, SETTINGS).unwrap();
    let saved = whole.snapshot().unwrap();
    whole.step(&a, &b, SETTINGS).unwrap();
    let mut resumed = open(&saved.online, Some(&saved.target)).unwrap();
    resumed.restore_velocity(&saved.velocity).unwrap();
    resumed.step(&a, &b, SETTINGS).unwrap();
    assert!(whole.snapshot().unwrap() == resumed.snapshot().unwrap(), "bit for bit");
}
