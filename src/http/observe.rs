//! Observation: every request gets an id, a time limit, a log line, its metrics, a span where one is wanted, and problems
//! for its errors.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::Instrument;

use super::auth::Who;
use super::deadline::Deadline;
use super::problem::Problem;
use super::span::{Answered, RequestSpan};
use crate::app::AppState;
use crate::trace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken over from a client.
const MAX_ID: usize = 128;

/// Most bytes read of an error's text.
const MAX_ERROR_TEXT: usize = 4096;

/// The id of a request, in its extensions.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// What a request's log line and metrics say whose client left before it was answered, as nginx has it.
const CLIENT_LEFT: u16 = 499;

/// The middleware.
pub async fn observe(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let id = taken_over(request.headers()).unwrap_or_else(new_id);
    let who = Who::default();
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(who.clone());
    let logged = tracing::info_span!("request", id);
    let mut seen = Seen {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        route: request.extensions().get::<MatchedPath>().cloned(),
        id,
        who,
        started: Instant::now(),
        span: RequestSpan::begin(&app, &request),
        app,
        told: false,
    };
    let response = match Deadline::of(request.headers(), seen.app.config.request_timeout()) {
        Ok(deadline) => {
            // Dropped at its deadline, the handler's future takes its pictures out of the queues.
            let record = seen.span.as_ref().map(RequestSpan::record);
            let work = trace::within(record, next.run(request).instrument(logged));
            let answered = tokio::time::timeout(deadline.limit, work).await;
            answered.unwrap_or_else(|_| deadline.passed(seen.app.admission.retry_after()).into_response())
        }
        Err(problem) => problem.into_response(),
    };
    let response = finish(response, &seen.id, &seen.method, &seen.path).await;
    seen.tell(&response);
    response
}

/// A request, told of once: when it is answered, or when its client has left before.
struct Seen {
    app: AppState,
    method: Method,
    path: String,
    route: Option<MatchedPath>,
    id: String,
    who: Who,
    started: Instant,
    span: Option<RequestSpan>,
    told: bool,
}

impl Seen {
    fn tell(&mut self, response: &Response) {
        self.told = true;
        let span = self.span.take();
        let answered = Answered {
            method: &self.method,
            path: &self.path,
            route: self.route.as_ref().map(MatchedPath::as_str),
            id: &self.id,
            key: self.who.name(),
            took: self.started.elapsed(),
        };
        log(&self.app, response, &answered, span.as_ref().map(RequestSpan::trace_id).as_deref());
        if let Some(span) = span {
            span.end(&self.app, response, &answered);
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if !self.told {
            let mut none = Response::default();
            *none.status_mut() = StatusCode::from_u16(CLIENT_LEFT).unwrap_or(StatusCode::BAD_REQUEST);
            self.tell(&none);
        }
    }
}

/// Counts an answer and logs a line: never its body, its query or its key.
fn log(app: &AppState, response: &Response, answered: &Answered<'_>, trace_id: Option<&str>) {
    let &Answered { method, path, route, id, key, took } = answered;
    let (status, ms) = (response.status().as_u16(), took.as_micros() as f64 / 1e3);
    // Unknown paths share one label, or a scanner would fill the memory with series.
    app.metrics.request(route.unwrap_or("unmatched"), method_label(method), status, took);
    let code = response.extensions().get::<Problem>().map(|problem| problem.code.as_ref());
    let busy = matches!(
        response.status(),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS | StatusCode::GATEWAY_TIMEOUT
    );
    if let (Some(code), true) = (code, busy) {
        app.metrics.rejected(code);
    }
    let path: String = path.chars().take(200).collect();
    if matches!(route, Some("/livez" | "/readyz" | "/metrics")) {
        tracing::debug!(%method, path, status, ms, id, key, trace_id, "request");
    } else if response.status().is_server_error() {
        tracing::warn!(%method, path, status, ms, id, key, code, trace_id, "request");
    } else {
        tracing::info!(%method, path, status, ms, id, key, code, trace_id, "request");
    }
}

/// Gives the response its id, and an error that is no problem yet the form of one.
async fn finish(mut response: Response, id: &str, method: &Method, path: &str) -> Response {
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let mut headers = std::mem::take(response.headers_mut());
        let mut problem = match response.extensions_mut().remove::<Problem>() {
            Some(problem) => problem,
            None => Problem::of_status(status, error_text(response, method, path).await),
        };
        problem.request_id = Some(id.into());
        response = told_as(problem, path).into_response();
        for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
            headers.remove(name);
        }
        response.headers_mut().extend(headers);
    }
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// A problem with the member that clients of other APIs look for.
fn told_as(problem: Problem, path: &str) -> Problem {
    let detail = problem.detail.to_string();
    if path.starts_with("/v1/") {
        let kind = if problem.status < 500 { "invalid_request_error" } else { "server_error" };
        let code = problem.code.to_string();
        problem.with("error", json!({"message": detail, "type": kind, "param": null, "code": code}))
    } else if path == "/v2" || path.starts_with("/v2/") {
        problem.with("error", detail)
    } else {
        problem
    }
}

/// What to say about an error that came with a bare text or none.
async fn error_text(response: Response, method: &Method, path: &str) -> String {
    let path: String = path.chars().take(200).collect();
    match response.status() {
        StatusCode::NOT_FOUND => format!("there is no {path}: see /docs for the routes"),
        // The router adds that header further out.
        StatusCode::METHOD_NOT_ALLOWED => {
            format!("{path} does not take {method}: the header allow says what it does")
        }
        status => {
            let bytes = axum::body::to_bytes(response.into_body(), MAX_ERROR_TEXT).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            if text.is_empty() { status.canonical_reason().unwrap_or("error").to_owned() } else { text }
        }
    }
}

/// A client's own id, when it is short and printable.
fn taken_over(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(&REQUEST_ID)?.to_str().ok()?;
    let fits = !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| id.to_owned())
}

/// An id that is unique in this process and most likely among all.
fn new_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:016x}", KEY.hash_one(count))
}

/// The method's name where it is one of HTTP's own, so that labels stay few.
pub fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "PATCH" => "PATCH",
        _ => "other",
    }
}

/// What a handler's panic becomes: a problem, the panic's text going to the log alone.
pub fn panicked(panic: Box<dyn std::any::Any + Send + 'static>) -> Response<Body> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
    tracing::error!(panic = text, "a handler panicked");
    Problem::internal().into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_over_only_when_harmless() {
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(text).unwrap());
            taken_over(&headers)
        };
        assert_eq!(with("abc-1"), Some("abc-1".to_owned()));
        assert_eq!(with("a b"), None);
        assert_eq!(with(""), None);
        assert_eq!(with(&"x".repeat(MAX_ID + 1)), None);
        assert_ne!(new_id(), new_id());
    }
}
