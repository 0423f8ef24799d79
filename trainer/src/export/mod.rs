//! Export: from trained weights to an artefact that a server can load.
//!
//! The graph is written, opened in ONNX Runtime and compared with the trained network on real
//! pictures before anything lands in the models folder; what lands there is opened once more.

pub mod crop;
pub mod graph;
pub mod parity;
pub mod resnet;
pub mod samples;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use latentd_model::artefact::next_version;
use latentd_model::encoder::GraphShape;
use latentd_model::gallery::Subject;
use latentd_model::{
    Artefact, ArtefactDraft, ArtefactError, Contract, Embedding, Encoder, EncoderError, EvaluationFigure,
    Golden, GoldenError, GoldenPicture, GoldenReport, OutputSpec, Pixels, Preprocess, Reference,
    ReferenceError, SessionOptions, Training, write_artefact_with,
};

use crate::init::WEIGHTS_FILE;
use crate::nn::config::EncoderConfig;
use crate::nn::weights::Weights;
use crate::whiten::Whitening;
pub use crop::eval_preprocess;
pub use parity::{Parity, ParityError};
pub use resnet::{GraphError, to_onnx};
use samples::Sample;

/// Pictures that a folder must have at the least: enough for the golden check.
const MIN_PICTURES: usize = samples::GOLDEN;
/// Pictures that ONNX Runtime embeds in one run.
const BATCH: usize = 32;
/// How often a version that somebody else took meanwhile is counted up.
const VERSION_TRIES: u32 = 16;

/// Everything that makes an artefact, except the trained network that it is checked against.
#[derive(Debug)]
pub struct Export<'a> {
    /// The folder of artefacts, `models/`; created when missing.
    pub models_dir: &'a Path,
    /// Name without the version, e.g. `byol-cifar10-r18w25`.
    pub name: &'a str,
    /// The next free version when not given.
    pub version: Option<u32>,
    /// SPDX expression of the weights.
    pub licence: &'a str,
    /// One or two sentences for a person.
    pub description: &'a str,
    /// The encoder's shape.
    pub encoder: &'a EncoderConfig,
    /// The encoder's weights, running statistics included.
    pub weights: &'a Weights,
    /// Where the weights came from.
    pub training: Option<Training>,
    /// What was measured on the encoder; the parity is added to it.
    pub evaluation: Vec<EvaluationFigure>,
    /// The networks as a checkpoint without an optimiser, for training on; `None` leaves them out.
    pub networks: Option<&'a [u8]>,
    /// The report, a self-contained HTML page.
    pub report_html: &'a str,
    /// The command line that exports, noted beside the parity.
    pub command: &'a str,
    /// Folder of the real pictures for parity and golden check.
    pub pictures_root: &'a Path,
    /// Files in it, relative and sorted. Golden pictures are copied into the artefact.
    pub pictures: &'a [PathBuf],
    /// The pictures trained on, where they are at hand: what embeddings look like together is measured on them.
    pub trained_on: &'a [PathBuf],
}

impl Export<'_> {
    /// Dimensions of an embedding.
    fn dim(&self) -> usize {
        let representation = self.encoder.dim();
        Whitening::of(self.weights, representation).map_or(representation, |w| w.output_dim())
    }
}

/// What was written.
#[derive(Debug)]
pub struct Exported {
    /// The artefact's folder.
    pub dir: PathBuf,
    /// Its contract.
    pub contract: Contract,
    /// Trained network against ONNX Runtime, before writing.
    pub parity: Parity,
    /// The golden check of the artefact as written.
    pub golden: GoldenReport,
    /// What its embeddings look like together, or why that could not be measured.
    pub reference: Result<Reference, ReferenceError>,
    /// Size of the graph in bytes.
    pub onnx_bytes: usize,
}

