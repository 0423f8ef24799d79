//! Revision: the same weights as a new version whose files are decoded in another way.

use std::path::{Path, PathBuf};

use crate::artefact::{Artefact, ArtefactDraft, ArtefactError, compute_contract};
use crate::compare::{CompareError, Comparison, Side, compare_subject};
use crate::decode::Decoding;
use crate::digest::sha256_hex;
use crate::encoder::{Encoder, EncoderError, GraphShape, SessionOptions};
use crate::gallery::Subject;
use crate::golden::{GoldenError, GoldenReport};
use crate::manifest::{EvaluationFigure, MODEL_FILE, full_name};
use crate::preprocess::Preprocess;
use crate::verify::verify;

/// Neighbours that are compared.
const K: usize = 10;

/// Why there is no revision.
#[derive(Debug, thiserror::Error)]
pub enum ReviseError {
    /// Nothing would change.
    #[error("{0} decodes its files in that way already")]
    Same(String),
    /// The artefact cannot be read or the new one not written.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// The graph cannot run.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// Golden pictures cannot be read.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// The two versions cannot be compared.
    #[error(transparent)]
    Compare(#[from] CompareError),
}

/// A revision that was written.
#[derive(Debug)]
pub struct Revised {
    /// Its folder.
    pub dir: PathBuf,
    /// The golden check of what was written.
    pub golden: GoldenReport,
    /// The old version against the new one on the pictures given.
    pub comparison: Comparison,
}

/// Writes `artefact` once more, as `version`, with files decoded as `decoding` says: the same graph and weights, golden
/// vectors and a contract of its own. `pictures` tell how far neighbours move, which the manifest notes. Figures that
/// were measured before stay: they are the weights'. A reference of the embeddings is left out: measure it anew.
///
/// # Errors
/// See [`ReviseError`].
pub fn revise(
    artefact: &Artefact,
    decoding: Decoding,
    version: u32,
    pictures: &[PathBuf],
    models_dir: &Path,
    command: &str,
) -> Result<Revised, ReviseError> {
    let manifest = artefact.manifest();
    let preprocess = Preprocess { decoding, ..manifest.preprocess.clone() };
    if preprocess == manifest.preprocess {
        return Err(ReviseError::Same(manifest.full_name()));
    }
    let onnx = artefact.read(MODEL_FILE)?;
    let mut encoder = Encoder::from_onnx(&onnx, GraphShape::of(manifest), &SessionOptions::default())?;
    let golden = artefact.golden()?.embedded_again(&preprocess, &mut encoder)?;
    let mut draft = ArtefactDraft { preprocess, ..artefact.draft(version) };
    let new = Side {
        name: full_name(&draft.name, version),
        contract: compute_contract(&sha256_hex(&onnx), &draft.preprocess, &draft.output),
    };
    let subject = Subject::graph(&onnx, &draft.preprocess, draft.output.dim);
    let comparison = compare_subject(artefact, subject, new, pictures, K)?;
    draft.evaluation.push(EvaluationFigure {
        dataset: format!("{} pictures", comparison.pictures.len()),
        metric: "overlap_at_10".to_owned(),
        subject: format!("this encoder against {}", manifest.full_name()),
        value: comparison.mean_overlap,
        command: command.to_owned(),
    });
    let dir = artefact.write_successor(models_dir, &draft, &onnx, &golden)?;
    let golden = verify::<ReviseError>(&Artefact::open(&dir)?)?;
    Ok(Revised { dir, golden, comparison })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::decode::Colour;
    use crate::golden::Golden;

    fn bundled() -> PathBuf {
        let models = Path::new(env!("CARGO_MANIFEST_DIR"));
        let newest = |dir: &PathBuf| {
            dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("byol-cifar10-r18w25-v"))
        };
        let folders = std::fs::read_dir(models).unwrap().map(|entry| entry.unwrap().path());
        folders.filter(newest).max().unwrap()
    }

    fn pictures() -> Vec<PathBuf> {
        let folders = [Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"), bundled().join("golden")];
        let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
        let files = files.map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|end| end == "jpg")).collect();
        files.sort();
        files
    }

    #[test]
    fn a_revision_has_the_weights_and_vectors_close_to_the_old_ones() {
        let artefact = Artefact::open(&bundled()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let old = artefact.manifest().preprocess.decoding;
        let gap = if old.reducing_gap == Some(3) { 2 } else { 3 };
        let decoding = Decoding { reducing_gap: Some(gap), colour: Colour::Srgb };
        let revised = revise(&artefact, decoding, 77, &pictures(), dir.path(), "test").unwrap();
        assert!(revised.golden.worst > Golden::MIN_COSINE);
        assert!(revised.comparison.mean_overlap > 0.7, "{}", revised.comparison.mean_overlap);
        let written = Artefact::open(&revised.dir).unwrap();
        let (before, after) = (artefact.manifest(), written.manifest());
        assert_eq!(after.preprocess.decoding, decoding);
        assert_ne!(after.contract, before.contract);
        for file in ["model.onnx", "REPORT.html", "weights.safetensors"] {
            assert_eq!(after.files[file], before.files[file], "{file}");
        }
        assert_eq!(after.evaluation.len(), before.evaluation.len() + 1);
        // Only the artefact is left there.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let again = revise(&written, decoding, 78, &pictures(), dir.path(), "test").unwrap_err();
        assert!(matches!(again, ReviseError::Same(_)), "{again}");
    }
}
