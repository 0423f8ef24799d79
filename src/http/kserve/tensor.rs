//! Tensors of the Open Inference Protocol: a request's JSON with what follows it, and a reply's.

use std::fmt;

use bytes::Bytes;
use latentd_model::{Embedding, ImageBytes};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::config::MAX_IMAGES;
use crate::http::extract::parse_json;
use crate::http::given::Given;
use crate::http::input::{ItemError, image_from_text, too_many_images};
use crate::http::json::{self, AtMost};
use crate::http::problem::Problem;

/// The name of the input.
pub const INPUT: &str = "image";

/// The name of the output.
pub const OUTPUT: &str = "embedding";

/// An inference request.
#[derive(Debug, Deserialize, ToSchema)]
pub struct InferRequest {
    /// Given back in the reply.
    id: Option<String>,
    /// `binary_data_output`: whether outputs are to follow the JSON as bytes.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    parameters: Parameters,
    /// One tensor, `image`.
    #[schema(value_type = Vec<InputTensor>)]
    inputs: AtMost<InputTensor, 1>,
    /// The outputs wanted; all when left out.
    #[serde(default, deserialize_with = "json::at_most::<_, _, 16>")]
    outputs: Option<Vec<WantedOutput>>,
}

/// A tensor of a request.
#[derive(Debug, Deserialize, ToSchema)]
pub struct InputTensor {
    /// `image`.
    name: String,
    /// `BYTES`.
    datatype: String,
    /// `[n]` or `[n, 1]`.
    #[schema(value_type = Vec<u64>)]
    shape: AtMost<u64, 2>,
    /// `binary_data_size`: how many of the bytes after the JSON are its.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    parameters: Parameters,
    /// Picture files in base64 or as data URIs, flat or in the tensor's shape.
    #[serde(default, deserialize_with = "json::at_most::<_, _, MAX_IMAGES>")]
    #[schema(value_type = Option<Vec<Object>>)]
    data: Option<Vec<Row>>,
}

/// The parameters that are looked at, of a request, an input or an output.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    binary_data_output: Option<bool>,
    binary_data: Option<bool>,
    binary_data_size: Option<u64>,
}

/// An element of a tensor's data.
#[derive(Debug)]
enum Row {
    /// A text, by itself or as the only one of a list.
    Text(String),
    /// Anything else.
    Other,
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RowVisitor { nested: false })
    }
}

/// A text at the top or one level deeper.
#[derive(Clone, Copy)]
struct RowVisitor {
    nested: bool,
}

