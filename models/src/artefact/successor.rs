//! A successor: the next version of an artefact, the same encoder with more known of it.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Artefact, ArtefactDraft, ArtefactError, REPORT_FILE, io_error, write_artefact_with};
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
        let manifest = &self.manifest;
        let draft = ArtefactDraft {
            name: manifest.name.clone(),
            version,
            licence: manifest.licence.clone(),
            description: manifest.description.clone(),
            preprocess: manifest.preprocess.clone(),
            output: manifest.output.clone(),
            training: manifest.training.clone(),
            evaluation: manifest.evaluation.clone(),
            reference: Some(reference),
        };
        let read = |name: &str| {
            let path = self.dir.join(name);
            fs::read(&path).map_err(|source| io_error(&path, source))
        };
        let known =
            |name: &str| [MODEL_FILE, REPORT_FILE, REFERENCE_FILE].contains(&name) || name.contains('/');
        let mut further = Vec::new();
        for name in manifest.files.keys().filter(|name| !known(name)) {
            further.push((name.as_str(), read(name)?));
        }
        let further: Vec<_> = further.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let report = match manifest.files.contains_key(REPORT_FILE) {
            true => read(REPORT_FILE)?,
            false => Vec::new(),
        };
        let report = String::from_utf8_lossy(&report);
        write_artefact_with(models_dir, &draft, &read(MODEL_FILE)?, &self.golden()?, &report, &further)
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
