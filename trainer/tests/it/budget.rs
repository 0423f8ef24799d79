//! Runs that fit their hours and their memory.

use serde_json::Value;

use crate::support::{SMALL, fail, succeed, trainer, write_pictures};

#[test]
fn a_plan_is_printed_with_its_reasons_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, out) = (dir.path().join("pictures"), dir.path().join("run"));
    write_pictures(&pictures, 40, 1);
    let plan = |args: &[&str]| {
        let mut command = trainer();
        command.arg("train").arg(&pictures).arg("--out").arg(&out).args([
            "--width",
            "0.125",
            "--image-size",
            "16",
        ]);
        command.arg("--plan-only").args(args);
        command
    };
    let said = String::from_utf8(succeed(plan(&["--hours", "0.01"]).arg("--json")).stdout).unwrap();
    let found: Value = serde_json::from_str(&said).unwrap();
    let config = &found["config"];
    assert!(
        found["hours"].as_f64().unwrap() <= 0.01 && found["images_per_s"].as_f64().unwrap() > 0.0,
        "{said}"
    );
    assert!(config["epochs"].as_u64().unwrap() > 20, "more than the default: {said}");
    assert_eq!((config["batch"].as_u64(), config["base_learning_rate"].as_f64()), (Some(16), Some(3.0)));
    let reasons: Vec<_> = found["reasons"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
    for of in ["epochs", "batch", "base_learning_rate", "tau_base", "warmup_epochs"] {
        assert!(reasons.iter().any(|r| r.starts_with(of)), "{of}: {reasons:?}");
    }
    // What is given by hand stays, and the epochs may be the budget.
    let said = String::from_utf8(succeed(&mut plan(&["--epochs", "7", "--tau-base", "0.9"])).stdout).unwrap();
    assert!(
        said.contains("plan: resnet18") && said.contains("80 pictures") && !said.contains("tau_base"),
        "{said}"
    );
    assert!(fail(&mut plan(&["--hours", "1e-9"])).contains("less than one epoch"));
    assert!(!out.join("run.json").exists());
}

#[test]
fn a_run_of_so_many_hours_ends_and_a_preset_is_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, out) = (dir.path().join("pictures"), dir.path().join("run"));
    write_pictures(&pictures, 40, 1);
    let mut command = trainer();
    command.arg("train").arg(&pictures).arg("--out").arg(&out).args([
        "--preset",
        "small-data",
        "--hours",
        "0.002",
    ]);
    let output = succeed(command.args(["--width", "0.125", "--image-size", "16", "--hidden", "32"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("plan: resnet18 width 0.125 at 16 px") && said.contains("warmup_epochs"), "{said}");
    let config = std::fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(config.contains("projection = 128"), "the preset's: {config}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_batch_that_does_not_fit_is_cut_into_parts() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, out) = (dir.path().join("pictures"), dir.path().join("run"));
    write_pictures(&pictures, 32, 1);
    let train = |bound: &str| {
        let mut command = trainer();
        command.arg("train").arg(&pictures).arg("--out").arg(&out).args([
            "--memory-mib",
            bound,
            "--epochs",
            "2",
        ]);
        command.args(["--batch", "64", "--width", "0.25", "--image-size", "48", "--hidden", "32"]);
        command
    };
    let said = fail(&mut train("8"));
    assert!(said.contains("parts of 2 pictures") && said.contains("raise --memory-mib"), "{said}");
    let output = succeed(&mut train("200"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("do not fit into 200 MiB"), "{said}");
    let config: toml::Value =
        toml::from_str(&std::fs::read_to_string(out.join("config.toml")).unwrap()).unwrap();
    assert_eq!(config["batch"].as_integer(), Some(64), "the batch stays what it was");
    assert!(config["accumulate"].as_integer().unwrap() > 1);
    let peak = said.split("peak memory ").nth(1).and_then(|s| s.split(' ').next()).unwrap();
    assert!(peak.parse::<u64>().unwrap() <= 200, "{said}");
}

#[test]
fn a_step_of_no_memory_is_cut_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    write_pictures(dir.path(), 16, 1);
    let mut command = trainer();
    command
        .arg("train")
        .arg(dir.path())
        .args(SMALL)
        .args(["--accumulate", "3", "--out"])
        .arg(dir.path().join("run"));
    assert!(fail(&mut command).contains("a batch of 16 cannot be cut into 3 equal parts"));
}
