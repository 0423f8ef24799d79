//! From a folder of pictures to an artefact that ONNX Runtime serves.

use std::path::Path;

use latentd_model::{Artefact, Encoder, SessionOptions, decode};
use serde_json::Value;

use crate::support::{SMALL, fail, succeed, trainer, write_pictures};

#[test]
fn train_eval_export_and_the_artefact_embeds() {
    let dir = tempfile::tempdir().unwrap();
    let labelled = dir.path().join("labelled");
    write_pictures(&labelled.join("train"), 70, 1);
    write_pictures(&labelled.join("test"), 30, 9);
    std::fs::write(labelled.join("train/across/broken.jpg"), b"\xff\xd8\xff\xe0 not much of a picture")
        .unwrap();
    let (run, models) = (dir.path().join("run"), dir.path().join("models"));
    let mut command = trainer();
    command.arg("train").arg(labelled.join("train")).arg("--out").arg(&run).args(SMALL);
    let output = succeed(command.args(["--epochs", "8"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 files skipped"), "{said}");
    let info: Value = serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!((info["pictures"].as_u64(), info["skipped"].as_u64()), (Some(140), Some(1)));

    let output = succeed(trainer().arg("eval").arg(&run).arg("--labelled").arg(&labelled).arg("--json"));
    let table: Value = serde_json::from_slice(&output.stdout).unwrap();
    let subjects: Vec<_> =
        table["rows"].as_array().unwrap().iter().map(|r| r["subject"].as_str().unwrap()).collect();
    for subject in ["this encoder", "random initialisation", "raw pixels"] {
        assert!(subjects.contains(&subject), "{subjects:?}");
    }

    let mut command = trainer();
    command
        .arg("export")
        .arg(&run)
        .args(["--name", "stripes", "--licence", "CC0-1.0", "--models"])
        .arg(&models);
    let said = String::from_utf8(succeed(&mut command).stdout).unwrap();
    assert!(said.contains("golden check: 8 pictures"), "{said}");
    let artefact = Artefact::open(&models.join("stripes-v1")).unwrap();
    let manifest = artefact.manifest();
    assert!(manifest.evaluation.iter().any(|f| f.metric == "knn_top1" && f.subject == "this encoder"));
    assert_eq!(manifest.training.as_ref().unwrap().steps, 64);
    let report = std::fs::read_to_string(models.join("stripes-v1/REPORT.html")).unwrap();
    assert!(report.contains("random initialisation") && report.contains("<svg"));

    // The artefact through ONNX Runtime gives what evaluation saw through the trainer.
    latentd_model::runtime::init(None).unwrap();
    let mut encoder = Encoder::open(&artefact, &SessionOptions::default()).unwrap();
    let picture = std::fs::read(labelled.join("test/along/3.png")).unwrap();
    let pixels = manifest.preprocess.apply(&decode(&picture, &Default::default()).unwrap()).unwrap();
    let embedding = encoder.embed(&[pixels]).unwrap().remove(0);
    assert_eq!(embedding.dim(), 64);
    let output = succeed(
        trainer()
            .arg("eval")
            .arg(models.join("stripes-v1"))
            .arg("--labelled")
            .arg(&labelled)
            .args(["--json", "--no-probe"]),
    );
    let through_onnx: Value = serde_json::from_slice(&output.stdout).unwrap();
    let knn = |table: &Value| {
        let rows = table["rows"].as_array().unwrap();
        let row = rows.iter().find(|r| r["subject"] == "this encoder" && r["metric"] == "knn_top1");
        row.unwrap()["value"].as_f64().unwrap()
    };
    assert!((knn(&table) - knn(&through_onnx)).abs() < 0.02, "{} {}", knn(&table), knn(&through_onnx));

    let said = fail(
        trainer()
            .arg("export")
            .arg(&run)
            .args(["--name", "stripes", "--version", "1", "--models"])
            .arg(&models),
    );
    assert!(said.contains("stripes-v1"), "an artefact is never overwritten: {said}");
}

#[test]
fn a_readout_by_a_grid_is_evaluated_and_exported_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, run) = (dir.path().join("pictures"), dir.path().join("run"));
    write_pictures(&pictures, 70, 1);
    let mut command = trainer();
    succeed(command.arg("train").arg(&pictures).arg("--out").arg(&run).args(SMALL).args(["--epochs", "1"]));
    let knn = |subject: &Path, more: &[&str]| {
        let mut command = trainer();
        command.arg("eval").arg(subject).arg("--labelled").arg(&pictures).args(["--json", "--no-probe"]);
        let table: Value = serde_json::from_slice(&succeed(command.args(more)).stdout).unwrap();
        let find = |subject: &str| {
            let rows = table["rows"].as_array().unwrap().iter();
            let mut rows = rows.filter(|r| r["subject"] == subject && r["metric"] == "knn_top1");
            rows.next().unwrap()["value"].as_f64().unwrap()
        };
        (find("this encoder"), find("random initialisation"))
    };
    let readout = ["--grid", "2", "--dims", "24"];
    let trained = knn(&run, &readout);

    let models = dir.path().join("models");
    let mut command = trainer();
    command.arg("export").arg(&run).args(["--name", "grid", "--models"]).arg(&models);
    succeed(command.args(readout));
    let artefact = models.join("grid-v1");
    let manifest = Artefact::open(&artefact).unwrap().manifest().clone();
    let training = manifest.training.unwrap();
    assert_eq!((manifest.output.dim, training.grid, training.whitened), (24, 2, Some(true)));
    assert!(manifest.evaluation.iter().any(|f| f.metric == "knn_top1"));
    let served = knn(&artefact, &[]);
    assert!((trained.0 - served.0).abs() < 0.02 && trained.1 == served.1, "{trained:?} {served:?}");

    // Figures of one readout are not passed on to another.
    let mut command = trainer();
    command.arg("export").arg(&run).args(["--name", "plain", "--models"]).arg(&models);
    let said = String::from_utf8(succeed(&mut command).stderr).unwrap();
    assert!(said.contains("the last `eval` was of step 8, grid 2, 24 dimensions, whitened"), "{said}");
    let plain = Artefact::open(&models.join("plain-v1")).unwrap().manifest().clone();
    assert!(plain.evaluation.iter().all(|f| f.metric != "knn_top1"), "{:?}", plain.evaluation);

    // The last map has two pixels a side; and a whitening to no or too many dimensions is refused.
    for (args, part) in [
        (vec!["--grid", "3"], "a grid of 3 on a last map of 2 pixels a side"),
        (vec!["--dims", "65"], "65 dimensions cannot be kept of a representation of 64"),
        (vec!["--grid", "2", "--dims", "100"], "whitening to 100 dimensions needs at least 200 pictures"),
    ] {
        let said = fail(trainer().arg("export").arg(&run).arg("--models").arg(&models).args(args));
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn bench_prints_its_figures_as_json() {
    let mut command = trainer();
    command.args(["bench", "--width", "0.125", "--image-size", "16", "--batch", "8", "--steps", "2"]);
    let output = succeed(command.args(["--hidden", "32", "--projection", "16", "--json"]));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(figures["images_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(figures["threads"].as_u64(), Some(2));
}
