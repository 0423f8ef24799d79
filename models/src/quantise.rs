//! Quantisation: an artefact's graph in eight bits, calibrated on pictures and held against the float one.

mod calibrate;
mod graph;
mod range;
mod speed;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use prost::Message;

use crate::artefact::{Artefact, ArtefactDraft, ArtefactError, compute_contract, write_artefact};
use crate::compare::{CompareError, Comparison, Side, compare_subject, mean_overlap, page};
use crate::digest::sha256_hex;
use crate::encoder::{Encoder, EncoderError, GraphShape, SessionOptions};
use crate::gallery::{GalleryError, Subject, embed_pictures, evenly_spaced};
use crate::golden::{GoldenError, GoldenReport};
use crate::manifest::{EvaluationFigure, MODEL_FILE, Manifest, full_name};
use crate::onnx::ModelProto;
use crate::verify::verify;
pub use graph::Spared;
use graph::{Plan, quantised};
pub use range::Calibration;
use range::{Levels, Seen};
pub use speed::Speed;

/// Most pictures that activations are counted on.
const MAX_CALIBRATION: usize = 500;
/// Most other pictures that the neighbours are compared on.
const MAX_HELD_OUT: usize = 5000;
/// Neighbours that are compared.
const K: usize = 10;
/// Least pictures: enough for neighbours on either side.
const MIN_PICTURES: usize = 64;
/// Pictures on the report.
const SHOWN: usize = 16;
/// The first operator set whose DequantizeLinear knows axes.
const MIN_OPSET: i64 = 13;

/// How ranges are tried; the one whose neighbours stay closest to the float ones wins.
const CALIBRATIONS: [Calibration; 4] = [
    Calibration::MinMax,
    Calibration::Percentile(0.9999),
    Calibration::Percentile(0.999),
    Calibration::LeastSquares,
];

/// A quantised graph that passed the gate.
#[derive(Debug, Clone)]
pub struct Quantised {
    /// The graph.
    pub onnx: Vec<u8>,
    /// How ranges were chosen.
    pub calibration: Calibration,
    /// What stayed float.
    pub spared: Spared,
    /// Everything tried, with its mean overlap on the calibration pictures.
    pub tried: Vec<(Calibration, Spared, f64)>,
    /// Convolutions in eight bits.
    pub convolutions: usize,
    /// Pictures that activations were counted on.
    pub calibrated_on: usize,
    /// Float against int8 on pictures that calibration did not see.
    pub comparison: Comparison,
    /// Float against int8 on this machine.
    pub speed: Speed,
}

