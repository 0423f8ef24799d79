//! Runs that are watched: collapse, plateau, the best checkpoint, TensorBoard.

use std::path::Path;

use latentd_trainer::events::{What, read_event};
use serde_json::Value;

use crate::support::{SMALL, fail, succeed, trainer, write_pictures};

fn verdicts(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.filter(|row| row["kind"] == "verdict").collect()
}

#[test]
fn a_collapse_is_noticed_within_an_epoch_and_stops_the_run_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, run, on) = (dir.path().join("pictures"), dir.path().join("run"), dir.path().join("on"));
    write_pictures(&pictures, 700, 1);
    let train = |out: &Path| {
        let mut command = trainer();
        command.arg("train").arg(&pictures).arg("--out").arg(out).args(SMALL).args(["--epochs", "3"]);
        // The ablation of the paper's table 5: no predictor, and a target that is the online network.
        command.args([
            "--no-predictor",
            "--tau-base",
            "0",
            "--base-learning-rate",
            "3",
            "--warmup-epochs",
            "0.1",
        ]);
        command
    };
    let said = fail(&mut train(&run));
    let lines: Vec<_> = said.lines().filter(|l| l.starts_with("error:")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(
        lines[0].contains("the encoder has collapsed at step") && lines[0].contains("no predictor"),
        "{said}"
    );
    let seen = verdicts(&run);
    let last = seen.last().unwrap();
    assert!(last["epoch"].as_f64().unwrap() <= 1.0, "{seen:?}");
    assert!(run.join("checkpoints/step-000000000.safetensors").exists(), "checkpoints stay");
    let output = succeed(train(&on).arg("--ignore-collapse"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has collapsed"));
    assert!(verdicts(&on).len() > seen.len());
}

#[test]
fn a_plateau_ends_a_run_and_the_best_checkpoint_is_exported() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, run) = (dir.path().join("pictures"), dir.path().join("run"));
    write_pictures(&pictures, 24, 1);
    let mut command = trainer();
    command.arg("train").arg(&pictures).arg("--out").arg(&run).args(SMALL).args(["--epochs", "2000"]);
    // Steps too small to learn anything.
    let output = succeed(command.args(["--patience", "25", "--base-learning-rate", "1e-9"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("stopped: nothing got better for 25 epochs") && said.contains("best.safetensors"),
        "{said}"
    );
    let seen = verdicts(&run);
    assert!(seen.last().unwrap()["epoch"].as_f64().unwrap() < 200.0, "{seen:?}");
    // Going on finds the same plateau again.
    let output = succeed(trainer().arg("resume").arg(&run));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("nothing got better for 25 epochs"), "{said}");
}

#[test]
fn tensorboard_gets_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, run) = (dir.path().join("pictures"), dir.path().join("run"));
    write_pictures(&pictures, 24, 1);
    let mut command = trainer();
    command.arg("train").arg(&pictures).arg("--out").arg(&run).args(SMALL).args(["--epochs", "10"]);
    succeed(&mut command);
    let files: Vec<_> =
        std::fs::read_dir(run.join("tensorboard")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    assert!(files[0].file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents."));
    let bytes = std::fs::read(&files[0]).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while let Some((event, length)) = read_event(&bytes[at..]) {
        if let Some(What::Summary(summary)) = event.what {
            found.extend(
                summary.value.into_iter().map(|v| (event.step as u64, v.tag, v.simple_value.unwrap())),
            );
        }
        at += length;
    }
    assert_eq!(at, bytes.len(), "every byte is part of a record");
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut compared = 0;
    for row in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let group = if row["kind"] == "step" { "train" } else { "verdict" };
        for (field, name) in [("loss", "loss"), ("lr", "learning_rate"), ("view_retrieval", "view_retrieval")]
        {
            if let Some(value) = row[field].as_f64() {
                let tag = format!("{group}/{name}");
                assert!(found.contains(&(row["step"].as_u64().unwrap(), tag, value as f32)), "{row}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * 2 + 2, "three rows of steps, two verdicts");
}
