//! Records: an encoder as the store remembers it, and where its artefact is.

use std::path::{Path, PathBuf};

use latentd_model::{Artefact, ArtefactError, Contract};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::locate;

/// An encoder as the store remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// `<name>-v<N>`.
    pub name: String,
    /// Its folder; on the machine where it was activated.
    pub dir: PathBuf,
    /// Its contract.
    pub contract: Contract,
}

/// Why the encoder of a record cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MissingEncoder {
    /// No folder has it.
    #[error(
        "the store's vectors are those of {name} with contract {contract}, which was activated, but it is neither at {dir} nor in {folders}: put it back",
        dir = dir.display()
    )]
    Nowhere {
        /// The encoder.
        name: String,
        /// Its contract.
        contract: Contract,
        /// Where it was activated from.
        dir: PathBuf,
        /// Where else was looked.
        folders: String,
    },
    /// What lies there is another one.
    #[error(
        "the store's vectors are those of {name} with contract {expected}, but {dir} has contract {actual}",
        dir = dir.display()
    )]
    Another {
        /// The encoder.
        name: String,
        /// The store's contract.
        expected: Contract,
        /// The folder.
        dir: PathBuf,
        /// Its contract.
        actual: Contract,
    },
    /// It is damaged.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
}

impl ModelRecord {
    /// Of an artefact.
    #[must_use]
    pub fn of(artefact: &Artefact) -> Self {
        let dir = artefact.dir();
        Self {
            name: artefact.manifest().full_name(),
            dir: dir.canonicalize().unwrap_or_else(|_| dir.to_owned()),
            contract: artefact.contract(),
        }
    }

    /// Its folder on this machine: `--model` if that has its contract, the one it was activated from, that of its name,
    /// or of its contract.
    fn find(&self, config: &Config) -> Option<PathBuf> {
        let fits =
            |dir: &PathBuf| Artefact::manifest_of(dir).is_ok_and(|found| found.contract == self.contract);
        // Another version may tell more of the same encoder.
        let asked = Some(config.model.clone()).filter(|dir| !dir.as_os_str().is_empty() && fits(dir));
        if asked.is_some() {
            return asked;
        }
        if self.dir.join("manifest.json").is_file() {
            return Some(self.dir.clone());
        }
        let named = locate::named(config, Path::new(&self.name));
        let folders = locate::folders(config);
        let listed = || folders.iter().flat_map(|folder| locate::list(folder)).find(fits);
        named.clone().filter(fits).or_else(listed).or(named)
    }

    /// Its artefact.
    ///
    /// # Errors
    /// When it is nowhere, damaged, or another one lies in its place.
    pub fn open(&self, config: &Config) -> Result<Artefact, MissingEncoder> {
        let (name, contract) = (self.name.clone(), self.contract);
        let Some(dir) = self.find(config) else {
            let folders = locate::folders(config);
            let folders = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>();
            let folders = folders.join(", ");
            return Err(MissingEncoder::Nowhere { name, contract, dir: self.dir.clone(), folders });
        };
        let artefact = Artefact::open(&dir)?;
        if artefact.contract() != contract {
            let actual = artefact.contract();
            return Err(MissingEncoder::Another { name, expected: contract, dir, actual });
        }
        Ok(artefact)
    }
}
