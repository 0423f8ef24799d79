//! Decode on a corpus of odd, malformed and hostile files: every one gives pixels or a
//! typed error, soon, and what has a reference looks like it.
//!
//! The corpus is not part of the repository; the test skips when it is not found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use latentd_model::{DecodeError, DecodeLimits, Pixels, decode};

/// In 8-bit steps, for the pictures whose reference was drawn before they were rotated.
const MAX_MEAN_DIFFERENCE: f64 = 8.0;
/// For references that Pillow reduced to a thumbnail with another filter than this test's.
const MAX_MEAN_DIFFERENCE_REDUCED: f64 = 12.0;
/// Generous: the machine that runs this may be busy. Alone, the slowest takes a tenth of it.
const MAX_TIME: Duration = Duration::from_secs(5);

fn shared_data() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("LATENTD_SHARED_DATA") {
        return Some(dir.into());
    }
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|dir| dir.join("shared/data"))
        .find(|dir| dir.is_dir())
}

fn unpack(tar: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(std::fs::File::open(tar).unwrap());
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if entry.header().entry_type().is_file() {
            files.insert(name.trim_start_matches("nasty/").to_owned(), bytes);
        }
    }
    files
}

/// The rows of nasty.tsv, by file name; each by column name.
fn facts(tsv: &Path) -> BTreeMap<String, BTreeMap<String, String>> {
    let text = std::fs::read_to_string(tsv).unwrap();
    let mut lines = text.lines().map(|line| line.split('\t'));
    let columns: Vec<&str> = lines.next().unwrap().collect();
    lines
        .map(|fields| columns.iter().map(|c| c.to_string()).zip(fields.map(str::to_owned)).collect())
        .map(|row: BTreeMap<String, String>| (row["name"].clone(), row))
        .collect()
}

fn mean_difference(a: &Pixels, b: &Pixels) -> f64 {
    let sum: u64 = a.as_bytes().iter().zip(b.as_bytes()).map(|(&x, &y)| u64::from(x.abs_diff(y))).sum();
    sum as f64 / a.as_bytes().len() as f64
}

/// Box-reduced to the size of the reference, as the references were made.
fn reduced(picture: &Pixels, like: &Pixels) -> Pixels {
    let image =
        image::RgbImage::from_raw(picture.width(), picture.height(), picture.as_bytes().to_vec()).unwrap();
    let small = image::imageops::thumbnail(&image, like.width(), like.height());
    Pixels::new(like.height(), like.width(), small.into_raw()).unwrap()
}

#[test]
fn every_odd_file_gives_pixels_or_a_typed_error() {
    let Some(data) = shared_data().filter(|dir| dir.join("nasty.tar").is_file()) else {
        println!("skipped: no nasty.tar; set LATENTD_SHARED_DATA to its folder");
        return;
    };
    let files = unpack(&data.join("nasty.tar"));
    let facts = facts(&data.join("nasty.tsv"));
    let limits = DecodeLimits::default();
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut slowest = (Duration::ZERO, String::new());
    let mut wrong = Vec::new();
    let verbose = std::env::var_os("LATENTD_NASTY_VERBOSE").is_some();
    for (name, row) in &facts {
        let bytes = &files[name];
        let start = Instant::now();
        let outcome = decode(bytes, &limits);
        let took = start.elapsed();
        if took > slowest.0 {
            slowest = (took, name.clone());
        }
        if took > MAX_TIME {
            wrong.push(format!("{name}: took {took:?}"));
        }
        let code = outcome.as_ref().map_or_else(DecodeError::code, |_| "decoded");
        *outcomes.entry(code.to_owned()).or_default() += 1;
        if verbose {
            let reason = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
            println!(
                "{name}\t{code}\t{}\t{}\t{}\t{}\t{reason}\t{}",
                row["pillow_decodes"], row["format"], row["pillow_mode"], row["odd"], row["pillow_error"]
            );
        }
        let Ok(picture) = outcome else { continue };
        if let (Ok(width), Ok(height)) = (row["upright_w"].parse::<u32>(), row["upright_h"].parse::<u32>())
            && (picture.width(), picture.height()) != (width, height)
        {
            wrong.push(format!("{name}: {}x{}, not {width}x{height}", picture.width(), picture.height()));
        }
        // Pillow dropped the alpha of its references; here it is laid over white.
        if !row["upright_ref"].is_empty() && !row["pillow_mode"].contains('A') {
            let reference = decode(&files[&row["upright_ref"]], &limits).unwrap();
            let difference = mean_difference(&reduced(&picture, &reference), &reference);
            if verbose {
                println!("REF {name} {difference:.2}");
            }
            let drawn = name.starts_with("gen-orient-");
            let max = if drawn { MAX_MEAN_DIFFERENCE } else { MAX_MEAN_DIFFERENCE_REDUCED };
            if difference > max {
                wrong.push(format!("{name}: differs by {difference:.1}/255 from its reference"));
            }
        }
    }
    println!("{} files: {outcomes:?}; slowest {} with {:?}", facts.len(), slowest.1, slowest.0);
    assert!(wrong.is_empty(), "{} of {} files are wrong:\n{}", wrong.len(), facts.len(), wrong.join("\n"));
}
