//! The encoder that there is: what a refresh goes on from and compares with.

use std::path::{Path, PathBuf};

use anyhow::Context;
use latentd_model::Artefact;

use crate::cli::readout::ReadoutOptions;
use crate::cli::subject::{Evaluated, TrainedRun, Which};

/// The current encoder.
pub struct Current {
    /// What the training starts from.
    pub init: PathBuf,
    /// What the new encoder is compared with.
    pub evaluated: Evaluated,
    /// How it is called in tables.
    pub label: String,
    /// Contract, or the run's data and step: changes whenever the encoder does.
    pub id: String,
    /// How its embeddings come out; the next version's do likewise.
    pub readout: ReadoutOptions,
    /// Licence of its weights, where it says so.
    pub licence: Option<String>,
    /// What it was trained on, in words.
    pub data: Option<String>,
}

impl Current {
    /// From an artefact's folder.
    pub fn artefact(dir: &Path) -> anyhow::Result<Self> {
        let artefact = Artefact::open(dir)?;
        let manifest = artefact.manifest();
        Ok(Self {
            init: dir.to_owned(),
            label: manifest.full_name(),
            id: artefact.contract().to_string(),
            readout: ReadoutOptions::of(&artefact),
            licence: Some(manifest.licence.clone()),
            data: manifest.training.as_ref().map(|t| t.data.description.clone()),
            evaluated: Evaluated::Artefact(Box::new(artefact)),
        })
    }

    /// From a run; compared with the newest artefact of that name where there is one, otherwise with the run.
    pub fn run(dir: &Path, models: &Path, name: &str) -> anyhow::Result<Self> {
        let run = TrainedRun::open(dir, Which::default())?;
        if let Some((_, artefact)) = newest(models, name) {
            return Ok(Self { init: dir.to_owned(), ..Self::artefact(&artefact)? });
        }
        Ok(Self {
            init: dir.to_owned(),
            label: name.to_owned(),
            id: format!("run {:.16} step {}", run.info.fingerprint, run.checkpoint.header.step),
            readout: ReadoutOptions::default(),
            licence: None,
            data: None,
            evaluated: Evaluated::Run(Box::new(run)),
        })
    }
}

/// The artefact that a path names: itself, or the newest version of `models/NAME`.
pub fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    if path.join("manifest.json").is_file() {
        return Ok(path.to_owned());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    newest(folder, &name).map(|found| found.1).with_context(|| {
        format!("{}: no artefact (manifest.json) there, and no version {name}-v<N> beside it", path.display())
    })
}

/// The newest version of an artefact in a folder.
pub fn newest(models: &Path, name: &str) -> Option<(u32, PathBuf)> {
    let prefix = format!("{name}-v");
    let entries = std::fs::read_dir(models).ok()?.filter_map(Result::ok);
    let version = |entry: std::fs::DirEntry| {
        let version: u32 = entry.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok()?;
        entry.path().join("manifest.json").is_file().then(|| (version, entry.path()))
    };
    entries.filter_map(version).max()
}

/// The name of an artefact without its version.
pub fn name_of(dir: &Path) -> Option<String> {
    Some(Artefact::open(dir).ok()?.manifest().name.clone())
}
