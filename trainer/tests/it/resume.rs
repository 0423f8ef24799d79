//! Killed at any moment, a run goes on to the same numbers as if nothing had happened.

use std::path::Path;

use serde_json::Value;

use crate::support::{SMALL, fail, kill_at, succeed, trainer, write_pictures};

/// Every row of metrics of a kind without the speed: what must be the same.
fn metrics(run: &Path, kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let row = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        row.as_object_mut().unwrap().remove("images_per_s");
        row
    };
    text.lines().map(row).filter(|row| row["kind"] == kind).collect()
}

/// A checkpoint without the time that it took.
fn arrays(run: &Path, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(run.join("checkpoints").join(name)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join("pictures");
    write_pictures(&pictures, 24, 1);
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    // A checkpoint after every step, so that the kill comes between any two; batches in parts; verdicts on the way.
    let args = |out: &Path| {
        let mut command = trainer();
        command.arg("train").arg(&pictures).arg("--out").arg(out).args(SMALL);
        command.args(["--epochs", "40", "--checkpoint-minutes", "0", "--accumulate", "2"]);
        command
    };
    succeed(&mut args(&whole));
    kill_at(&mut args(&killed), &killed, 33);
    let steps = |run: &Path| metrics(run, "step").last().map(|m| m["step"].clone());
    assert_ne!(steps(&killed), steps(&whole), "it was killed on the way");
    succeed(trainer().arg("resume").arg(&killed));
    for name in ["step-000000120.safetensors", "best.safetensors"] {
        assert_eq!(
            arrays(&killed, name),
            arrays(&whole, name),
            "weights, target and velocity are the same bits"
        );
    }
    let verdicts = metrics(&whole, "verdict");
    assert_eq!(verdicts.len(), 5, "at rest, and every ten epochs of so small a folder");
    assert_eq!(verdicts, metrics(&killed, "verdict"));
    // A row that the kill cut in half averages fewer steps; all others are the same.
    let (whole, killed) = (metrics(&whole, "step"), metrics(&killed, "step"));
    let equal = killed.iter().filter(|row| whole.contains(row)).count();
    assert_eq!(killed.last().unwrap()["step"], 120);
    assert!(equal + 2 >= whole.len(), "{equal} of {}", whole.len());
}

#[test]
fn a_full_disk_keeps_the_checkpoint_before() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, run) = (dir.path().join("pictures"), dir.path().join("run"));
    write_pictures(&pictures, 24, 1);
    let mut command = trainer();
    command.arg("train").arg(&pictures).arg("--out").arg(&run).args(SMALL);
    kill_at(command.args(["--epochs", "20", "--checkpoint-minutes", "0"]), &run, 9);
    let before = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
    // A limit on the size of a file stands for a disk without room: a write beyond it fails.
    let mut limited = std::process::Command::new("sh");
    limited.args([
        "-c",
        "trap '' XFSZ; ulimit -f 256; exec \"$@\"",
        "sh",
        trainer().get_program().to_str().unwrap(),
    ]);
    let said = fail(limited.env("LATENTD_TRAINER_THREADS", "2").arg("resume").arg(&run));
    let lines: Vec<_> = said.lines().filter(|l| l.starts_with("error:")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains(".safetensors was not written") && lines[0].contains("make room"), "{said}");
    let left: Vec<_> =
        std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(
        left.len() >= before.min(3) && left.iter().all(|n| !n.to_string_lossy().ends_with(".part")),
        "{left:?}"
    );
    succeed(trainer().arg("resume").arg(&run));
    assert_eq!(metrics(&run, "step").last().unwrap()["step"], 60);
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
        if !path.ends_with("step-000000000.safetensors") && !path.ends_with("best.safetensors") {
            std::fs::remove_file(path).unwrap();
        }
    }
    write_pictures(&pictures, 9, 2);
    let said = fail(trainer().arg("resume").arg(&run));
    assert!(said.contains("the pictures changed since the run began"), "{said}");
}