/// Why there is no quantised artefact.
#[derive(Debug, thiserror::Error)]
pub enum QuantiseError {
    /// The graph is not one that can be quantised.
    #[error("{path} cannot be quantised: {reason}")]
    Graph {
        /// The graph.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Too few pictures to calibrate and compare on.
    #[error(
        "there are {0} pictures, but calibrating and comparing take at least {MIN_PICTURES}: name more with --images"
    )]
    TooFew(usize),
    /// The neighbours change too much.
    #[error(
        "the int8 encoder keeps {overlap:.4} of the float one's {K} nearest neighbours on {pictures} held-out pictures, below the bound of {bound}: nothing was written"
    )]
    Differs {
        /// The mean overlap found.
        overlap: f64,
        /// The least that was asked for.
        bound: f64,
        /// Pictures it was found on.
        pictures: usize,
    },
    /// The float artefact cannot be read or the new one not written.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// Golden pictures cannot be read, or the written artefact fails on them.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// A graph cannot run.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// Pictures cannot be embedded.
    #[error(transparent)]
    Gallery(#[from] GalleryError),
    /// The two encoders cannot be compared.
    #[error(transparent)]
    Compare(#[from] CompareError),
}

/// The name of the int8 sibling of an encoder, without the version.
#[must_use]
pub fn sibling_name(name: &str) -> String {
    format!("{name}{INT8_SUFFIX}")
}

/// What the name of an int8 sibling ends with.
pub const INT8_SUFFIX: &str = "-int8";

/// Whether `int8` is the sibling that [`write`] made of `float`, which is written only when it passed its gate.
#[must_use]
pub fn is_gated_sibling(float: &Manifest, int8: &Manifest) -> bool {
    int8.name == sibling_name(&float.name)
        && int8.version == float.version
        && int8.preprocess == float.preprocess
        && int8.evaluation.iter().any(|figure| figure.metric == OVERLAP)
        && int8.description.starts_with(&origin(float))
}

/// What the description of a sibling begins with.
fn origin(float: &Manifest) -> String {
    format!("int8 of {} ({}): ", float.full_name(), float.contract)
}

/// The figure that a sibling is let through by.
const OVERLAP: &str = "overlap_at_10";

/// Quantises `float` in memory: static, per output channel, calibrated on a part of `pictures`.
///
/// A third of the pictures, at most 500, calibrate; ranges are chosen in several ways, and the way
/// whose neighbours agree best with the float encoder's wins. Layers are left float only where the bound is
/// missed otherwise. The rest of the pictures, at most 5000, are the gate. `say` gets a line for each step.
///
/// # Errors
/// [`QuantiseError::Differs`] when less than `min_overlap` of the neighbours stay; see [`QuantiseError`].
pub fn quantise(
    float: &Artefact,
    pictures: &[PathBuf],
    min_overlap: f64,
    say: &dyn Fn(&str),
) -> Result<Quantised, QuantiseError> {
    if pictures.len() < MIN_PICTURES {
        return Err(QuantiseError::TooFew(pictures.len()));
    }
    let (calibration, held_out) = split(pictures);
    let source = Source::read(float)?;
    say(&format!("counting activations on {} pictures", calibration.len()));
    let seen = source.calibrate(&calibration)?;
    let mut tried =
        source.try_all(&seen, &CALIBRATIONS.map(|way| (way, Spared::default())), &calibration, say)?;
    let mut best = best_of(&tried);
    let mut comparison = source.compare(&best, &held_out, say)?;
    if comparison.mean_overlap < min_overlap {
        let spared = [(true, false), (false, true), (true, true)];
        let ways = spared.map(|(first, last)| (best.calibration, Spared { first, last }));
        tried.extend(source.try_all(&seen, &ways, &calibration, say)?);
        best = best_of(&tried);
        comparison = source.compare(&best, &held_out, say)?;
    }
    if comparison.mean_overlap < min_overlap {
        let (overlap, pictures) = (comparison.mean_overlap, comparison.pictures.len());
        return Err(QuantiseError::Differs { overlap, bound: min_overlap, pictures });
    }
    let Tried { calibration: way, spared, onnx, convolutions, .. } = best;
    let speed = speed::measure(float, &onnx)?;
    let tried = tried.iter().map(|t| (t.calibration, t.spared, t.overlap)).collect();
    let calibrated_on = calibration.len();
    Ok(Quantised { onnx, calibration: way, spared, tried, convolutions, calibrated_on, comparison, speed })
}

/// Writes `<models_dir>/<name>-int8-v<N>/`: the graph, golden pictures with vectors of its own, a report.
///
/// # Errors
/// When it exists already or cannot be written, or fails its own golden check.
pub fn write(
    float: &Artefact,
    quantised: &Quantised,
    models_dir: &Path,
    command: &str,
) -> Result<(PathBuf, GoldenReport), QuantiseError> {
    let manifest = float.manifest();
    let mut encoder =
        Encoder::from_onnx(&quantised.onnx, GraphShape::of(manifest), &SessionOptions::default())?;
    let golden = float.golden()?.embedded_again(&manifest.preprocess, &mut encoder)?;
    let comparison = &quantised.comparison;
    let figure = |metric: &str, subject: &str, value: f64| EvaluationFigure {
        dataset: format!("{} held-out pictures", comparison.pictures.len()),
        metric: metric.to_owned(),
        subject: subject.to_owned(),
        value,
        command: command.to_owned(),
    };
    let draft = ArtefactDraft {
        name: sibling_name(&manifest.name),
        description: format!("{}{}", origin(manifest), manifest.description),
        evaluation: vec![
            figure(OVERLAP, "this encoder against the float one", comparison.mean_overlap),
            figure("images_per_second", "this encoder, one thread", quantised.speed.int8),
            figure("images_per_second", "the float encoder, one thread", quantised.speed.float),
        ],
        ..float.draft(manifest.version)
    };
    let report = page(comparison, SHOWN);
    let dir = write_artefact(models_dir, &draft, &quantised.onnx, &golden, &report)?;
    let golden = verify::<QuantiseError>(&Artefact::open(&dir)?)?;
    Ok((dir, golden))
}

/// Pictures to calibrate on and pictures to compare on, both spread over the whole.
fn split(pictures: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let count = MAX_CALIBRATION.min(pictures.len() / 3);
    let calibration = evenly_spaced(pictures, count);
    let taken: std::collections::HashSet<&PathBuf> = calibration.iter().collect();
    let rest: Vec<PathBuf> = pictures.iter().filter(|path| !taken.contains(path)).cloned().collect();
    let held_out = evenly_spaced(&rest, MAX_HELD_OUT);
    (calibration, held_out)
}

/// One way, tried.
#[derive(Debug, Clone)]
struct Tried {
    calibration: Calibration,
    spared: Spared,
    onnx: Vec<u8>,
    convolutions: usize,
    overlap: f64,
}

/// The one that keeps most neighbours; of equal ones the first.
fn best_of(tried: &[Tried]) -> Tried {
    let mut best = &tried[0];
    for other in tried {
        if other.overlap > best.overlap {
            best = other;
        }
    }
    best.clone()
}

/// The float graph.
struct Source<'a> {
    float: &'a Artefact,
    model: ModelProto,
}

