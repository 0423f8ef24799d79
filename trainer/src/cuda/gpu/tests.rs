//! What of NVIDIA's libraries works without a GPU: compiling kernels, planning convolutions.
//!
//! `LATENTD_TEST_CUDA=1` says that the libraries are on LD_LIBRARY_PATH, so that a test which does
//! not find them fails; without it, it is skipped.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;
use std::ffi::CString;

use super::super::device::{Convolution, Pass};
use super::super::sweeps;
use super::dnn::{Descriptor, Kind, Name};
use super::plan::{Target, plans};
use super::{compile, library};
use crate::device::Precision;
use crate::nn::config::{Arch, EncoderConfig};

const ALL: [Precision; 3] = [Precision::Bf16, Precision::Tf32, Precision::F32];

/// Whether to go on; a missing library fails the test only where it was promised.
fn present(what: &str, found: bool) -> bool {
    assert!(found || std::env::var_os("LATENTD_TEST_CUDA").is_none(), "{what} is not on LD_LIBRARY_PATH");
    if !found {
        println!("skipped: {what} is not on LD_LIBRARY_PATH");
    }
    found
}

#[test]
fn kernels_compile_for_every_gpu_and_a_broken_one_does_not() {
    // SAFETY: only tries to open the library.
    if !present("NVRTC", unsafe { cudarc::nvrtc::sys::is_culib_present() }) {
        return;
    }
    for architecture in ["sm_80", "sm_90"] {
        let mut code = Vec::new();
        for (name, source) in sweeps::SOURCES {
            code.extend(compile::compile(name, source, architecture).unwrap());
        }
        // The machine code is an ELF file, whose symbols are the kernels' names.
        let symbols: HashSet<&[u8]> = code.split(|byte| *byte == 0).collect();
        for name in sweeps::names() {
            assert!(symbols.contains(name.as_bytes()), "{name} is in no source");
        }
        let (name, source) = sweeps::SOURCES[3];
        let broken = source.replace("float weight = w[i];", "float weight = w[i]");
        let error = compile::compile(name, &broken, architecture).unwrap_err().to_string();
        assert!(error.contains("optim.cu(") && error.contains("expected a \";\""), "{error}");
    }
}

/// An H100 or A100 as cuDNN describes one.
fn described(version: u32, processors: u32, shared: u32, l2: u32, memory: u64) -> Descriptor {
    let json = serde_json::json!({
        "deviceVer": version, "driverVer": 13000, "cudaDeviceId": 0, "deviceName": "NVIDIA",
        "maxGridSize": [2_147_483_647, 65_535, 65_535], "maxBlockSize": [1024, 1024, 64],
        "regsPerBlock": 65_536, "multiProcessorCount": processors, "smCountOrigin": 0, "warpSize": 32,
        "maxSharedMemoryPerBlock": 49_152, "maxSharedMemoryPerBlockOptin": shared,
        "oversizedSharedMemoryPerBlock": 0, "reservedSharedMemoryPerBlock": 1024,
        "maxRegistersPerSM": 65_536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
        "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1,
        "smClockRateKHz": 1_700_000, "memClockRateKHz": 1_500_000, "l2CacheSize": l2,
        "totalGlobalMem": memory,
    });
    let device = Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR).unwrap();
    let json = CString::new(json.to_string()).unwrap();
    device.set_text(Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, &json).unwrap();
    device.finish("a described GPU").unwrap()
}

/// Every convolution of an encoder, once.
fn convolutions(config: &EncoderConfig, images: usize, pack: usize) -> Vec<Convolution> {
    let (kernel, stride) = config.stem_convolution();
    let mut size = config.image_size;
    let mut all = Vec::new();
    let mut add = |size, cin, cout, kernel, stride| {
        let conv = Convolution { images, height: size, width: size, cin, cout, kernel, stride };
        if !all.contains(&conv) {
            all.push(conv);
        }
        conv.output_size(size)
    };
    size = add(size, pack, config.stem_channels(), kernel, stride);
    if stride == 2 {
        size = size.div_ceil(2);
    }
    for block in config.blocks() {
        if block.has_projection() {
            add(size, block.cin, block.cout, 1, block.stride);
        }
        for (_, kernel, stride, cin, cout) in block.convolutions() {
            size = add(size, cin, cout, kernel, stride);
        }
    }
    all
}

#[test]
fn every_convolution_has_a_plan_on_a_described_gpu() {
    if !present("cuDNN", library::check_dnn().is_ok()) {
        return;
    }
    let gpus = [
        ("A100", described(800, 108, 166_912, 41_943_040, 85 << 30)),
        ("H100", described(900, 132, 232_448, 52_428_800, 85 << 30)),
    ];
    let networks = [
        (EncoderConfig::new(Arch::Resnet50, 1.0, 224), 512),
        (EncoderConfig::new(Arch::Resnet18, 1.0, 32), 128),
        (EncoderConfig::new(Arch::Resnet18, 0.25, 32), 256),
        (EncoderConfig::new(Arch::Resnet34, 0.125, 96), 6),
    ];
    for (gpu, device) in &gpus {
        let target = Target::Described(device);
        for precision in ALL {
            let (mut planned, mut most) = (0, 0);
            for (config, images) in &networks {
                for conv in convolutions(config, *images, sweeps::pack(precision)) {
                    for pass in [Pass::Forward, Pass::Input, Pass::Weight] {
                        // The pictures need no gradient.
                        if pass == Pass::Input && conv.cin == sweeps::pack(precision) {
                            continue;
                        }
                        let found = plans(&target, &conv, pass, precision, 1)
                            .unwrap_or_else(|e| panic!("{gpu} {precision}: {e}"));
                        assert_eq!(found.len(), 1);
                        most = most.max(found[0].workspace);
                        planned += 1;
                    }
                }
            }
            println!("{gpu} {precision}: {planned} plans, workspace at most {} MiB", most >> 20);
            assert!(precision != Precision::Bf16 || most <= 1 << 30);
        }
    }
}

#[test]
fn what_cudnn_cannot_do_is_one_line() {
    if !present("cuDNN", library::check_dnn().is_ok()) {
        return;
    }
    let device = described(900, 132, 232_448, 52_428_800, 85 << 30);
    // The output would be empty.
    let conv = Convolution { images: 1, height: 0, width: 0, cin: 8, cout: 8, kernel: 1, stride: 1 };
    let found = plans(&Target::Described(&device), &conv, Pass::Forward, Precision::Bf16, 1);
    let error = found.err().map(|e| e.to_string()).unwrap();
    assert!(error.starts_with("cuDNN, ") && !error.contains('\n'), "{error}");
}
