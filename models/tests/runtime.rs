//! Loading ONNX Runtime in a process of its own: failures are answers, and do not stick.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use latentd_model::runtime::{self, RuntimeError};

#[test]
fn a_failure_does_not_stick_and_the_first_library_stays() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("libonnxruntime.so");
    std::fs::write(&text, "not a library").unwrap();
    for path in [text.clone(), dir.path().join("missing.so"), dir.path().to_path_buf()] {
        match runtime::init(Some(&path)) {
            Err(error @ RuntimeError::Load { .. }) => {
                assert!(error.to_string().contains("latentd runtime install"), "{error}");
            }
            other => panic!("{}: {other:?}", path.display()),
        }
    }
    match runtime::init(None) {
        Ok(first) => {
            assert_eq!(runtime::init(None).unwrap(), first);
            assert_eq!(runtime::init(Some(&text)).unwrap(), first);
        }
        Err(error) => println!("skipped the rest: {error}"),
    }
}

/// The tests of tools/with-ort and of the program that fetches, which are in Python as it is.
#[test]
#[cfg(target_os = "linux")]
fn the_tools_that_fetch_work() {
    let pip = std::process::Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !pip.is_ok_and(|output| output.status.success()) {
        println!("skipped: no python3 with pip here");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/test_fetch_onnxruntime.py");
    let output = std::process::Command::new("python3").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