impl<'a> Source<'a> {
    fn read(float: &'a Artefact) -> Result<Self, QuantiseError> {
        let path = float.model_path();
        let refuse = |reason: &str| QuantiseError::Graph { path: path.clone(), reason: reason.to_owned() };
        let bytes = float.read(MODEL_FILE)?;
        let model = ModelProto::decode(bytes.as_slice()).map_err(|e| refuse(&e.to_string()))?;
        // What is not declared would be lost without a word.
        if model.encoded_len() != bytes.len() {
            return Err(refuse("it holds parts of ONNX that this program does not know"));
        }
        let default = model.opset_import.iter().find(|opset| opset.domain().is_empty());
        if default.is_none_or(|opset| opset.version() < MIN_OPSET) {
            return Err(refuse(&format!("its operator set is older than {MIN_OPSET}")));
        }
        let graph = model.graph.as_ref().ok_or_else(|| refuse("it has no graph"))?;
        if graph.node.iter().any(|node| node.op_type() == "QuantizeLinear") {
            return Err(refuse("it is quantised already"));
        }
        if Plan::new(graph, Spared::default()).convolutions.is_empty() {
            return Err(refuse("it has no convolution with constant weights"));
        }
        Ok(Self { float, model })
    }

    fn plan(&self, spared: Spared) -> Plan {
        Plan::new(self.model.graph.as_ref().unwrap_or(&Default::default()), spared)
    }

    fn calibrate(&self, pictures: &[PathBuf]) -> Result<HashMap<String, Seen>, QuantiseError> {
        // Whatever is spared later, its input is among these or was made quantised by it.
        let mut tensors = self.plan(Spared::default()).activations;
        tensors.extend(self.plan(Spared { first: true, last: true }).activations);
        tensors.sort();
        tensors.dedup();
        calibrate::calibrate(&self.model, &tensors, &self.float.manifest().preprocess, pictures)
    }

    /// The neighbours of float against int8 on pictures that calibration did not see.
    fn compare(
        &self,
        tried: &Tried,
        held_out: &[PathBuf],
        say: &dyn Fn(&str),
    ) -> Result<Comparison, QuantiseError> {
        let manifest = self.float.manifest();
        let side = Side {
            name: full_name(&sibling_name(&manifest.name), manifest.version),
            contract: compute_contract(&sha256_hex(&tried.onnx), &manifest.preprocess, &manifest.output),
        };
        let graph = Subject::graph_like(&tried.onnx, self.float);
        let comparison = compare_subject(self.float, graph, side, held_out, K)?;
        let Tried { calibration, spared, .. } = tried;
        say(&format!(
            "{calibration}, {spared}: overlap@{K} {:.4} on {} held-out pictures",
            comparison.mean_overlap,
            comparison.pictures.len()
        ));
        Ok(comparison)
    }

    /// Quantises in each of `ways`, and compares all of them with the float graph in one go.
    fn try_all(
        &self,
        seen: &HashMap<String, Seen>,
        ways: &[(Calibration, Spared)],
        pictures: &[PathBuf],
        say: &dyn Fn(&str),
    ) -> Result<Vec<Tried>, QuantiseError> {
        let mut tried = ways.iter().map(|&way| self.quantised(seen, way)).collect::<Result<Vec<_>, _>>()?;
        let graphs = tried.iter().map(|tried| Subject::graph_like(&tried.onnx, self.float));
        let subjects: Vec<Subject<'_>> = std::iter::once(self.float.into()).chain(graphs).collect();
        let gallery = embed_pictures(&subjects, pictures, &|_| ())?;
        let [float, others @ ..] = gallery.vectors.as_slice() else { return Ok(tried) };
        let overlaps: Vec<f64> = others.iter().map(|other| mean_overlap(float, other, K)).collect();
        for (tried, overlap) in tried.iter_mut().zip(overlaps) {
            tried.overlap = overlap;
            let Tried { calibration, spared, .. } = tried;
            say(&format!("{calibration}, {spared}: overlap@{K} {overlap:.4} on the calibration pictures"));
        }
        Ok(tried)
    }

    fn quantised(
        &self,
        seen: &HashMap<String, Seen>,
        (calibration, spared): (Calibration, Spared),
    ) -> Result<Tried, QuantiseError> {
        let plan = self.plan(spared);
        let levels: HashMap<String, Levels> =
            seen.iter().map(|(name, seen)| (name.clone(), seen.choose(calibration))).collect();
        let refuse = |reason| QuantiseError::Graph { path: self.float.model_path(), reason };
        let model = quantised(&self.model, &plan, &levels).map_err(refuse)?;
        let (onnx, convolutions) = (model.encode_to_vec(), plan.convolutions.len());
        Ok(Tried { calibration, spared, onnx, convolutions, overlap: 0.0 })
    }
}

#[cfg(test)]
mod tests;
