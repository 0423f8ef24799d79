//! The manifest of an artefact: what it is, where it came from, how well it does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contract::Contract;
use crate::preprocess::Preprocess;
use crate::reference::{REFERENCE_FILE, Reference};

/// `manifest.json` of an artefact. Unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format: at most [`Manifest::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Name without the version, e.g. `byol-cifar10-r18w25`: lower-case letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Version of the encoder, counted from 1.
    pub version: u32,
    /// SPDX expression of the weights.
    pub licence: String,
    /// One or two sentences for a person.
    pub description: String,
    /// What happens to a picture before the graph.
    pub preprocess: Preprocess,
    /// What the graph gives.
    pub output: OutputSpec,
    /// Contract of every vector made with this artefact.
    pub contract: Contract,
    /// SHA-256 of every file but this one, by relative path with `/`.
    pub files: BTreeMap<String, String>,
    /// How the weights were trained; absent for an imported encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// What was measured on it.
    #[serde(default)]
    pub evaluation: Vec<EvaluationFigure>,
    /// What its embeddings look like together, since schema version 2; absent where nobody measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

/// The vectors that the graph gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Length of an embedding.
    pub dim: usize,
    /// Whether the graph normalises it to L2 norm 1. Always true so far.
    pub normalised: bool,
}

/// Where weights came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Method, e.g. `byol`.
    pub method: String,
    /// Architecture, e.g. `resnet18`.
    pub arch: String,
    /// Width multiplier of the architecture.
    pub width: f64,
    /// Side of the views in pixels.
    pub image_size: usize,
    /// Normalisation layers, e.g. `batch_norm`.
    pub norm: String,
    /// Cells a side that the last map is averaged in; 1 is the whole map.
    #[serde(default = "whole_map", skip_serializing_if = "is_whole_map")]
    pub grid: usize,
    /// Whether the representation is whitened in the graph; absent before schema version 2, which did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whitened: Option<bool>,
    /// Parameters of the exported encoder.
    pub parameters: u64,
    /// The pictures it was trained on.
    pub data: DataFingerprint,
    /// Passes over the pictures.
    pub epochs: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Pictures a step.
    pub batch_size: usize,
    /// Seed of every random choice.
    pub seed: u64,
    /// Source commit of the trainer, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The command line that trained it.
    pub command: String,
    /// The whole configuration of the run.
    pub config: serde_json::Value,
    /// Start, RFC 3339 in UTC.
    pub started: String,
    /// Duration in seconds.
    pub seconds: f64,
}

/// The grid of a readout that says none: the whole map.
#[must_use]
pub fn whole_map() -> usize {
    1
}

/// Whether a grid is the whole map, which is not written.
#[must_use]
pub fn is_whole_map(grid: &usize) -> bool {
    *grid == whole_map()
}

/// Which pictures, without the pictures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFingerprint {
    /// For a person, e.g. `CIFAR-10 train, without labels`.
    pub description: String,
    /// How many pictures.
    pub pictures: u64,
    /// SHA-256 over names and contents.
    pub sha256: String,
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationFigure {
    /// Data set it was measured on.
    pub dataset: String,
    /// Metric, e.g. `knn_top1`, `linear_top1`.
    pub metric: String,
    /// What was measured: `this encoder`, `raw pixels`, `random initialisation`, …
    pub subject: String,
    /// The figure.
    pub value: f64,
    /// The command that made it.
    pub command: String,
}

impl Manifest {
    /// The version of the format that this program writes; it reads those before, too.
    pub const SCHEMA_VERSION: u32 = 2;

    /// `<name>-v<version>`, also the name of the folder.
    pub fn full_name(&self) -> String {
        full_name(&self.name, self.version)
    }

    /// Reads the text of a `manifest.json` and checks every field that can be checked alone.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        // The version comes first: a later format would fail on its fields with less to say.
        #[derive(Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let Version { schema_version } = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if schema_version == 0 || schema_version > Self::SCHEMA_VERSION {
            return Err(format!(
                "schema_version is {schema_version}, but this program reads 1 to {}: a later one wrote it",
                Self::SCHEMA_VERSION
            ));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Whether the fields are within their bounds.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn validate(&self) -> Result<(), String> {
        check_name(&self.name, self.version)?;
        self.preprocess.validate().map_err(|e| e.to_string())?;
        self.output.validate()?;
        if !self.files.contains_key(MODEL_FILE) {
            return Err(format!("files does not list {MODEL_FILE}"));
        }
        for (path, sha256) in &self.files {
            check_path(path)?;
            let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            if sha256.len() != 64 || !sha256.bytes().all(lower_hex) {
                return Err(format!("files: {path}: {sha256:?} is no SHA-256 in lower-case hex"));
            }
        }
        let whitened = self.training.as_ref().is_some_and(|training| training.whitened.is_some());
        if self.schema_version < 2 && (whitened || self.reference.is_some()) {
            return Err("reference and training.whitened are of schema_version 2".into());
        }
        if let Some(reference) = &self.reference {
            reference.validate()?;
            if !self.files.contains_key(REFERENCE_FILE) {
                return Err(format!("there is a reference, but files does not list {REFERENCE_FILE}"));
            }
        }
        let finite = |figure: &EvaluationFigure| figure.value.is_finite();
        match self.evaluation.iter().find(|figure| !finite(figure)) {
            Some(figure) => Err(format!("evaluation: {} is not finite", figure.metric)),
            None => Ok(()),
        }
    }
}

impl OutputSpec {
    /// The longest embedding that is taken.
    pub const MAX_DIM: usize = 65_536;

