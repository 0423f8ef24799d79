//! CORS: which other origins' pages a browser lets call; none unless the configuration names them.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::config::ANY_ORIGIN;

/// How long a browser may keep the answer to its question.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Headers of replies that other origins' scripts may read.
const EXPOSED: [HeaderName; 8] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-latentd-model"),
    HeaderName::from_static("x-latentd-contract"),
    HeaderName::from_static("x-latentd-dim"),
    HeaderName::from_static("x-latentd-failed"),
    HeaderName::from_static("server-timing"),
    header::RETRY_AFTER,
    header::ETAG,
];

/// The layer for these origins, or none. Cookies play no part: a key is sent by the script that has it.
#[must_use]
pub fn layer(origins: &[String]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        [any] if any == ANY_ORIGIN => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE];
    let layer = CorsLayer::new().allow_origin(allowed).allow_methods(methods);
    Some(layer.allow_headers(AllowHeaders::mirror_request()).expose_headers(EXPOSED).max_age(MAX_AGE))
}
