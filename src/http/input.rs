//! Inputs: the pictures of a request, in any of the three body forms.

use std::borrow::Cow;
use std::sync::Arc;

use axum::http::StatusCode;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use latentd_model::ImageBytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::apart::take_apart;
use super::auth::{Caller, hold};
use super::extract::{MediaType, Payload, parse_json};
use super::given::{Given, fetch_all};
use super::json::AtMost;
use super::problem::{Problem, clipped};
use crate::admission::Permit;
use crate::app::App;
use crate::config::MAX_IMAGES;
use crate::embedder::Embedder;
use crate::keys::InFlight;
use crate::outcome::{EmbedError, Embedded};
use crate::slots::Slots;

/// Standard alphabet; padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why one item of a batch failed; the others are not affected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ItemError {
    /// For programs; the same codes as those of problems.
    #[schema(value_type = String, example = "corrupt_image")]
    pub code: Cow<'static, str>,
    /// What went wrong and what to do.
    pub message: String,
}

impl ItemError {
    /// An error of this code.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: clipped(message.into()) }
    }

    /// Of an item whose outcome is missing.
    #[must_use]
    pub fn lost() -> Self {
        Self::new("internal_error", "an item got no answer")
    }
}

impl From<EmbedError> for ItemError {
    fn from(error: EmbedError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// One picture of a request, or why it is none.
pub type Input = Result<ImageBytes, ItemError>;

/// The pictures of a request.
#[derive(Debug)]
pub struct Inputs {
    /// In order; at most `max_images`.
    pub images: Vec<Input>,
    /// Whether the body was one raw picture, whose failure is the request's.
    pub single: bool,
    /// The body's place in the server.
    pub permit: Arc<Permit>,
    /// The pictures as counted for the caller's key.
    pub held: Option<InFlight>,
}

/// The JSON form of several pictures.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonInputs<'a> {
    /// The pictures, in order.
    #[serde(borrow)]
    #[schema(value_type = Vec<JsonInput>)]
    inputs: AtMost<JsonInput<'a>, MAX_IMAGES>,
}

/// One picture in JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonInput<'a> {
    /// The picture file in base64, or as a data URI `data:image/…;base64,…`.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>)]
    image: Option<Text<'a>>,
    /// In place of `image`: where to fetch it from, http or https. Only where the server was started with
    /// `--url-inputs`, otherwise answered with the code `url_inputs_disabled`.
    #[serde(borrow, default)]
    #[schema(value_type = Option<String>)]
    url: Option<Text<'a>>,
}

/// A string that is borrowed from the body where it holds no escape.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The pictures of a body in any of its three forms.
///
/// # Errors
/// When the form itself is broken, or there are none or too many; a broken picture is an inner error.
pub async fn inputs(payload: Payload, app: &App) -> Result<Inputs, Problem> {
    let Payload { media, bytes, permit, caller } = payload;
    let max = app.config.max_images;
    let single = media == MediaType::Image;
    let given = match media {
        MediaType::Image => vec![Ok(Given::File(ImageBytes(bytes)))],
        MediaType::Json => take_apart(bytes.len(), &permit, move || json_inputs(&bytes, max)).await?,
        MediaType::Multipart(boundary) => {
            let parts = multipart(bytes, boundary, max).await?;
            parts.into_iter().map(|part| Ok(Given::File(ImageBytes(part.bytes)))).collect()
        }
    };
    Ok(Inputs { single, ..given_inputs(app, given, permit, caller.as_ref()).await? })
}

/// The files of pictures as a request gave them, counted for the caller's key.
///
/// # Errors
/// When there are none or too many, or the server is full; that a picture cannot be had is an inner error.
pub async fn given_inputs(
    app: &App,
    given: Vec<Result<Given, ItemError>>,
    permit: Arc<Permit>,
    caller: Option<&Caller>,
) -> Result<Inputs, Problem> {
    if given.is_empty() {
        return Err(Problem::bad_request("no_inputs", "the request holds no picture"));
    }
    if given.len() > app.config.max_images {
        return Err(too_many_images(app.config.max_images));
    }
    let held = hold(caller, given.len())?;
    let (images, permit) = fetch_all(app, given, permit).await?;
    Ok(Inputs { images, single: false, permit, held })
}

/// Reads the JSON of /embed, of at most `max` pictures.
///
/// # Errors
/// `invalid_json`, `too_many_images`; what is wrong with one picture is an inner error.
pub fn json_inputs(bytes: &[u8], max: usize) -> Result<Vec<Result<Given, ItemError>>, Problem> {
    let JsonInputs { inputs: AtMost(inputs) } = parse_json(bytes)?;
    if inputs.len() > max {
        return Err(too_many_images(max));
    }
    Ok(inputs.iter().map(json_input).collect())
}

fn json_input(input: &JsonInput<'_>) -> Result<Given, ItemError> {
    match (&input.image, &input.url) {
        (Some(image), None) => image_from_text(&image.0).map(Given::File),
        (None, Some(url)) => Ok(Given::Url(url.0.clone().into_owned())),
        _ => Err(ItemError::new("invalid_input", "an input has either an \"image\" or a \"url\"")),
    }
}

