//! Verification: what the golden pictures say of an artefact that lies on a disk.

use crate::artefact::Artefact;
use crate::encoder::{Encoder, EncoderError, SessionOptions};
use crate::golden::{Golden, GoldenError, GoldenReport};

/// Opens the graph as a server does and runs the golden pictures through the whole path: files, decoding, resizing, ONNX
/// Runtime. For whoever has written an artefact, before anybody loads it.
///
/// # Errors
/// No ONNX Runtime, a graph that it refuses, golden pictures that cannot be read, or vectors that differ.
pub fn verify<E: From<EncoderError> + From<GoldenError>>(artefact: &Artefact) -> Result<GoldenReport, E> {
    let mut encoder = Encoder::open(artefact, &SessionOptions::default())?;
    let (golden, preprocess) = (artefact.golden()?, &artefact.manifest().preprocess);
    Ok(golden.check(|batch| encoder.embed(batch), preprocess, Golden::MIN_COSINE)?)
}
