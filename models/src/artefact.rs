//! The artefact: a folder that holds one encoder, immutable once written.

mod successor;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::contract::Contract;
use crate::digest::{sha256_file, sha256_hex};
use crate::distribution::Distribution;
use crate::golden::{Golden, GoldenError};
use crate::manifest::{EvaluationFigure, MODEL_FILE, Manifest, OutputSpec, Training, check_name, full_name};
use crate::preprocess::Preprocess;
use crate::reference::{Measured, REFERENCE_FILE};
pub use successor::next_version;

/// An artefact whose files were checked against its manifest.
#[derive(Debug, Clone)]
pub struct Artefact {
    dir: PathBuf,
    manifest: Manifest,
}

/// What the writer of an artefact says; hashes, contract and file list are computed.
#[derive(Debug, Clone)]
pub struct ArtefactDraft {
    /// See [`Manifest::name`].
    pub name: String,
    /// See [`Manifest::version`].
    pub version: u32,
    /// See [`Manifest::licence`].
    pub licence: String,
    /// See [`Manifest::description`].
    pub description: String,
    /// See [`Manifest::preprocess`].
    pub preprocess: Preprocess,
    /// See [`Manifest::output`].
    pub output: OutputSpec,
    /// See [`Manifest::training`].
    pub training: Option<Training>,
    /// See [`Manifest::evaluation`].
    pub evaluation: Vec<EvaluationFigure>,
    /// See [`Manifest::reference`].
    pub reference: Option<Measured>,
}

/// Why a folder is no artefact, or could not be written as one.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// manifest.json is not what it must be.
    #[error("{path}: {reason}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file differs from the manifest.
    #[error(
        "{path}: its SHA-256 is {actual}, but the manifest says {expected}: the artefact was changed or damaged"
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// From the manifest.
        expected: String,
        /// Of the file.
        actual: String,
    },
    /// The contract of the manifest is not the one of its content.
    #[error("{path}: its contract is {actual}, but the manifest says {expected}")]
    Contract {
        /// The manifest.
        path: PathBuf,
        /// From the manifest.
        expected: Contract,
        /// Computed.
        actual: Contract,
    },
    /// An artefact of this name exists.
    #[error("{path} exists already, and artefacts are immutable: choose another version")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The golden pictures are malformed.
    #[error(transparent)]
    Golden(#[from] GoldenError),
}

impl Artefact {
    /// Reads the manifest alone, and checks nothing else.
    ///
    /// # Errors
    /// When it cannot be read, or is no manifest.
    pub fn manifest_of(dir: &Path) -> Result<Manifest, ArtefactError> {
        let path = dir.join(MANIFEST_FILE);
        let text = read_bounded(&path, MAX_MANIFEST_BYTES)?;
        Manifest::parse(&text).map_err(|reason| ArtefactError::Manifest { path, reason })
    }

    /// Reads the manifest, checks the SHA-256 of every file and recomputes the contract.
    ///
    /// # Errors
    /// See [`ArtefactError`].
    pub fn open(dir: &Path) -> Result<Self, ArtefactError> {
        let manifest = Self::manifest_of(dir)?;
        for (name, expected) in &manifest.files {
            let file = dir.join(name);
            let actual = sha256_file(&file).map_err(|source| io_error(&file, source))?;
            if actual != *expected {
                let expected = expected.clone();
                return Err(ArtefactError::Hash { path: file, expected, actual });
            }
        }
        let model = manifest.files.get(MODEL_FILE).map_or("", String::as_str);
        let actual = compute_contract(model, &manifest.preprocess, &manifest.output);
        if actual != manifest.contract {
            let (path, expected) = (dir.join(MANIFEST_FILE), manifest.contract);
            return Err(ArtefactError::Contract { path, expected, actual });
        }
        Ok(Self { dir: dir.into(), manifest })
    }

