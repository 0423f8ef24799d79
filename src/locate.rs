//! Finding artefacts: the one to serve, and all in a folder.

use std::path::{Path, PathBuf};

use latentd_model::{Artefact, ArtefactError, Contract};

use crate::config::Config;

/// Why there is no artefact to serve.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// Nothing was found.
    #[error(
        "no encoder was found in {looked_at}: name an artefact folder with --model, or train one with latentd-trainer"
    )]
    NotFound {
        /// The folders looked at.
        looked_at: String,
    },
    /// The artefact is damaged.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
}

/// Opens the artefact that `--model` names, else the newest in `--models-dir`, else the newest beside the executable.
///
/// # Errors
/// When none is there, or it is damaged.
pub fn open(config: &Config) -> Result<Artefact, LocateError> {
    open_for(config, &[])
}

/// As [`open`], but without `--model` an artefact of one of these contracts goes before a newer one: a store that
/// holds its vectors can serve no other.
///
/// # Errors
/// As [`open`].
pub fn open_for(config: &Config, contracts: &[Contract]) -> Result<Artefact, LocateError> {
    if !config.model.as_os_str().is_empty() {
        return Ok(Artefact::open(&config.model)?);
    }
    let folders = folders(config);
    let of_contract =
        |path: &PathBuf| Artefact::manifest_of(path).is_ok_and(|m| contracts.contains(&m.contract));
    for folder in folders.iter().filter(|_| !contracts.is_empty()) {
        if let Some(path) = list(folder).into_iter().rev().find(of_contract) {
            return Ok(Artefact::open(&path)?);
        }
    }
    for folder in &folders {
        let mut found = list(folder);
        // An int8 sibling has vectors of its own: it serves when it is named, not by being there.
        if let Some(float) = found.iter().rposition(|path| !is_int8(path)) {
            found.truncate(float + 1);
        }
        if let Some(newest) = found.pop() {
            return Ok(Artefact::open(&newest)?);
        }
    }
    let looked_at = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(LocateError::NotFound { looked_at })
}

/// Folders that may hold artefacts: `--models-dir`, then `models` beside the executable.
#[must_use]
pub fn folders(config: &Config) -> Vec<PathBuf> {
    let exe = std::env::current_exe().ok();
    let beside = exe.as_deref().and_then(Path::parent).map(|dir| dir.join("models"));
    std::iter::once(config.models_dir.clone()).chain(beside).collect()
}

/// The artefact folder of a full name, `<name>-v<N>`, in [`folders`].
#[must_use]
pub fn named(config: &Config, name: &Path) -> Option<PathBuf> {
    // A name alone, so that nothing outside the folders is reached.
    let plain = name.components().count() == 1 && name.file_name() == Some(name.as_os_str());
    let paths = folders(config).into_iter().map(|folder| folder.join(name));
    paths.filter(|_| plain).find(|path| path.join("manifest.json").is_file())
}

/// Artefact folders `<name>-v<N>` in `folder`, by name and version, the newest last.
#[must_use]
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| path.join("manifest.json").is_file());
    let mut found: Vec<_> = paths.filter_map(|path| Some((name_and_version(&path)?, path))).collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn is_int8(path: &Path) -> bool {
    name_and_version(path).is_some_and(|(name, _)| name.ends_with(latentd_model::quantise::INT8_SUFFIX))
}

fn name_and_version(path: &Path) -> Option<(String, u32)> {
    let (name, version) = path.file_name()?.to_str()?.rsplit_once("-v")?;
    Some((name.to_owned(), version.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a-v10", "a-v9", "a-v2", "not-an-artefact", "a-vx"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("manifest.json"), "{}").unwrap();
        }
        std::fs::create_dir(dir.path().join("a-v11")).unwrap();
        let names: Vec<_> = list(dir.path()).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a-v2", "a-v9", "a-v10"]);
    }
}