    /// Whether the fields are within their bounds.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn validate(&self) -> Result<(), String> {
        if self.dim == 0 || self.dim > Self::MAX_DIM {
            return Err(format!("output.dim is {}, but must be 1 to {}", self.dim, Self::MAX_DIM));
        }
        if !self.normalised {
            return Err("output.normalised must be true: the graph normalises".into());
        }
        Ok(())
    }
}

/// The ONNX graph of an artefact.
pub(crate) const MODEL_FILE: &str = "model.onnx";

/// `<name>-v<version>`.
pub(crate) fn full_name(name: &str, version: u32) -> String {
    format!("{name}-v{version}")
}

/// A name becomes a folder and a part of URLs, so it is kept plain.
pub(crate) fn check_name(name: &str, version: u32) -> Result<(), String> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 100 || name.starts_with(['.', '-']) || !name.bytes().all(plain) {
        return Err(format!(
            "name is {name:?}, but must be 1 to 100 lower-case letters, digits, '-', '_' or '.', and not start with '.' or '-'"
        ));
    }
    if version == 0 {
        return Err("version is 0, but versions are counted from 1".into());
    }
    Ok(())
}

/// A relative path that stays inside the artefact.
fn check_path(path: &str) -> Result<(), String> {
    let good =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', ':']);
    if path.len() > 255 || !path.split('/').all(good) {
        return Err(format!("files: {path:?} is no relative path inside the artefact"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn manifest() -> Value {
        json!({
            "schema_version": 1, "name": "byol-test", "version": 3, "licence": "CC0-1.0", "description": "A test.",
            "preprocess": {"policy": "squash", "height": 4, "width": 4, "filter": "bilinear", "background": [255, 255, 255]},
            "output": {"dim": 48, "normalised": true}, "contract": "0123456789abcdef",
            "files": {"model.onnx": "a".repeat(64), "golden/0.png": "0".repeat(64)}, "evaluation": [],
            "training": {
                "method": "byol", "arch": "resnet18", "width": 0.25, "image_size": 32, "norm": "batch_norm", "parameters": 1,
                "data": {"description": "d", "pictures": 2, "sha256": "s"}, "epochs": 1, "steps": 2, "batch_size": 3, "seed": 4,
                "command": "c", "config": {"z": 1, "a": [2]}, "started": "2026-01-01T00:00:00Z", "seconds": 1.5
            }
        })
    }

    fn parse(value: &Value) -> Result<Manifest, String> {
        Manifest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn text_and_back() {
        let read = parse(&manifest()).unwrap();
        assert_eq!(read.full_name(), "byol-test-v3");
        let again = Manifest::parse(serde_json::to_string(&read).unwrap().as_bytes()).unwrap();
        assert_eq!(again, read);
    }

    #[test]
    fn refuses_what_is_out_of_bounds() {
        let reference = json!({
            "pictures": 80, "held_out": 20, "window": 64, "distance_mean": 0.1, "distance_p95": 0.2, "command": "c"
        });
        let cases: &[(&str, Value, &str)] = &[
            ("/schema_version", json!(0), "schema_version"),
            ("/schema_version", json!(3), "a later one"),
            ("/reference", reference.clone(), "schema_version 2"),
            ("/training/whitened", json!(true), "schema_version 2"),
            ("/name", json!("../evil"), "name"),
            ("/name", json!("Upper"), "name"),
            ("/name", json!(""), "name"),
            ("/version", json!(0), "version"),
            ("/output/dim", json!(0), "output.dim"),
            ("/output/normalised", json!(false), "normalised"),
            ("/contract", json!("xyz"), "16 lower-case"),
            ("/files", json!({}), "model.onnx"),
            ("/files", json!({"model.onnx": "a".repeat(64), "../x": "a".repeat(64)}), "relative path"),
            ("/files", json!({"model.onnx": "a".repeat(64), "/etc/passwd": "a".repeat(64)}), "relative path"),
            ("/files", json!({"model.onnx": "A".repeat(64)}), "SHA-256"),
            ("/preprocess/height", json!(0), "height"),
            ("/preprocess/extra", json!(1), "unknown field"),
            ("/extra", json!(1), "unknown field"),
            ("/training/extra", json!(1), "unknown field"),
        ];
        for (path, value, expected) in cases {
            let mut broken = manifest();
            let (parent, key) = path.rsplit_once('/').unwrap();
            broken.pointer_mut(parent).unwrap()[key] = value.clone();
            let error = parse(&broken).unwrap_err();
            assert!(error.contains(expected), "{path}: {error}");
        }
    }

    #[test]
    fn a_reference_comes_with_its_file_and_within_its_bounds() {
        let mut good = manifest();
        good["schema_version"] = json!(2);
        good["training"]["whitened"] = json!(false);
        good["files"][REFERENCE_FILE] = json!("b".repeat(64));
        good["reference"] = json!({
            "pictures": 80, "held_out": 20, "window": 64, "distance_mean": 0.1, "distance_p95": 0.2, "command": "c"
        });
        assert_eq!(parse(&good).unwrap().reference.unwrap().window, 64);
        for (key, value) in
            [("window", json!(1)), ("distance_mean", json!(0)), ("distance_p95", json!(9)), ("x", json!(1))]
        {
            let mut broken = good.clone();
            broken["reference"][key] = value;
            let error = parse(&broken).unwrap_err();
            assert!(error.contains(key), "{key}: {error}");
        }
        good["files"].as_object_mut().unwrap().remove(REFERENCE_FILE);
        assert!(parse(&good).unwrap_err().contains(REFERENCE_FILE));
    }

    #[test]
    fn refuses_what_is_no_json() {
        for text in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", b"{\"schema_version\":1}"] {
            assert!(Manifest::parse(text).is_err());
        }
    }
}
