//! A successor: another version of an artefact, with its graph and weights.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Artefact, ArtefactDraft, ArtefactError, REPORT_FILE, write_artefact_with};
use crate::golden::Golden;
use crate::manifest::MODEL_FILE;
use crate::reference::{Measured, REFERENCE_FILE};

impl Artefact {
    /// Writes the same encoder as `version`, with this reference, into `models_dir`. The contract stays: its vectors are
    /// the same.
    ///
    /// # Errors
    /// See [`ArtefactError`].
    pub fn write_with_reference(
        &self,
        models_dir: &Path,
        version: u32,
        reference: Measured,
    ) -> Result<PathBuf, ArtefactError> {
        let draft = ArtefactDraft { reference: Some(reference), ..self.draft(version) };
        self.write_successor(models_dir, &draft, &self.read(MODEL_FILE)?, &self.golden()?)
    }

    /// What another version says where it says what this one does. It has no reference: its vectors may be others.
    pub(crate) fn draft(&self, version: u32) -> ArtefactDraft {
        let manifest = &self.manifest;
        ArtefactDraft {
            name: manifest.name.clone(),
            version,
            licence: manifest.licence.clone(),
            description: manifest.description.clone(),
            preprocess: manifest.preprocess.clone(),
            output: manifest.output.clone(),
            training: manifest.training.clone(),
            evaluation: manifest.evaluation.clone(),
            reference: None,
        }
    }

    /// Writes `draft` with this graph, and with the report and further files of this artefact.
    ///
    /// # Errors
    /// See [`ArtefactError`].
    pub(crate) fn write_successor(
        &self,
        models_dir: &Path,
        draft: &ArtefactDraft,
        onnx: &[u8],
        golden: &Golden,
    ) -> Result<PathBuf, ArtefactError> {
        let files = &self.manifest.files;
        let known =
            |name: &str| [MODEL_FILE, REPORT_FILE, REFERENCE_FILE].contains(&name) || name.contains('/');
        let mut further = Vec::new();
        for name in files.keys().filter(|name| !known(name)) {
            further.push((name.as_str(), self.read(name)?));
        }
        let further: Vec<_> = further.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let report = match files.contains_key(REPORT_FILE) {
            true => self.read(REPORT_FILE)?,
            false => Vec::new(),
        };
        let report = String::from_utf8_lossy(&report);
        write_artefact_with(models_dir, draft, onnx, golden, &report, &further)
    }
}

/// One more than the highest version of that name in the folder; 1 where there is none.
///
/// # Errors
/// When the folder cannot be listed.
pub fn next_version(models_dir: &Path, name: &str) -> std::io::Result<u32> {
    let prefix = format!("{name}-v");
    let mut next = 1;
    for entry in fs::read_dir(models_dir)? {
        let file_name = entry?.file_name();
        let version = file_name.to_str().and_then(|n| n.strip_prefix(&prefix)).and_then(|v| v.parse().ok());
        next = next.max(version.unwrap_or(0_u32).saturating_add(1));
    }
    Ok(next)
}
