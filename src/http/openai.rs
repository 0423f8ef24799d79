//! POST /v1/embeddings: OpenAI's request and reply, the inputs being pictures.

use std::fmt;

use axum::extract::State;
use axum::response::Response;
use latentd_model::Manifest;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::apart::take_apart;
use super::encoding::{Encoding, Vector};
use super::extract::{MediaType, Payload, parse_json};
use super::given::Given;
use super::input::{Inputs, ItemError, embed_inputs, given_inputs, image_from_text};
use super::problem::Problem;
use super::stored::NUMBER;
use super::{held, json};
use crate::app::AppState;
use crate::config::MAX_IMAGES;
use crate::outcome::Embedded;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(embeddings))
}

/// What to embed, in OpenAI's form.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EmbeddingsRequest {
    /// The encoder served: `<name>-v<N>`, or `<name>`.
    model: String,
    /// A picture as a data URI, in base64, or by its address; or several.
    input: OneOrMany,
    /// How vectors are written; `base64` is of little-endian f32 numbers.
    #[serde(default)]
    encoding_format: EncodingFormat,
    /// Numbers of a vector: those that the encoder gives, or nothing.
    dimensions: Option<usize>,
    /// Whose request it is; not looked at.
    #[serde(default, rename = "user")]
    #[schema(value_type = Option<String>)]
    _user: Option<serde::de::IgnoredAny>,
}

/// One picture or several.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<OneOrMany, A::Error> {
                json::elements(list, MAX_IMAGES).map(OneOrMany::Many)
            }
        }

        deserializer.deserialize_any(Texts)
    }
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

/// The vectors, in OpenAI's form.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingsReply {
    /// `list`.
    object: &'static str,
    /// One per picture, in order.
    data: Vec<EmbeddingView>,
    /// The encoder, `<name>-v<N>`.
    model: String,
    /// No tokens.
    usage: Usage,
}

/// The vector of one picture.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingView {
    /// `embedding`.
    object: &'static str,
    /// The picture's place in the request, from 0.
    index: usize,
    /// The vector, of norm 1.
    embedding: Vector,
}

/// What OpenAI's clients ask for; pictures have no tokens.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// Embed pictures, in OpenAI's form
///
/// For clients of OpenAI's API: `client.embeddings.create(model=…, input=["data:image/jpeg;base64,…"])`. An input may be
/// an address where the server fetches such. Where one picture fails, so does the request; `/embed` tells of each.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "embed", request_body = EmbeddingsRequest,
    responses(
        (status = 200, description = "The vectors", body = EmbeddingsReply),
        (status = 404, description = "Another encoder serves", body = Problem, content_type = "application/problem+json"),
        (status = "4XX", description = "No usable request or picture", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn embeddings(State(app): State<AppState>, payload: Payload) -> Result<Response, Problem> {
    if payload.media != MediaType::Json {
        let detail = "this route takes application/json only; /embed takes picture files";
        return Err(Problem::new(
            axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            detail,
        ));
    }
    let Payload { bytes, permit, caller, .. } = payload;
    let (request, given) = take_apart(bytes.len(), &permit, move || read(&bytes)).await?;
    let embedder = app.embedder();
    let manifest = embedder.artefact().manifest();
    check_model(&request.model, manifest)?;
    let dim = manifest.output.dim;
    if let Some(wanted) = request.dimensions.filter(|&wanted| wanted != dim) {
        let detail = format!("vectors of this encoder have {dim} numbers, and not {wanted}");
        return Err(Problem::bad_request("invalid_dimensions", detail).with("dim", dim));
    }
    let encoding = match request.encoding_format {
        EncodingFormat::Float => Encoding::Float,
        EncodingFormat::Base64 => Encoding::Base64,
    };
    let inputs: Inputs = given_inputs(&app, given, permit, caller.as_ref()).await?;
    let mut data = Vec::with_capacity(inputs.images.len());
    for (index, outcome) in embed_inputs(&embedder, inputs).await?.into_iter().enumerate() {
        let Embedded { embedding, .. } = outcome.map_err(|error| of_picture(index, error))?;
        data.push(EmbeddingView { object: "embedding", index, embedding: encoding.encode(&embedding).0 });
    }
    let (model, usage) = (manifest.full_name(), Usage::default());
    let size = data.len() * dim * NUMBER;
    held::json(&app, size, EmbeddingsReply { object: "list", data, model, usage }).await
}

/// Reads the body: what is asked for, and the pictures.
///
/// # Errors
/// `invalid_json`; what is wrong with one picture is an inner error.
pub fn read(bytes: &[u8]) -> Result<(EmbeddingsRequest, Vec<Result<Given, ItemError>>), Problem> {
    let mut request: EmbeddingsRequest = parse_json(bytes)?;
    let inputs = match std::mem::replace(&mut request.input, OneOrMany::Many(Vec::new())) {
        OneOrMany::One(input) => vec![input],
        OneOrMany::Many(inputs) => inputs,
    };
    let given = |text: String| match text.starts_with("http://") || text.starts_with("https://") {
        true => Ok(Given::Url(text)),
        false => image_from_text(&text).map(Given::File),
    };
    Ok((request, inputs.into_iter().map(given).collect()))
}

/// Refuses the name of another encoder than the one that serves.
///
/// # Errors
/// 404 `model_not_found`.
pub fn check_model(name: &str, manifest: &Manifest) -> Result<(), Problem> {
    let full_name = manifest.full_name();
    if name == full_name || name == manifest.name {
        return Ok(());
    }
    let name: String = name.chars().take(100).collect();
    let detail = format!("there is no {name:?} here: {full_name} serves");
    Err(Problem::not_found("model_not_found", detail).with("model", full_name))
}

/// A request's problem where one of its pictures failed.
#[must_use]
pub fn of_picture(index: usize, error: ItemError) -> Problem {
    let detail = format!("picture {index}: {}", error.message);
    let problem = match error.code.as_ref() {
        "overloaded" | "shutting_down" => Problem::unavailable(error.code, detail),
        "internal_error" | "inference_failed" => {
            Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.code, detail)
        }
        _ => Problem::unprocessable(error.code, detail),
    };
    problem.with("index", index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_picture_or_several_in_each_form() {
        let read = |json: &str| {
            let (request, given) = read(json.as_bytes()).map_err(|problem| problem.code)?;
            let given: Vec<_> = given.into_iter().map(|given| given.map_err(|error| error.code)).collect();
            Ok::<_, std::borrow::Cow<'static, str>>((request.model, given))
        };
        let file = Ok(Given::File(b"hi".to_vec().into()));
        let one = read(
            r#"{"model":"m","input":"data:image/png;base64,aGk=","user":"u","encoding_format":"base64"}"#,
        );
        assert_eq!(one.unwrap(), ("m".to_owned(), vec![file.clone()]));
        let (_, several) = read(r#"{"model":"m","input":["aGk","https://x/y.jpg","a cat"]}"#).unwrap();
        let url = Ok(Given::Url("https://x/y.jpg".to_owned()));
        assert_eq!(several, [file, url, Err("invalid_base64".into())]);
        for bad in [r#"{"model":"m"}"#, r#"{"model":"m","input":[1,2]}"#, r#"{"input":"aGk"}"#, "[]"] {
            assert_eq!(read(bad).unwrap_err(), "invalid_json", "{bad}");
        }
    }
}
