//! The fuzz targets over their seeds and over the collection of nasty files: none may panic or take long.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use latentd::fuzzing::{TARGETS, image, multipart};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{nasty, root};

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.display().to_string(), std::fs::read(&path).unwrap())
    };
    entries.map(read).collect()
}

#[test]
fn every_target_has_a_program_and_seeds_that_it_runs_over() {
    let programs: BTreeSet<_> = std::fs::read_dir(root().join("fuzz/fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let names: BTreeSet<_> = TARGETS.iter().map(|&(name, _)| name.to_owned()).collect();
    assert_eq!(programs, names);
    let listed = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    for (name, target) in TARGETS {
        assert!(listed.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
        let seeds = files(&root().join("fuzz/seeds").join(name));
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for (_, seed) in &seeds {
            target(seed);
            // Cut, doubled, and with each of some bits turned: what a fuzzer would try first.
            for cut in (0..seed.len()).step_by(1 + seed.len() / 16) {
                target(&seed[..cut]);
                let mut turned = seed.clone();
                turned[cut] ^= 1 << (cut % 8);
                target(&turned);
            }
            target(&[seed.as_slice(), seed].concat());
        }
    }
}

#[test]
fn no_nasty_file_breaks_the_decoders() {
    let Some(files) = nasty() else { return };
    for (name, bytes) in &files {
        let began = Instant::now();
        image(bytes);
        multipart(&[b"b\n", bytes.as_slice()].concat());
        assert!(began.elapsed() < Duration::from_secs(10), "{name} took {:?}", began.elapsed());
    }
}

/// Longest input that is made of seeds.
const LONGEST: usize = 64 << 10;

/// A fuzzer that needs nothing installed and learns nothing: seeds cut, joined and bent at random, by a fixed seed.
/// `LATENTD_FUZZ_SECONDS` gives each target longer than its half second, `LATENTD_FUZZ_SEED` other inputs.
#[test]
fn no_bent_seed_breaks_a_target() {
    let number = |name: &str, other: f64| std::env::var(name).map_or(other, |text| text.parse().unwrap());
    let (seconds, seed) = (number("LATENTD_FUZZ_SECONDS", 0.5), number("LATENTD_FUZZ_SEED", 0.0));
    for (name, target) in TARGETS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
        let mut seeds: Vec<_> =
            files(&root().join("fuzz/seeds").join(name)).into_iter().map(|(_, seed)| seed).collect();
        if name == "image" {
            seeds.extend(nasty().into_iter().flatten().map(|(_, file)| file).filter(|f| f.len() < LONGEST));
        }
        let (began, mut runs) = (Instant::now(), 0u64);
        while began.elapsed().as_secs_f64() < seconds {
            let input = bent(&mut rng, &seeds);
            let run = std::panic::catch_unwind(|| {
                let began = Instant::now();
                target(&input);
                began.elapsed()
            });
            let kept = std::env::temp_dir().join(format!("latentd-fuzz-{name}"));
            if !run.as_ref().is_ok_and(|took| *took < Duration::from_secs(10)) {
                std::fs::write(&kept, &input).unwrap();
                panic!("{name}: {run:?} with the bytes in {}", kept.display());
            }
            runs += 1;
        }
        println!("{name}: {runs} runs");
    }
}

fn bent(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let end = rng.random_range(at..=(at + 16).min(bytes.len()));
        match rng.random_range(0..7) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.insert(at, rng.random()),
            2 => bytes.truncate(at),
            3 => {
                let (piece, other) = (bytes[at..end].to_vec(), rng.random_range(0..=bytes.len()));
                drop(bytes.splice(other..other, piece));
            }
            4 => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..=other.len());
                drop(bytes.splice(at..end, other[from..(from + 64).min(other.len())].iter().copied()));
            }
            5 => {
                // What counts and sizes are most often wrong with.
                let odd = [[0u8; 4], [255; 4], [127, 255, 255, 255], [128, 0, 0, 0], [0, 0, 0, 1]];
                let odd = odd[rng.random_range(0..odd.len())];
                bytes.iter_mut().skip(at).zip(odd).for_each(|(byte, odd)| *byte = odd);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.random_range(0..8u8);
                }
            }
        }
    }
    bytes
}
