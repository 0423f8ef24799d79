//! Speed: pictures a second of two graphs, side by side.

use std::time::{Duration, Instant};

use crate::artefact::Artefact;
use crate::encoder::{Encoder, EncoderError, GraphShape, SessionOptions};
use crate::pixels::Pixels;

/// Rounds; the two take turns, so that both meet the same machine.
const ROUNDS: usize = 7;
/// Least time of a turn.
const TURN: Duration = Duration::from_millis(150);

/// Pictures a second of one thread, one picture a run, decoded already: the median of several turns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Of the float graph.
    pub float: f64,
    /// Of the int8 graph.
    pub int8: f64,
}

/// Measures `float` against `onnx` on this machine.
///
/// # Errors
/// When one of them cannot run.
pub fn measure(float: &Artefact, onnx: &[u8]) -> Result<Speed, EncoderError> {
    let options = SessionOptions::default();
    let shape = GraphShape::of(float.manifest());
    let mut encoders = [Encoder::open(float, &options)?, Encoder::from_onnx(onnx, shape, &options)?];
    let bytes = (shape.height * shape.width * 3) as usize;
    // Any pixels cost the same.
    let data = (0..bytes).map(|i| (i as u32).wrapping_mul(2_654_435_761).rotate_right(24) as u8).collect();
    let Ok(pixels) = Pixels::new(shape.height, shape.width, data) else {
        return Err(EncoderError::Ort("the encoder takes no pixels".to_owned()));
    };
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (encoder, rates) in encoders.iter_mut().zip(&mut rates) {
            let (began, mut runs) = (Instant::now(), 0u32);
            while began.elapsed() < TURN {
                encoder.embed(std::slice::from_ref(&pixels))?;
                runs += 1;
            }
            rates.push(f64::from(runs) / began.elapsed().as_secs_f64());
        }
    }
    let [float, int8] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    Ok(Speed { float, int8 })
}
