//! What a person gets wrong: each is one line that says what to do.

use std::fs;

use crate::support::{SMALL, fail, succeed, trainer, write_pictures};

#[test]
fn folders_that_cannot_be_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let train =
        |folder: &str| fail(trainer().arg("train").arg(dir.path().join(folder)).arg("--out").arg(&out));
    assert!(train("missing").contains("no such folder"));
    fs::create_dir(dir.path().join("empty")).unwrap();
    assert!(train("empty").contains("no pictures found"));
    fs::create_dir(dir.path().join("text")).unwrap();
    fs::write(dir.path().join("text/a.jpg"), "not a picture").unwrap();
    let said = train("text");
    assert!(said.contains("no pictures"), "{said}");
    write_pictures(&dir.path().join("few"), 3, 1);
    let said =
        fail(trainer().arg("train").arg(dir.path().join("few")).args(["--batch", "16", "--out"]).arg(&out));
    assert!(said.contains("6 pictures are fewer than one batch of 16: use a smaller --batch"), "{said}");
    assert!(!out.join("run.json").exists(), "nothing is left of a run that did not start");
}

#[test]
fn a_folder_that_cannot_be_written_is_told_before_the_pictures_are_read() {
    let dir = tempfile::tempdir().unwrap();
    write_pictures(dir.path(), 8, 1);
    // A file where a folder is needed: refused to root as well.
    fs::write(dir.path().join("file"), "").unwrap();
    let said = fail(trainer().arg("train").arg(dir.path()).arg("--out").arg(dir.path().join("file/run")));
    assert!(said.contains("file/run cannot be written: choose another --out"), "{said}");
    assert!(!said.contains("pictures in"), "{said}");
}

#[test]
fn values_out_of_range_and_unknown_settings() {
    let dir = tempfile::tempdir().unwrap();
    write_pictures(dir.path(), 8, 1);
    let train = |args: &[&str]| fail(trainer().arg("train").arg(dir.path()).args(args));
    assert!(train(&["--batch", "1"]).contains("batch 1 is outside 2 to 65536"));
    assert!(train(&["--width", "99"]).contains("width 99 is outside"));
    let config = dir.path().join("c.toml");
    fs::write(&config, "learning_rate = 1\n").unwrap();
    assert!(train(&["--config", config.to_str().unwrap()]).contains("unknown field `learning_rate`"));
    assert!(train(&["--config", "nowhere.toml"]).contains("nowhere.toml"));
}

#[test]
fn a_run_is_not_overwritten_and_a_broken_one_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (pictures, run) = (dir.path().join("p"), dir.path().join("run"));
    write_pictures(&pictures, 8, 1);
    let train = || {
        let mut command = trainer();
        command.arg("train").arg(&pictures).arg("--out").arg(&run).args(SMALL).args(["--epochs", "1"]);
        command
    };
    succeed(&mut train());
    assert!(fail(&mut train()).contains("latentd-trainer resume"));
    for file in fs::read_dir(run.join("checkpoints")).unwrap() {
        fs::write(file.unwrap().path(), b"broken").unwrap();
    }
    let said = fail(trainer().arg("resume").arg(&run));
    assert!(said.contains("no usable checkpoint"), "{said}");
    assert!(fail(trainer().args(["resume", "nowhere"])).contains("run.json"));
    assert!(fail(trainer().args(["eval", "nowhere", "--labelled", "x"])).contains("no run"));
}
