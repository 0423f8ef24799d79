//! Extractors: bodies read within their bounds, and axum's own with problems for rejections.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use super::auth::Caller;
use super::problem::Problem;
use crate::admission::Permit;
use crate::app::AppState;
use crate::trace;
use crate::transfer::Transfer;

/// `axum::extract::Query` whose rejection is a problem of code `invalid_query`, also of what is no text: that would be
/// read with other letters in the place of its bytes.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        if percent_decode_str(query).decode_utf8().is_err() {
            let detail = "the query holds percent-encoded bytes that are no UTF-8";
            return Err(Problem::bad_request("invalid_query", detail));
        }
        let axum::extract::Query(value) = axum::extract::Query::from_request_parts(parts, state).await?;
        Ok(Self(value))
    }
}

/// `axum::extract::Path` whose rejection is a problem of code `invalid_path`.
#[derive(Debug, Clone, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub struct Path<T>(pub T);

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request("invalid_query", rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request("invalid_path", rejection.body_text())
    }
}

/// The app takes requests now: first among a handler's arguments, so that others are refused unread.
#[derive(Debug, Clone, Copy)]
pub struct Ready;

impl FromRequestParts<AppState> for Ready {
    type Rejection = Problem;

    async fn from_request_parts(_parts: &mut Parts, app: &AppState) -> Result<Self, Self::Rejection> {
        app.ready()?;
        Ok(Self)
    }
}

/// The media type of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaType {
    /// `image/*` or `application/octet-stream`.
    Image,
    /// `application/json` or `application/*+json`.
    Json,
    /// `multipart/form-data` with its boundary.
    Multipart(String),
}

/// Longest boundary of a form (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;

impl MediaType {
    /// Of a request's headers.
    ///
    /// # Errors
    /// 415 when it is missing or none of those taken; 400 for a multipart body without boundary.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return Err(unsupported("the request has no content-type"));
        };
        let text = value.to_str().unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/octet-stream" => Ok(Self::Image),
            "application/json" => Ok(Self::Json),
            "multipart/form-data" => {
                let boundary = multer::parse_boundary(text).ok().filter(|text| text.len() <= MAX_BOUNDARY);
                boundary.map(Self::Multipart).ok_or_else(|| {
                    let detail = format!(
                        "the content-type multipart/form-data has no boundary of at most {MAX_BOUNDARY} bytes: let the client set it"
                    );
                    Problem::bad_request("invalid_multipart", detail)
                })
            }
            other if other.starts_with("image/") => Ok(Self::Image),
            other if other.starts_with("application/") && other.ends_with("+json") => Ok(Self::Json),
            "application/x-www-form-urlencoded" => Err(unsupported(
                "the content-type is application/x-www-form-urlencoded, which curl sets by itself: add -H 'content-type: image/jpeg'",
            )),
            other => Err(unsupported(&format!("the content-type {other:?} is not taken"))),
        }
    }
}

fn unsupported(what: &str) -> Problem {
    let detail = format!(
        "{what}. Send a picture as image/* or application/octet-stream, several as multipart/form-data, or application/json"
    );
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

/// A body read whole, with its media type, its size counted in the admission while the permit lives.
#[derive(Debug)]
pub struct Payload {
    /// What the body is.
    pub media: MediaType,
    /// The body.
    pub bytes: Bytes,
    /// Its place in the server; share it with the work that holds on to the bytes.
    pub permit: Arc<Permit>,
    /// Whose it is, where that is known.
    pub caller: Option<Caller>,
}

impl FromRequest<AppState> for Payload {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Self::Rejection> {
        app.ready()?;
        let media = MediaType::of(request.headers())?;
        let caller = request.extensions().get().cloned();
        let (bytes, permit) = read_body(request.into_body(), app).await?;
        Ok(Self { media, bytes, permit: Arc::new(permit), caller })
    }
}

/// A JSON body; bad JSON, unknown fields and wrong types are problems of code `invalid_json`.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, Self::Rejection> {
        let payload = Payload::from_request(request, app).await?;
        match payload.media {
            MediaType::Json => parse_json(&payload.bytes).map(Self),
            _ => Err(unsupported("this route takes a JSON body only")),
        }
    }
}