    /// The content of a file that the manifest lists.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, ArtefactError> {
        let path = self.dir.join(name);
        fs::read(&path).map_err(|source| io_error(&path, source))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Contract of every vector made with this artefact.
    pub fn contract(&self) -> Contract {
        self.manifest.contract
    }

    /// The ONNX graph.
    pub fn model_path(&self) -> PathBuf {
        self.dir.join(MODEL_FILE)
    }

    /// What the encoder's embeddings look like together on pictures like those it was trained on; `None` where nobody
    /// measured it.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn reference(&self) -> Result<Option<Measured>, ArtefactError> {
        let Some(reference) = self.manifest.reference.clone() else { return Ok(None) };
        let path = self.dir.join(REFERENCE_FILE);
        let bytes = read_bounded(&path, MAX_REFERENCE_BYTES)?;
        let distribution = Distribution::parse(&bytes, self.manifest.output.dim)
            .map_err(|error| ArtefactError::Manifest { path, reason: error.to_string() })?;
        Ok(Some(Measured { reference, distribution }))
    }

    /// The golden pictures.
    ///
    /// # Errors
    /// Files that are missing or malformed.
    pub fn golden(&self) -> Result<Golden, GoldenError> {
        Golden::read(&self.dir.join(GOLDEN_FOLDER))
    }
}

/// The contract: the first 16 hexadecimal digits of SHA-256 over the canonical JSON (keys
/// sorted, no spaces) of `{"model":<sha256>,"output":…,"preprocess":…}`.
pub fn compute_contract(model_sha256: &str, preprocess: &Preprocess, output: &OutputSpec) -> Contract {
    let parts = serde_json::json!({
        "model": model_sha256,
        "preprocess": preprocess,
        "output": output,
    });
    let mut text = String::new();
    write_canonical(&parts, &mut text);
    let digest = Sha256::digest(text.as_bytes());
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    Contract::from_bytes(first)
}

