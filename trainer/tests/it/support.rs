//! Pictures to train on and the program to train with.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

/// The program, with two threads, whatever the machine.
pub fn trainer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_latentd-trainer"));
    command.env("LATENTD_TRAINER_THREADS", "2").env_remove("RUST_BACKTRACE");
    command
}

/// Runs it and asserts that it succeeded.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs it, asserts that it failed without a panic, and gives what it said.
pub fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} should have failed");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Starts it and kills it once the run has the checkpoint of that step.
pub fn kill_at(command: &mut Command, run: &Path, step: u64) {
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !run.join(format!("checkpoints/step-{step:09}.safetensors")).exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
        assert!(start.elapsed() < Duration::from_secs(600));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// `per_class` pictures each of two classes, in `<dir>/<class>/`: stripes across or along, in
/// many colours, which random weights tell apart poorly and views leave as they are.
pub fn write_pictures(dir: &Path, per_class: usize, seed: u32) {
    let mut state = seed;
    let mut draw = |n: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 10) % n
    };
    for class in ["across", "along"] {
        std::fs::create_dir_all(dir.join(class)).unwrap();
        for i in 0..per_class {
            let colours: Vec<Rgb<u8>> =
                (0..2).map(|_| Rgb([draw(256) as u8, draw(256) as u8, draw(256) as u8])).collect();
            let (period, shift) = (4 + draw(5), draw(8));
            let picture = RgbImage::from_fn(40, 36, |x, y| {
                let at = if class == "across" { x } else { y } + shift;
                colours[(at / period % 2) as usize]
            });
            picture.save(dir.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
}

/// Arguments of a run that takes a second or two.
pub const SMALL: [&str; 12] = [
    "--width",
    "0.125",
    "--image-size",
    "16",
    "--batch",
    "16",
    "--hidden",
    "32",
    "--projection",
    "16",
    "--seed",
    "7",
];