/// Reads JSON.
///
/// # Errors
/// A problem of code `invalid_json` with the line and column.
pub fn parse_json<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let detail = format!("the body is not the JSON this route takes: {error}");
        Problem::bad_request("invalid_json", detail)
    })
}

/// Reads a body within `max_body_bytes` and `body_timeout_ms`, admitting its bytes as they come.
///
/// # Errors
/// 413, 408, 503 when the server is full, or 400 when the client breaks off.
pub async fn read_body(body: Body, app: &AppState) -> Result<(Bytes, Permit), Problem> {
    let arrival = app.incoming.begin();
    let collected = async {
        tokio::select! {
            biased;
            () = arrival.asked() => Err(gave_way()),
            collected = collect(body, app, &arrival) => collected,
        }
    };
    let read = trace::part("body", tokio::time::timeout(app.config.body_timeout(), collected));
    match read.await {
        Ok(outcome) => outcome,
        Err(_) => {
            let detail = format!("the body did not arrive within {} ms", app.config.body_timeout_ms);
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail))
        }
    }
}

/// The problem of a body whose client kept others out.
pub fn gave_way() -> Problem {
    let detail =
        "the server is full, and this body came so slowly that its place went to others: send it again";
    Problem::unavailable("overloaded", detail).retry_after(Duration::from_secs(1))
}

async fn collect(mut body: Body, app: &AppState, arrival: &Transfer) -> Result<(Bytes, Permit), Problem> {
    use axum::body::HttpBody;
    let mut permit = app.admission.admit(0, 0)?;
    let _waits = arrival.waits();
    let max = app.config.max_body_bytes;
    let too_large = || {
        let detail = format!("the body is larger than the {max} bytes that are taken");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).with("max_bytes", max)
    };
    let declared = body.size_hint().exact().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    if declared.is_some_and(|size| size > max) {
        return Err(too_large());
    }
    // Refused unread where there is no room for it now. But only what has come is held: whoever announces much and
    // sends it slowly would otherwise keep others out.
    let announced = declared.unwrap_or(0);
    drop(app.incoming.admit(announced).await?);
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    let mut read = 0usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::bad_request("body_incomplete", format!("the body could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        read = read.saturating_add(data.len());
        if read > max {
            return Err(too_large());
        }
        arrival.moved(data.len());
        let more = read.saturating_sub(permit.bytes());
        app.incoming.grow(&mut permit, more).await?;
        arrival.holds(permit.bytes());
        match (&first, rest.is_empty()) {
            (None, true) => first = Some(data),
            (Some(begun), true) => {
                rest.reserve(declared.unwrap_or(2 * read));
                rest.extend_from_slice(begun);
                rest.extend_from_slice(&data);
            }
            _ => rest.extend_from_slice(&data),
        }
    }
    let bytes = if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() };
    Ok((bytes, permit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(text: &'static str) -> Result<MediaType, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, axum::http::HeaderValue::from_static(text));
        MediaType::of(&headers)
    }

    #[test]
    fn media_types_are_told_apart() {
        assert_eq!(media("image/jpeg").unwrap(), MediaType::Image);
        assert_eq!(media("IMAGE/PNG; q=1").unwrap(), MediaType::Image);
        assert_eq!(media("application/json; charset=utf-8").unwrap(), MediaType::Json);
        assert_eq!(media("application/vnd.api+json").unwrap(), MediaType::Json);
        assert_eq!(
            media("multipart/form-data; boundary=xyz").unwrap(),
            MediaType::Multipart("xyz".to_owned())
        );
        assert_eq!(media("multipart/form-data").unwrap_err().code, "invalid_multipart");
        assert_eq!(media("text/plain").unwrap_err().status, 415);
        assert!(media("application/x-www-form-urlencoded").unwrap_err().detail.contains("-H"));
        assert_eq!(MediaType::of(&HeaderMap::new()).unwrap_err().code, "unsupported_media_type");
    }
}