/// JSON with sorted keys and no spaces, whatever order the map keeps.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push('{');
            for (i, (key, value)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// Writes `<models_dir>/<name>-v<version>/` at once: into a temporary folder beside it,
/// fsync, rename. An artefact that exists is never overwritten.
///
/// # Errors
/// See [`ArtefactError`].
pub fn write_artefact(
    models_dir: &Path,
    draft: &ArtefactDraft,
    onnx: &[u8],
    golden: &Golden,
    report_html: &str,
) -> Result<PathBuf, ArtefactError> {
    write_artefact_with(models_dir, draft, onnx, golden, report_html, &[])
}

/// [`write_artefact`] with further files beside the graph, by name: the manifest lists them, serving does not need them.
///
/// # Errors
/// See [`ArtefactError`].
pub fn write_artefact_with(
    models_dir: &Path,
    draft: &ArtefactDraft,
    onnx: &[u8],
    golden: &Golden,
    report_html: &str,
    further: &[(&str, &[u8])],
) -> Result<PathBuf, ArtefactError> {
    let full_name = full_name(&draft.name, draft.version);
    let target = models_dir.join(&full_name);
    let refuse = |reason: String| ArtefactError::Manifest { path: target.join(MANIFEST_FILE), reason };
    check_name(&draft.name, draft.version).map_err(refuse)?;
    if let Some(picture) = golden.pictures.iter().find(|p| p.expected.dim() != draft.output.dim) {
        let (found, dim) = (picture.expected.dim(), draft.output.dim);
        return Err(refuse(format!("golden {}: {found} numbers where output.dim is {dim}", picture.name)));
    }
    let mut contents = vec![
        (MODEL_FILE.to_owned(), onnx.to_vec()),
        (REPORT_FILE.to_owned(), report_html.as_bytes().to_vec()),
    ];
    for (name, bytes) in golden.files()? {
        contents.push((format!("{GOLDEN_FOLDER}/{name}"), bytes));
    }
    if let Some(measured) = &draft.reference {
        let bytes = measured.distribution.to_bytes().map_err(|error| refuse(error.to_string()))?;
        contents.push((REFERENCE_FILE.to_owned(), bytes));
    }
    for (name, bytes) in further {
        if name.contains('/') || *name == MANIFEST_FILE || contents.iter().any(|(taken, _)| taken == name) {
            return Err(refuse(format!("files: {name:?} cannot be added beside the graph")));
        }
        contents.push(((*name).to_owned(), bytes.to_vec()));
    }
    let manifest = manifest_of(draft, &contents);
    manifest.validate().map_err(refuse)?;
    let mut text = serde_json::to_vec_pretty(&manifest).map_err(|e| refuse(e.to_string()))?;
    text.push(b'\n');
    contents.push((MANIFEST_FILE.to_owned(), text));

    fs::create_dir_all(models_dir).map_err(|e| io_error(models_dir, e))?;
    if target.exists() {
        return Err(ArtefactError::Exists { path: target });
    }
    static PARTS: AtomicU64 = AtomicU64::new(0);
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    let part = models_dir.join(format!(".{full_name}.part-{}-{number}", std::process::id()));
    let written = write_all(&part, &contents).and_then(|()| rename_new(&part, &target));
    if written.is_err() {
        // What failed is reported; a part that cannot be removed either adds nothing to it.
        let _ = fs::remove_dir_all(&part);
    }
    written?;
    sync_dir(models_dir)?;
    Ok(target)
}

fn manifest_of(draft: &ArtefactDraft, contents: &[(String, Vec<u8>)]) -> Manifest {
    let files: BTreeMap<String, String> =
        contents.iter().map(|(name, bytes)| (name.clone(), sha256_hex(bytes))).collect();
    let model = files.get(MODEL_FILE).map_or("", String::as_str);
    Manifest {
        schema_version: Manifest::SCHEMA_VERSION,
        name: draft.name.clone(),
        version: draft.version,
        licence: draft.licence.clone(),
        description: draft.description.clone(),
        preprocess: draft.preprocess.clone(),
        output: draft.output.clone(),
        contract: compute_contract(model, &draft.preprocess, &draft.output),
        files,
        training: draft.training.clone(),
        evaluation: draft.evaluation.clone(),
        reference: draft.reference.as_ref().map(|measured| measured.reference.clone()),
    }
}

fn write_all(dir: &Path, contents: &[(String, Vec<u8>)]) -> Result<(), ArtefactError> {
    let golden = dir.join(GOLDEN_FOLDER);
    // A part left by a killed process of the same number is rubbish.
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(|e| io_error(dir, e))?;
    }
    fs::create_dir_all(&golden).map_err(|e| io_error(&golden, e))?;
    for (name, bytes) in contents {
        let path = dir.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|e| io_error(&path, e))?;
    }
    sync_dir(&golden)?;
    sync_dir(dir)
}

/// Renames a folder onto a name that must be free. An empty folder of that name would be
/// replaced, a filled one is refused by the system itself, so a race loses nothing.
fn rename_new(part: &Path, target: &Path) -> Result<(), ArtefactError> {
    fs::rename(part, target).map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
            ArtefactError::Exists { path: target.into() }
        }
        _ => io_error(target, error),
    })
}

fn sync_dir(dir: &Path) -> Result<(), ArtefactError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(|e| io_error(dir, e))
}

fn io_error(path: &Path, source: io::Error) -> ArtefactError {
    ArtefactError::Io { path: path.into(), source }
}

fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, ArtefactError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| io_error(path, e))?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| io_error(path, e))?;
    if bytes.len() as u64 > max {
        let reason = format!("it is longer than {max} bytes");
        return Err(ArtefactError::Manifest { path: path.into(), reason });
    }
    Ok(bytes)
}

const MANIFEST_FILE: &str = "manifest.json";
const GOLDEN_FOLDER: &str = "golden";
const REPORT_FILE: &str = "REPORT.html";
const MAX_MANIFEST_BYTES: u64 = 4 * 1024 * 1024;
/// A little more than the longest vectors' takes.
const MAX_REFERENCE_BYTES: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests;
