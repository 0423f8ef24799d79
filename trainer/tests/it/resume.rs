//! Killed at any moment, a run goes on to the same numbers as if nothing had happened.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{SMALL, fail, succeed, trainer, write_pictures};

/// (step, loss, spread) of every row of metrics: what must be the same, unlike the speed.
fn metrics(run: &Path) -> Vec<(u64, f64, f64)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let number = |name: &str| row[name].as_f64().unwrap();
        (row["step"].as_u64().unwrap(), number("loss"), number("representation_std"))
    };
    text.lines().map(row).collect()
}

/// The newest checkpoint without the time that it took.
fn newest(run: &Path) -> Vec<u8> {
    let mut all: Vec<_> =
        std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    let bytes = std::fs::read(all.last().unwrap()).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures, 24, 1);
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    // A checkpoint after every step, so that the kill comes between any two.
    let args = |out: &Path| {
        let mut command = trainer();
        command.arg("train").arg(&pictures).arg("--out").arg(out).args(SMALL);
        command.args(["--epochs", "40", "--checkpoint-minutes", "0"]);
        command
    };
    succeed(&mut args(&whole));
    let mut child = args(&killed).stderr(std::process::Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !killed.join("checkpoints/step-000000033.safetensors").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be killed");
        assert!(start.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let steps = |run: &Path| metrics(run).last().map(|m| m.0);
    assert!(steps(&killed) < steps(&whole), "it was killed on the way");
    succeed(trainer().arg("resume").arg(&killed));
    assert_eq!(newest(&killed), newest(&whole), "weights, target and velocity are the same bits");
    // A row that the kill cut in half averages fewer steps; all others are the same.
    let (whole, killed) = (metrics(&whole), metrics(&killed));
    let equal = killed.iter().filter(|row| whole.contains(row)).count();
    assert_eq!(killed.last().map(|r| r.0), Some(120));
    assert!(equal + 10 >= whole.len(), "{equal} of {}", whole.len());
}

#[test]
fn changed_pictures_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, run) = (dir.path().join("pictures"), dir.path().join("run"));
    write_pictures(&pictures, 8, 1);
    let mut command = trainer();
    command.arg("train").arg(&pictures).arg("--out").arg(&run).args(SMALL).args(["--epochs", "1"]);
    succeed(&mut command);
    for file in std::fs::read_dir(run.join("checkpoints")).unwrap() {
        let path = file.unwrap().path();
        if !path.ends_with("step-000000000.safetensors") {
            std::fs::remove_file(path).unwrap();
        }
    }
    write_pictures(&pictures, 9, 2);
    let said = fail(trainer().arg("resume").arg(&run));
    assert!(said.contains("the pictures changed since the run began"), "{said}");
}