impl<'de> DeserializeSeed<'de> for RowVisitor {
    type Value = Row;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Row, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RowVisitor {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Row, E> {
        Ok(Row::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Row, A::Error> {
        if self.nested {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Row::Other);
        }
        let first = list.next_element_seed(Self { nested: true })?;
        let mut alone = true;
        while list.next_element::<IgnoredAny>()?.is_some() {
            alone = false;
        }
        Ok(first.filter(|_| alone).unwrap_or(Row::Other))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Row, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Row::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Row, E> {
        Ok(Row::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Row, E> {
        Ok(Row::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Row, E> {
        Ok(Row::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Row, E> {
        Ok(Row::Other)
    }

    fn visit_unit<E>(self) -> Result<Row, E> {
        Ok(Row::Other)
    }
}

/// An output that a request asks for.
#[derive(Debug, Deserialize, ToSchema)]
pub struct WantedOutput {
    /// `embedding`.
    name: String,
    /// `binary_data`: whether it is to follow the JSON as bytes.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    parameters: Parameters,
}

/// What a request asks for.
#[derive(Debug)]
pub struct Infer {
    /// The pictures.
    pub given: Vec<Result<Given, ItemError>>,
    /// Given back.
    pub id: Option<String>,
    /// Whether the output follows the JSON as bytes.
    pub binary: bool,
}

impl Infer {
    /// Reads a body of at most `max` pictures, whose JSON is `header_length` long where tensors follow it.
    ///
    /// # Errors
    /// `invalid_json`, `invalid_inference_request`, `too_many_images`; what is wrong with one picture is an inner error.
    pub fn read(body: Bytes, header_length: Option<usize>, max: usize) -> Result<Self, Problem> {
        let length = header_length.unwrap_or(body.len());
        if length > body.len() {
            return Err(invalid("inference-header-content-length is beyond the body's end"));
        }
        let (json, rest) = (body.slice(..length), body.slice(length..));
        let InferRequest { id, parameters, inputs, outputs } = parse_json(&json)?;
        let [input] = <[InputTensor; 1]>::try_from(inputs.0)
            .map_err(|_| invalid("there has to be one input, \"image\""))?;
        if input.name != INPUT || input.datatype != "BYTES" {
            return Err(invalid("the input has to be \"image\", of the datatype BYTES: picture files"));
        }
        let count = match input.shape.0.as_slice() {
            [count] | [count, 1] => usize::try_from(*count).unwrap_or(usize::MAX),
            _ => return Err(invalid("the shape of the input has to be [n] or [n, 1]")),
        };
        if count > max {
            return Err(too_many_images(max));
        }
        let given = match (input.data, input.parameters.binary_data_size) {
            (Some(data), None) if rest.is_empty() => texts(&data)?,
            (None, Some(size)) if size == rest.len() as u64 => files(rest, max)?,
            _ => {
                return Err(invalid(
                    "the input has either data, or a binary_data_size that is what follows the JSON",
                ));
            }
        };
        if given.len() != count || count == 0 {
            return Err(invalid("the input has not as many pictures as its shape says, or none"));
        }
        let mut binary = parameters.binary_data_output.unwrap_or(false);
        let outputs = outputs.unwrap_or_default();
        for output in &outputs {
            if output.name != OUTPUT {
                return Err(invalid("the only output is \"embedding\""));
            }
            binary = output.parameters.binary_data.unwrap_or(binary);
        }
        Ok(Self { given, id, binary })
    }
}

fn invalid(detail: &str) -> Problem {
    Problem::bad_request("invalid_inference_request", detail)
}

/// The pictures of a tensor in JSON, flat or nested.
fn texts(data: &[Row]) -> Result<Vec<Result<Given, ItemError>>, Problem> {
    let text = |row: &Row| match row {
        Row::Text(text) => Some(image_from_text(text).map(Given::File)),
        Row::Other => None,
    };
    let all: Option<Vec<_>> = data.iter().map(text).collect();
    all.ok_or_else(|| invalid("the data of the input has to be texts: picture files in base64"))
}

/// The pictures of a tensor in bytes: each its length (little-endian u32), then itself.
fn files(mut rest: Bytes, max: usize) -> Result<Vec<Result<Given, ItemError>>, Problem> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let cut = || invalid("the bytes of the input end within a picture");
        let length =
            rest.first_chunk::<4>().map(|four| u32::from_le_bytes(*four) as usize).ok_or_else(cut)?;
        let file = rest.get(4..).filter(|left| left.len() >= length).map(|_| rest.slice(4..4 + length));
        all.push(Ok(Given::File(ImageBytes(file.ok_or_else(cut)?))));
        if all.len() > max {
            return Err(too_many_images(max));
        }
        rest = rest.slice(4 + length..);
    }
    Ok(all)
}

/// An inference response.
#[derive(Debug, Serialize, ToSchema)]
pub struct InferReply {
    /// The encoder, as it was asked for.
    model_name: String,
    /// Its version.
    model_version: String,
    /// That of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// One tensor, `embedding`.
    outputs: [OutputTensor; 1],
}

/// A tensor of a reply.
#[derive(Debug, Serialize, ToSchema)]
struct OutputTensor {
    /// `embedding`.
    name: &'static str,
    /// `FP32`.
    datatype: &'static str,
    /// `[n, dim]`.
    shape: [usize; 2],
    /// How many bytes after the JSON are its, where they are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<OutputParameters>,
    /// Its numbers, row after row, where they are in the JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<f32>>,
}

/// Where a tensor's numbers are.
#[derive(Debug, Serialize, ToSchema)]
struct OutputParameters {
    /// Bytes.
    binary_data_size: usize,
}

/// Writes an inference response: JSON, and the output where it follows; then how long the JSON is.
#[must_use]
pub fn write(
    (model_name, model_version): (String, String),
    id: Option<String>,
    rows: &[Embedding],
    dim: usize,
    binary: bool,
) -> (Vec<u8>, Option<usize>) {
    let mut tensor = Vec::new();
    let (mut parameters, mut data) = (None, None);
    if binary {
        rows.iter().for_each(|row| crate::npy::push_row(&mut tensor, row.as_slice()));
        parameters = Some(OutputParameters { binary_data_size: tensor.len() });
    } else {
        data = Some(rows.iter().flat_map(|row| row.as_slice().iter().copied()).collect());
    }
    let output = OutputTensor { name: OUTPUT, datatype: "FP32", shape: [rows.len(), dim], parameters, data };
    let reply = InferReply { model_name, model_version, id, outputs: [output] };
    // Texts and finite numbers alone: it cannot fail.
    let mut bytes = serde_json::to_vec(&reply).unwrap_or_default();
    let json_length = (!tensor.is_empty()).then_some(bytes.len());
    bytes.extend(tensor);
    (bytes, json_length)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: &Value, tensors: &[u8]) -> Result<Infer, Problem> {
        let json = json.to_string();
        let length = (!tensors.is_empty()).then_some(json.len());
        Infer::read([json.as_bytes(), tensors].concat().into(), length, 3)
    }

    fn files_of(infer: Infer) -> Vec<Vec<u8>> {
        let file = |given| match given {
            Ok(Given::File(image)) => ImageBytes::as_slice(&image).to_vec(),
            other => panic!("{other:?}"),
        };
        infer.given.into_iter().map(file).collect()
    }

    fn request(shape: &[u64], more: Value) -> Value {
        let mut input = json!({"name": "image", "datatype": "BYTES", "shape": shape});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"id": "a", "inputs": [input]})
    }

    #[test]
    fn pictures_come_as_texts_or_as_bytes() {
        let flat =
            read(&request(&[2], json!({"data": ["aGk=", "data:image/png;base64,aG8="]})), b"").unwrap();
        assert_eq!((flat.id.as_deref(), flat.binary), (Some("a"), false));
        assert_eq!(files_of(flat), [b"hi", b"ho"]);
        let nested = read(&request(&[2, 1], json!({"data": [["aGk="], ["aG8="]]})), b"").unwrap();
        assert_eq!(files_of(nested), [b"hi", b"ho"]);
        let tensors = b"\x02\0\0\0hi\x03\0\0\0you";
        let bytes = read(&request(&[2], json!({"parameters": {"binary_data_size": tensors.len()}})), tensors);
        assert_eq!(files_of(bytes.unwrap()), [b"hi".to_vec(), b"you".to_vec()]);
    }

    #[test]
    fn outputs_are_bytes_where_that_is_asked_for() {
        let mut wanted = request(&[1], json!({"data": ["aGk="]}));
        wanted["parameters"] = json!({"binary_data_output": true});
        assert!(read(&wanted, b"").unwrap().binary);
        wanted["outputs"] = json!([{"name": "embedding", "parameters": {"binary_data": false}}]);
        assert!(!read(&wanted, b"").unwrap().binary);
        wanted["outputs"] = json!([{"name": "labels"}]);
        assert_eq!(read(&wanted, b"").unwrap_err().code, "invalid_inference_request");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let size = |size: u64| json!({"parameters": {"binary_data_size": size}});
        let cases: [(Value, &[u8], &str); 9] = [
            (json!({"inputs": []}), b"", "invalid_inference_request"),
            (request(&[2], json!({"data": ["aGk="]})), b"", "invalid_inference_request"),
            (request(&[0], json!({"data": []})), b"", "invalid_inference_request"),
            (request(&[1, 2], json!({"data": ["aGk="]})), b"", "invalid_inference_request"),
            (request(&[1], json!({"data": [7]})), b"", "invalid_inference_request"),
            (request(&[4], json!({"data": []})), b"", "too_many_images"),
            (request(&[1], size(6)), b"\x09\0\0\0hi", "invalid_inference_request"),
            (request(&[1], size(5)), b"\x02\0\0\0hi", "invalid_inference_request"),
            (request(&[1], size(2)), b"\x02\0", "invalid_inference_request"),
        ];
        for (json, tensors, code) in cases {
            assert_eq!(read(&json, tensors).unwrap_err().code, code, "{json}");
        }
        assert!(Infer::read(Bytes::from_static(b"{}"), Some(3), 1).is_err());
    }
}