/// A picture written as base64 or as a data URI.
///
/// # Errors
/// `invalid_base64` or `invalid_data_uri`.
pub fn image_from_text(text: &str) -> Input {
    let data = match text.strip_prefix("data:") {
        None => text,
        Some(uri) => match uri.split_once(',') {
            Some((kind, data)) if kind.ends_with(";base64") => data,
            _ => {
                let message = "a data URI must read data:image/…;base64,…";
                return Err(ItemError::new("invalid_data_uri", message));
            }
        },
    };
    let decoded = BASE64.decode(data.trim_ascii());
    decoded.map(ImageBytes::from).map_err(|error| {
        ItemError::new("invalid_base64", format!("the image is not base64 of the standard alphabet: {error}"))
    })
}

/// One part of a multipart form.
#[derive(Debug)]
pub struct Part {
    /// The field's name.
    pub name: Option<String>,
    /// The file's name.
    pub file_name: Option<String>,
    /// Its content.
    pub bytes: Bytes,
}

/// The parts of a multipart form that are files or pictures; other fields are refused.
///
/// # Errors
/// A broken form, a field that is no file, or more than `max` parts.
pub async fn multipart(body: Bytes, boundary: String, max: usize) -> Result<Vec<Part>, Problem> {
    let (files, fields) = multipart_with_fields(body, boundary, max).await?;
    match fields.first() {
        None => Ok(files),
        Some(field) => {
            let name = field.name.as_deref().unwrap_or("");
            let detail = format!(
                "the field {name:?} is no file: give each picture's part a file name (curl: -F 'image=@picture.jpg')"
            );
            Err(Problem::bad_request("unexpected_field", detail))
        }
    }
}

/// The parts of a multipart form: those with a file name or a media type, and the plain fields.
///
/// # Errors
/// A broken form, or more than `max` parts of either kind.
pub async fn multipart_with_fields(
    body: Bytes,
    boundary: String,
    max: usize,
) -> Result<(Vec<Part>, Vec<Part>), Problem> {
    let broken = |error: multer::Error| {
        Problem::bad_request("invalid_multipart", format!("the multipart form is broken: {error}"))
    };
    let stream = futures::stream::once(async move { Ok::<_, std::convert::Infallible>(body) });
    let mut form = multer::Multipart::new(stream, boundary);
    let (mut files, mut fields) = (Vec::new(), Vec::new());
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let is_file = field.file_name().is_some() || field.content_type().is_some();
        let (name, file_name) = (field.name().map(str::to_owned), field.file_name().map(str::to_owned));
        let part = Part { name, file_name, bytes: field.bytes().await.map_err(broken)? };
        let list = if is_file { &mut files } else { &mut fields };
        if list.len() == max {
            return Err(too_many_images(max));
        }
        list.push(part);
    }
    Ok((files, fields))
}

/// A request of more pictures than one may hold.
#[must_use]
pub fn too_many_images(max: usize) -> Problem {
    let detail = format!("a request holds at most {max} pictures: send the rest in another one");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_images", detail).with("max_images", max)
}

/// Embeds the pictures of a request, each with its own outcome, in order.
///
/// # Errors
/// A problem when the server is full, or when the one raw picture of a request failed.
pub async fn embed_inputs(
    embedder: &Embedder,
    inputs: Inputs,
) -> Result<Vec<Result<Embedded, ItemError>>, Problem> {
    let Inputs { images, single, permit, held: _held } = inputs;
    // The files go along with the pictures, so that they are let go once decoded.
    let (images, slots) = Slots::split(images);
    let mut embedded = embedder.embed_all(images, Some(permit)).await?;
    match embedded.pop_if(|outcome| single && outcome.is_err()) {
        Some(Err(error)) => Err(error.into()),
        _ => Ok(slots.fill(embedded, ItemError::lost)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_and_data_uris_are_read() {
        for text in ["aGk=", "aGk", " aGk=\n", "data:image/png;base64,aGk=", "data:;base64,aGk="] {
            assert_eq!(image_from_text(text).unwrap().as_slice(), b"hi", "{text}");
        }
        assert_eq!(image_from_text("a_-k").unwrap_err().code, "invalid_base64");
        assert_eq!(image_from_text("data:image/png,abc").unwrap_err().code, "invalid_data_uri");
        assert_eq!(image_from_text("data:").unwrap_err().code, "invalid_data_uri");
    }

    #[test]
    fn an_input_is_an_image_or_a_url() {
        let read = |json: &str| {
            json_inputs(json.as_bytes(), 2)
                .map(|inputs| inputs.into_iter().map(|i| i.map_err(|e| e.code)).collect::<Vec<_>>())
        };
        let codes = read(r#"{"inputs":[{"url":"http://x/"},{}]}"#).unwrap();
        assert_eq!(codes, [Ok(Given::Url("http://x/".to_owned())), Err("invalid_input".into())]);
        assert_eq!(read(r#"{"inputs":[{},{},{}]}"#).unwrap_err().code, "too_many_images");
        assert_eq!(read(r#"{"inputs":[{"img":"x"}]}"#).unwrap_err().code, "invalid_json");
        assert_eq!(read(r#"{"inputs":[{"image":7}]}"#).unwrap_err().code, "invalid_json");
    }
}
