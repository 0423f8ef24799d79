//! Problems: every error reply is an RFC 9457 `application/problem+json` with a stable `code`.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::admission::Overloaded;
use crate::app::NotReady;
use crate::outcome::EmbedError;

// The strings are boxed, since this is the error of nearly every function here.
/// An error reply (RFC 9457).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:latentd:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "urn:latentd:problem:corrupt_image")]
    pub kind: Box<str>,
    /// The status in words.
    #[schema(value_type = String, example = "Unprocessable Entity")]
    pub title: Box<str>,
    /// The HTTP status.
    #[schema(example = 422)]
    pub status: u16,
    /// What went wrong and what to do.
    #[schema(value_type = String)]
    pub detail: Box<str>,
    /// For programs; never changes its meaning.
    #[schema(value_type = String, example = "corrupt_image")]
    pub code: Cow<'static, str>,
    /// The request's id, also in the header `x-request-id` and in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub request_id: Option<Box<str>>,
    /// Further members of this kind of problem.
    #[serde(flatten)]
    #[schema(ignore)]
    pub extra: Box<Map<String, Value>>,
    #[serde(skip)]
    #[schema(ignore)]
    retry_after: Option<Duration>,
}

/// When to come back where nothing tells when it will be better.
const SOON: Duration = Duration::from_secs(1);

/// Longest text of an error, in bytes: it may tell what a client sent, which may be long.
const MAX_TEXT: usize = 1000;

/// The text, or its beginning where it is longer than an error may be.
#[must_use]
pub fn clipped(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.shrink_to_fit();
        text.push('…');
    }
    text
}

/// Rounded up: who comes sooner comes in vain.
fn whole_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}

impl Problem {
    /// A problem of `status`, told apart by `code`.
    pub fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        let (code, detail) = (code.into(), clipped(detail.into()));
        let title = status.canonical_reason().unwrap_or("Error").into();
        let kind = format!("urn:latentd:problem:{code}").into();
        let (number, detail) = (status.as_u16(), detail.into());
        let (extra, retry_after) = (Box::default(), None);
        let problem =
            Self { kind, title, status: number, detail, code, request_id: None, extra, retry_after };
        // Who says more says so after.
        if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(SOON) } else { problem }
    }

    /// 400.
    pub fn bad_request(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 404.
    pub fn not_found(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 409.
    pub fn conflict(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 422.
    pub fn unprocessable(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// 503.
    pub fn unavailable(code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    /// 500; what failed is in the log, not in the reply.
    #[must_use]
    pub fn internal() -> Self {
        let detail = "the server failed on this request; its log says more under the request id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
    }

    /// Adds a member.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(member.to_owned(), value.into());
        self
    }

    /// Says when to come back, in whole seconds, in the header `retry-after` too.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self.with("retry_after", whole_seconds(after))
    }

    /// The problem of an error status that some layer answered with, `detail` being its text.
    #[must_use]
    pub fn of_status(status: StatusCode, detail: String) -> Self {
        let code = match status {
            StatusCode::BAD_REQUEST => "bad_request",
            StatusCode::NOT_FOUND => "route_not_found",
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::REQUEST_TIMEOUT => "request_timeout",
            StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
            StatusCode::UNPROCESSABLE_ENTITY => "unprocessable",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            StatusCode::GATEWAY_TIMEOUT => "deadline_exceeded",
            _ if status.is_server_error() => return Self { status: status.as_u16(), ..Self::internal() },
            _ => "request_refused",
        };
        Self::new(status, code, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Overloaded> for Problem {
    fn from(error: Overloaded) -> Self {
        Self::unavailable("overloaded", error.to_string()).retry_after(error.retry_after)
    }
}

impl From<NotReady> for Problem {
    fn from(error: NotReady) -> Self {
        let (code, seconds) = match error {
            NotReady::Starting => ("not_ready", 1),
            NotReady::EncoderMissing(_) => ("encoder_missing", 5),
            NotReady::Draining => ("shutting_down", 5),
        };
        Self::unavailable(code, error.to_string()).retry_after(Duration::from_secs(seconds))
    }
}

impl From<EmbedError> for Problem {
    fn from(error: EmbedError) -> Self {
        let status = match error.code() {
            "empty_image" => StatusCode::BAD_REQUEST,
            "image_too_large" | "too_many_pixels" => StatusCode::PAYLOAD_TOO_LARGE,
            "unsupported_format" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "corrupt_image" | "preprocess_failed" => StatusCode::UNPROCESSABLE_ENTITY,
            "shutting_down" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        match error {
            EmbedError::Overloaded(overloaded) => overloaded.into(),
            error => Self::new(status, error.code(), error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_is_told_in_short() {
        let problem = Problem::bad_request("x", "é".repeat(100_000));
        assert!(problem.detail.len() <= MAX_TEXT + '…'.len_utf8() && problem.detail.ends_with("é…"));
        assert_eq!(&*Problem::bad_request("x", "short").detail, "short");
    }

    #[test]
    fn unavailable_says_when_to_come_back_rounded_up() {
        let seconds = |problem: Problem| problem.into_response().headers().get(header::RETRY_AFTER).cloned();
        assert_eq!(seconds(Problem::unavailable("x", "")).unwrap(), "1");
        let later = Problem::unavailable("x", "").retry_after(Duration::from_millis(1200));
        assert_eq!(later.extra["retry_after"], 2);
        assert_eq!(seconds(later).unwrap(), "2");
        assert_eq!(seconds(Problem::not_found("x", "")), None);
    }
}
