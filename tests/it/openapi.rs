//! The committed description is what the code says, and its examples are what the server answers.
//!
//! `LATENTD_UPDATE=1 cargo test --release openapi` writes both anew.

use std::path::PathBuf;

use latentd::http::{docs, router};
use serde_json::Value;

use crate::support::{Server, example, root};

fn updating() -> bool {
    std::env::var_os("LATENTD_UPDATE").is_some()
}

/// Compares a file with what it should hold, or writes it.
fn check(path: PathBuf, wanted: &str, same: impl Fn(&str, &str) -> bool) {
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if same(&committed, wanted) {
        return;
    }
    if updating() {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let name = path.strip_prefix(root()).unwrap().display();
    panic!(
        "{name} is stale: run `LATENTD_UPDATE=1 cargo test --release openapi` (twice where an example changed). It should be\n{wanted}"
    );
}

#[test]
fn the_committed_description_is_current() {
    let json = docs::to_json(&router::openapi()).unwrap();
    check(root().join("openapi/openapi.json"), &json, |a, b| a == b);
    let text = json.as_str();
    let api: Value = serde_json::from_str(text).unwrap();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["tags"].is_array() && operation["summary"].is_string(), "{method} {path}");
        }
    }
}
