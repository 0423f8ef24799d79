//! Precision: whether an encoder serves in float or as its int8 sibling.
//!
//! The sibling is an artefact of its own whose vectors have a contract of their own. So the vectors that a store holds
//! decide before anything else: an index of float vectors stays with the float encoder, one of int8 vectors with the
//! sibling. Only where there is none is there a choice.

use std::time::{Duration, Instant};

use latentd_model::quantise::{INT8_SUFFIX, is_gated_sibling, sibling_name};
use latentd_model::{Artefact, ArtefactError, Contract, Encoder, EncoderError, Pixels, SessionOptions};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::backend::DeviceChoice;

/// Time that each of both is measured.
const BUDGET: Duration = Duration::from_millis(40);

/// How much faster int8 must be to be worth vectors that differ a little.
const WORTHWHILE: f64 = 1.1;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// The int8 sibling where there is one that passed its gate, it is faster here, and no index stands against it.
    Auto,
    /// The artefact as it was found.
    F32,
    /// The int8 sibling, or no start.
    Int8,
}

/// What was chosen and why.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PrecisionReport {
    /// What was asked for.
    pub requested: Precision,
    /// `f32` or `int8`.
    pub used: &'static str,
    /// Why, for a person.
    pub reason: String,
}

/// Why `int8` cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PrecisionError {
    /// No sibling.
    #[error(
        "--precision int8: {float} has no int8 sibling {sibling} beside it: make it with `latentd model quantize {float} --images DIR`"
    )]
    Missing {
        /// The float artefact.
        float: String,
        /// Its sibling's name.
        sibling: String,
    },
    /// A sibling that says nothing about a gate, or is one of another encoder.
    #[error("--precision int8: {sibling} was not made from {float} by `latentd model quantize`")]
    NotGated {
        /// The float artefact.
        float: String,
        /// Its sibling's name.
        sibling: String,
    },
    /// The store's vectors are float ones.
    #[error(
        "--precision int8: the store holds vectors of {float}, which those of {sibling} cannot be compared with: start without it and change with POST /models/{sibling}/activate"
    )]
    Index {
        /// The float artefact.
        float: String,
        /// Its sibling's name.
        sibling: String,
    },
    /// The sibling is damaged.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// One of both cannot run.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
}

/// The artefact that serves for `found`, `contracts` being those of the vectors in the store.
///
/// # Errors
/// When int8 is asked for and cannot be had.
pub fn choose(
    requested: Precision,
    found: Artefact,
    contracts: &[Contract],
    device: DeviceChoice,
) -> Result<(Artefact, PrecisionReport), PrecisionError> {
    let report = |used, reason: &str| PrecisionReport { requested, used, reason: reason.to_owned() };
    let name = found.manifest().name.clone();
    if name.ends_with(INT8_SUFFIX) {
        return Ok((found, report("int8", "the encoder found is an int8 one")));
    }
    if requested == Precision::F32 {
        return Ok((found, report("f32", "as set")));
    }
    let float = found.manifest().full_name();
    let sibling = format!("{}-v{}", sibling_name(&name), found.manifest().version);
    let dir = found.dir().parent().map(|folder| folder.join(&sibling));
    let dir = dir.filter(|dir| dir.join("manifest.json").is_file());
    let int8 = requested == Precision::Int8;
    let Some(dir) = dir else {
        return if int8 {
            Err(PrecisionError::Missing { float, sibling })
        } else {
            Ok((found, report("f32", "there is no int8 sibling")))
        };
    };
    let other = Artefact::open(&dir)?;
    if !is_gated_sibling(found.manifest(), other.manifest()) {
        return if int8 {
            Err(PrecisionError::NotGated { float, sibling })
        } else {
            Ok((found, report("f32", "the int8 sibling did not pass a gate")))
        };
    }
    if contracts.contains(&other.contract()) {
        return Ok((other, report("int8", "the store holds int8 vectors")));
    }
    if contracts.contains(&found.contract()) {
        return if int8 {
            Err(PrecisionError::Index { float, sibling })
        } else {
            Ok((found, report("f32", "the store holds float vectors")))
        };
    }
    if int8 {
        return Ok((other, report("int8", "as set")));
    }
    if matches!(device, DeviceChoice::Cuda(_) | DeviceChoice::TensorRt(_)) {
        return Ok((found, report("f32", "int8 is for CPUs")));
    }
    let ratio = rate(&other)? / rate(&found)?;
    let reason = format!("int8 takes {ratio:.2} times as many pictures per second here");
    Ok(if ratio >= WORTHWHILE { (other, report("int8", &reason)) } else { (found, report("f32", &reason)) })
}

/// Pictures per second of one thread: of the fastest run in a short time.
fn rate(artefact: &Artefact) -> Result<f64, EncoderError> {
    let mut encoder = Encoder::open(artefact, &SessionOptions::default())?;
    let (height, width) = (encoder.height(), encoder.width());
    let grey = Pixels::new(height, width, vec![127; height as usize * width as usize * 3]);
    let Ok(grey) = grey.map(|picture| [picture]) else { return Ok(0.0) };
    encoder.embed(&grey)?;
    let until = Instant::now() + BUDGET;
    let mut fastest = f64::INFINITY;
    while Instant::now() < until || fastest.is_infinite() {
        let began = Instant::now();
        encoder.embed(&grey)?;
        fastest = fastest.min(began.elapsed().as_secs_f64());
    }
    Ok(1.0 / fastest.max(1e-9))
}
