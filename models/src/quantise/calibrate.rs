//! Calibration: the float graph runs on pictures, and the values of its activations are counted.

use std::collections::HashMap;
use std::path::PathBuf;

use ort::session::Session;
use ort::value::TensorRef;
use prost::Message;

use super::QuantiseError;
use super::range::Seen;
use crate::encoder::{EncoderError, INPUT, SessionOptions, builder, ort_error};
use crate::gallery::load_picture;
use crate::onnx::{ModelProto, ValueInfoProto};
use crate::pixels::Pixels;
use crate::preprocess::Preprocess;

/// What was seen of each of `tensors` on the pictures that can be read. One picture is in memory at a time.
///
/// # Errors
/// When ONNX Runtime refuses the graph or a run.
pub fn calibrate(
    model: &ModelProto,
    tensors: &[String],
    preprocess: &Preprocess,
    pictures: &[PathBuf],
) -> Result<HashMap<String, Seen>, QuantiseError> {
    let mut session = probe(model, tensors)?;
    let mut seen: HashMap<String, Seen> =
        tensors.iter().map(|name| (name.clone(), Seen::default())).collect();
    // The range must be known before it can be cut into bins, and the values are too many to keep.
    for pass in [Seen::widen, Seen::count] {
        for path in pictures {
            if let Ok(pixels) = load_picture(path, preprocess) {
                run(&mut session, &pixels, &mut seen, pass)?;
            }
        }
    }
    Ok(seen)
}

/// A session of the graph with `tensors` as further outputs.
fn probe(model: &ModelProto, tensors: &[String]) -> Result<Session, QuantiseError> {
    let mut model = model.clone();
    let graph = model.graph.get_or_insert_default();
    let known = |outputs: &[ValueInfoProto], name: &str| outputs.iter().any(|output| output.name() == name);
    for name in tensors {
        if !known(&graph.output, name) {
            // ONNX Runtime infers the type of an output that is declared by its name alone.
            graph.output.push(ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() });
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = SessionOptions { intra_threads: threads, ..SessionOptions::default() };
    let session = builder(&options)?.commit_from_memory(&model.encode_to_vec());
    Ok(session.map_err(|e| EncoderError::Ort(e.to_string()))?)
}

fn run(
    session: &mut Session,
    pixels: &Pixels,
    seen: &mut HashMap<String, Seen>,
    pass: fn(&mut Seen, &[f32]),
) -> Result<(), EncoderError> {
    let shape = [1, pixels.height() as usize, pixels.width() as usize, 3];
    let input = TensorRef::from_array_view((shape, pixels.as_bytes())).map_err(ort_error)?;
    let outputs = session.run(ort::inputs![INPUT => input]).map_err(ort_error)?;
    for (name, seen) in seen {
        let Some(output) = outputs.get(name.as_str()) else { continue };
        let (_, values) = output.try_extract_tensor::<f32>().map_err(ort_error)?;
        pass(seen, values);
    }
    Ok(())
}
