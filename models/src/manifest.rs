//! The manifest of an artefact: what it is, where it came from, how well it does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contract::Contract;
use crate::preprocess::Preprocess;

/// `manifest.json` of an artefact. Unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format: [`Manifest::SCHEMA_VERSION`].
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
}

/// The vectors that the graph gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Length of an embedding.
    pub dim: usize,
    /// Whether the graph normalises it to L2 norm 1. Always true for schema version 1.
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
    /// The version of the format that this program writes and reads.
    pub const SCHEMA_VERSION: u32 = 1;

    /// `<name>-v<version>`, also the name of the folder.
    pub fn full_name(&self) -> String {
        format!("{}-v{}", self.name, self.version)
    }
}