/// What the trained network may fail with; it is shown as it is.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The weights don't make a graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// ONNX Runtime is missing, or refused the graph.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The trained network failed on the pictures.
    #[error("the trained network failed on the pictures of the parity check: {0}")]
    Trained(BoxError),
    /// The graph is not the trained network.
    #[error(transparent)]
    Parity(#[from] ParityError),
    /// Too few readable pictures.
    #[error(
        "{} holds {readable} readable pictures of {listed} tried, and the checks of an artefact need \
         {MIN_PICTURES}: name another folder of pictures", .root.display()
    )]
    Pictures {
        /// The folder.
        root: PathBuf,
        /// Pictures that could be read.
        readable: usize,
        /// Pictures in the list.
        listed: usize,
    },
    /// A golden picture could not be shrunk.
    #[error("a picture for the golden check could not be prepared: {0}")]
    GoldenPicture(String),
    /// The artefact as written fails its own golden check.
    #[error("the artefact as written fails its golden check and was removed: {0}")]
    Golden(#[from] GoldenError),
    /// The artefact could not be written.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// The models folder could not be listed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Writes the artefact `<models_dir>/<name>-v<version>/`, once the graph has proved to be the
/// trained network.
///
/// `trained` embeds pictures of exactly the encoder's size with the network as trained. Cosines of
/// its vectors to those of ONNX Runtime, on up to 128 real pictures that went through decode and
/// preprocess, must all reach 0.9999.
///
/// # Errors
/// See [`ExportError`]. Nothing is left in the models folder then.
pub fn export(
    input: &Export<'_>,
    mut trained: impl FnMut(&[Pixels]) -> Result<Vec<Embedding>, BoxError>,
) -> Result<Exported, ExportError> {
    let preprocess = eval_preprocess(input.encoder.image_size);
    let onnx = to_onnx(input.encoder, input.weights, &preprocess)?;
    let mut encoder = open(&onnx, &preprocess, input.dim())?;

    let samples = samples::choose(input.pictures_root, input.pictures, &preprocess);
    if samples.len() < MIN_PICTURES {
        return Err(ExportError::Pictures {
            root: input.pictures_root.to_owned(),
            readable: samples.len(),
            listed: input.pictures.len(),
        });
    }
    let pixels: Vec<Pixels> = samples.iter().map(|s| s.pixels.clone()).collect();
    let ours = trained(&pixels).map_err(ExportError::Trained)?;
    let theirs = embed_all(&mut encoder, &pixels)?;
    let parity = Parity::measure(&ours, &theirs)?.accept()?;

    let golden = golden(&samples, &mut encoder, &preprocess)?;
    let subject = Subject::graph(&onnx, &preprocess, input.dim());
    let measured = latentd_model::reference::measure(subject, input.trained_on, input.command, &|_| ());
    let (reference, measured) = match measured {
        Ok(measured) => (Ok(measured.reference.clone()), Some(measured)),
        Err(error) => (Err(error), None),
    };
    let mut draft = ArtefactDraft { reference: measured, ..draft(input, &preprocess, &parity) };
    let dir = write(input, &mut draft, &onnx, &golden)?;
    let (contract, golden) = verify(&dir).inspect_err(|_| {
        // It is this call's own folder, and nobody should ever load it.
        let _ = std::fs::remove_dir_all(&dir);
    })?;
    Ok(Exported { dir, contract, parity, golden, reference, onnx_bytes: onnx.len() })
}

/// Opens the artefact as a server does and runs its golden pictures through the whole path.
///
/// # Errors
/// A damaged artefact, no ONNX Runtime, or vectors that differ.
pub fn verify(dir: &Path) -> Result<(Contract, GoldenReport), ExportError> {
    let artefact = Artefact::open(dir)?;
    let report = latentd_model::verify::<ExportError>(&artefact)?;
    Ok((artefact.contract(), report))
}

fn open(onnx: &[u8], preprocess: &Preprocess, dim: usize) -> Result<Encoder, EncoderError> {
    let shape = GraphShape { height: preprocess.height, width: preprocess.width, dim };
    Encoder::from_onnx(onnx, shape, &SessionOptions::default())
}

fn embed_all(encoder: &mut Encoder, pixels: &[Pixels]) -> Result<Vec<Embedding>, EncoderError> {
    let mut all = Vec::with_capacity(pixels.len());
    for batch in pixels.chunks(BATCH) {
        all.extend(encoder.embed(batch)?);
    }
    Ok(all)
}

/// The golden pictures with the vectors that ONNX Runtime gives for them.
fn golden(samples: &[Sample], encoder: &mut Encoder, preprocess: &Preprocess) -> Result<Golden, ExportError> {
    let chosen = samples::choose_golden(samples, preprocess).map_err(ExportError::GoldenPicture)?;
    let pixels: Vec<Pixels> = chosen.iter().map(|s| s.pixels.clone()).collect();
    let expected = embed_all(encoder, &pixels)?;
    let picture = |(i, (sample, expected)): (usize, (Sample, Embedding))| {
        let name = format!("picture-{}.{}", i + 1, sample.extension());
        GoldenPicture { name, bytes: sample.bytes, expected }
    };
    Ok(Golden { pictures: chosen.into_iter().zip(expected).enumerate().map(picture).collect() })
}

fn draft(input: &Export<'_>, preprocess: &Preprocess, parity: &Parity) -> ArtefactDraft {
    let mut evaluation = input.evaluation.clone();
    evaluation.push(EvaluationFigure {
        dataset: format!("{} real pictures", parity.pictures),
        metric: "parity_min_cosine".to_owned(),
        subject: "trained network against ONNX Runtime".to_owned(),
        value: parity.min_cosine,
        command: input.command.to_owned(),
    });
    ArtefactDraft {
        name: input.name.to_owned(),
        version: input.version.unwrap_or(0),
        licence: input.licence.to_owned(),
        description: input.description.to_owned(),
        preprocess: preprocess.clone(),
        output: OutputSpec { dim: input.dim(), normalised: true },
        training: input.training.clone(),
        evaluation,
        reference: None,
    }
}

/// Writes the artefact under the version asked for, or under the next free one.
fn write(
    input: &Export<'_>,
    draft: &mut ArtefactDraft,
    onnx: &[u8],
    golden: &Golden,
) -> Result<PathBuf, ExportError> {
    let io = |source| ExportError::Io { path: input.models_dir.to_owned(), source };
    std::fs::create_dir_all(input.models_dir).map_err(io)?;
    let further: Vec<_> = input.networks.map(|bytes| (WEIGHTS_FILE, bytes)).into_iter().collect();
    let attempt = |draft: &ArtefactDraft| {
        write_artefact_with(input.models_dir, draft, onnx, golden, input.report_html, &further)
    };
    if input.version.is_some() {
        return Ok(attempt(draft)?);
    }
    draft.version = next_version(input.models_dir, input.name).map_err(io)?;
    let last = draft.version + VERSION_TRIES;
    loop {
        match attempt(draft) {
            Err(ArtefactError::Exists { .. }) if draft.version < last => draft.version += 1,
            outcome => return Ok(outcome?),
        }
    }
}
