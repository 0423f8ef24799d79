//! Times what becomes of a picture file before the model sees it, beside the `image` crate doing the same, and on all
//! cores at once beside threads that give parts of their pictures to rayon.
//!
//! `cargo bench --bench preprocess -- [PICTURE...]`; the examples' pictures when none is given. One thread; processor
//! time, which other work on the machine changes less than the clock.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use image::imageops::{self, FilterType};
use latentd_model::decode::decode_as;
use latentd_model::{DecodeLimits, Decoding, Filter, Preprocess, ResizePolicy, decode_alone};

const RUNS: usize = 100;
/// Of each kind on all cores; the middle one is shown.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(500);

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let mut pictures: Vec<PathBuf> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).map(PathBuf::from).collect();
    if pictures.is_empty() {
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))? {
            pictures.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|e| e == "jpg")));
        }
        pictures.sort();
    }
    println!(
        "processor time in ms, median of {RUNS} runs, one thread; shortest edge and centre crop, bicubic"
    );
    println!("| picture | side | reducing gap | decode | decode and resize | `image` crate | ratio |");
    println!("|---|---|---|---|---|---|---|");
    let files = pictures.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    for (picture, file) in pictures.iter().zip(&files) {
        for (side, reducing_gap) in [(32, Some(2)), (224, None), (224, Some(2))] {
            row(&picture.file_name().unwrap_or_default().to_string_lossy(), file, side, reducing_gap)?;
        }
    }
    println!("\npictures a second, a thread a core, reducing gap 2");
    println!("| side | each thread alone | with rayon's threads | ratio |");
    println!("|---|---|---|---|");
    for side in [32, 224] {
        let (mut alone, mut shared) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.push(on_all_cores(&files, &cut(side, Some(2)), true));
            shared.push(on_all_cores(&files, &cut(side, Some(2)), false));
        }
        let [alone, shared] = [alone, shared].map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[ROUNDS / 2]
        });
        println!("| {side} | {alone:.0} | {shared:.0} | {:.2} |", alone / shared);
    }
    Ok(())
}

/// Shortest edge and centre crop, bicubic.
fn cut(side: u32, reducing_gap: Option<u32>) -> Preprocess {
    Preprocess {
        policy: ResizePolicy::ShortestEdgeCenterCrop,
        resize_shortest: Some(side),
        decoding: Decoding { reducing_gap, ..Decoding::default() },
        ..Preprocess::squash(side, side, Filter::Bicubic)
    }
}

/// Pictures a second that as many threads as there are cores bring to size.
fn on_all_cores(files: &[Vec<u8>], preprocess: &Preprocess, alone: bool) -> f64 {
    let (next, until) = (AtomicUsize::new(0), Instant::now() + ROUND);
    std::thread::scope(|scope| {
        for _ in 0..latentd::config::cores() {
            scope.spawn(|| {
                if alone {
                    decode_alone();
                }
                while Instant::now() < until {
                    let file = &files[next.fetch_add(1, Ordering::Relaxed) % files.len()];
                    let _ = black_box(preprocess.load(file, &DecodeLimits::default()));
                }
            });
        }
    });
    next.into_inner() as f64 / ROUND.as_secs_f64()
}

fn row(name: &str, file: &[u8], side: u32, reducing_gap: Option<u32>) -> Outcome {
    let (limits, preprocess) = (DecodeLimits::default(), cut(side, reducing_gap));
    let target = |height, width| preprocess.resized(height, width);
    let decode =
        time(|| decode_as(file, &limits, &preprocess.decoding, &target).map(drop).map_err(Into::into))?;
    let whole =
        time(|| preprocess.load(file, &limits).map(|pixels| drop(black_box(pixels))).map_err(Into::into))?;
    let reference = time(|| by_image(file, &preprocess))?;
    let gap = reducing_gap.map_or_else(|| "none".to_owned(), |gap| gap.to_string());
    println!(
        "| {name} | {side} | {gap} | {decode:.3} | {whole:.3} | {reference:.3} | {:.2} |",
        reference / whole
    );
    Ok(())
}

/// Decoded whole, resized and cut by the `image` crate.
fn by_image(file: &[u8], preprocess: &Preprocess) -> Outcome {
    let picture = image::load_from_memory(file)?.into_rgb8();
    let (height, width) = preprocess.resized(picture.height(), picture.width());
    let resized = imageops::resize(&picture, width, height, FilterType::CatmullRom);
    let (left, top) = ((width - preprocess.width) / 2, (height - preprocess.height) / 2);
    let cut = imageops::crop_imm(&resized, left, top, preprocess.width, preprocess.height).to_image();
    black_box(cut);
    Ok(())
}

/// Median of the processor time, in ms.
fn time(mut work: impl FnMut() -> Outcome) -> Outcome<f64> {
    for _ in 0..RUNS / 10 {
        work()?;
    }
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let before = processor_ns()?;
        work()?;
        times.push(processor_ns()? - before);
    }
    times.sort_unstable();
    Ok(times[RUNS / 2] as f64 / 1e6)
}

/// What this thread has run so far (proc(5), schedstat), which the kernel counts when it looks for another to run.
fn processor_ns() -> Outcome<u64> {
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}
