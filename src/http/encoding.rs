//! Encodings: the ways a vector is written into a reply.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use latentd_model::Embedding;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::problem::Problem;

/// How a vector is written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// An array of numbers.
    #[default]
    Float,
    /// Base64 of the little-endian f32 numbers.
    Base64,
    /// An array of integers from -127 to 127, which times `scale` are the numbers.
    Int8,
    /// The signs as bits, the first in the highest bit (`numpy.packbits(v > 0)`), as an array of bytes.
    Binary,
}

/// A vector as written in JSON.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    /// The numbers.
    #[schema(value_type = Vec<f32>)]
    Float(#[serde(serialize_with = "floats")] Embedding),
    /// Base64 of the little-endian f32 numbers.
    Base64(String),
    /// Integers, to be multiplied by the scale.
    Int8(Vec<i8>),
    /// Signs as bits.
    Binary(Vec<u8>),
}

fn floats<S: Serializer>(embedding: &Embedding, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(embedding.as_slice())
}

impl Encoding {
    /// The vector in this encoding, and the scale that `int8` needs.
    #[must_use]
    pub fn encode(self, embedding: &Embedding) -> (Vector, Option<f32>) {
        match self {
            Self::Float => (Vector::Float(embedding.clone()), None),
            Self::Base64 => {
                let mut bytes = Vec::with_capacity(4 * embedding.dim());
                crate::npy::push_row(&mut bytes, embedding.as_slice());
                (Vector::Base64(BASE64_STANDARD.encode(bytes)), None)
            }
            Self::Int8 => {
                let (integers, scale) = int8(embedding.as_slice());
                (Vector::Int8(integers), Some(scale))
            }
            Self::Binary => (Vector::Binary(signs(embedding.as_slice())), None),
        }
    }
}

/// Rounds to `value / scale`, the largest magnitude becoming 127.
fn int8(values: &[f32]) -> (Vec<i8>, f32) {
    let largest = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
    (values.iter().map(|value| (value / scale).round() as i8).collect(), scale)
}

fn signs(values: &[f32]) -> Vec<u8> {
    let byte = |chunk: &[f32]| {
        chunk.iter().enumerate().fold(0u8, |byte, (bit, &value)| byte | (u8::from(value > 0.0) << (7 - bit)))
    };
    values.chunks(8).map(byte).collect()
}

/// The media type of a reply with vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/octet-stream`: rows of little-endian f32.
    Rows,
    /// `application/x-npy`: numpy's file format.
    Npy,
}

impl Format {
    /// The format a client asks for, JSON when it does not care.
    ///
    /// # Errors
    /// 406 when it takes none of them.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut best: Option<(f32, Self)> = None;
        let mut any = false;
        for value in headers.get_all(header::ACCEPT) {
            for range in value.to_str().unwrap_or_default().split(',') {
                any = true;
                let (format, quality) = accepted(range);
                let better = best.is_none_or(|(least, _)| quality > least);
                if let (Some(format), true, true) = (format, quality > 0.0, better) {
                    best = Some((quality, format));
                }
            }
        }
        match best {
            Some((_, format)) => Ok(format),
            None if !any => Ok(Self::Json),
            None => {
                let detail =
                    "this route answers with application/json, application/octet-stream or application/x-npy";
                Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail))
            }
        }
    }

    /// The value of `content-type`.
    #[must_use]
    pub fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Rows => "application/octet-stream",
            Self::Npy => "application/x-npy",
        })
    }
}

/// One range of an `accept` header and its quality.
fn accepted(range: &str) -> (Option<Format>, f32) {
    let mut pieces = range.split(';').map(str::trim);
    let format = match pieces.next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "*/*" | "application/*" | "application/json" => Some(Format::Json),
        "application/octet-stream" => Some(Format::Rows),
        "application/x-npy" => Some(Format::Npy),
        _ => None,
    };
    let quality = pieces.find_map(|piece| piece.strip_prefix("q=")?.parse().ok());
    (format, quality.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int8_is_within_half_a_step_and_signs_are_packed_as_numpy_does() {
        let values = [0.5f32, -0.25, 0.0, 0.1, -0.5, 0.3, 0.2, -0.1, 0.05];
        let (integers, scale) = int8(&values);
        for (value, integer) in values.iter().zip(&integers) {
            assert!((value - f32::from(*integer) * scale).abs() <= scale / 2.0 + 1e-7);
        }
        assert_eq!(signs(&values), [0b1001_0110, 0b1000_0000]);
    }

    #[test]
    fn the_accept_header_is_followed() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(text));
            Format::of(&headers)
        };
        assert_eq!(Format::of(&HeaderMap::new()).unwrap(), Format::Json);
        assert_eq!(of("*/*").unwrap(), Format::Json);
        assert_eq!(of("application/x-npy").unwrap(), Format::Npy);
        assert_eq!(of("application/json;q=0.5, application/octet-stream").unwrap(), Format::Rows);
        assert_eq!(of("text/html, */*;q=0.1").unwrap(), Format::Json);
        assert_eq!(of("text/html").unwrap_err().status, 406);
        assert_eq!(of("application/json;q=0").unwrap_err().status, 406);
    }
}
