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
