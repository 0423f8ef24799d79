//! GET /: the web page, all of it in the binary.

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::app::AppState;

/// Nothing from elsewhere, nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page and its parts.
pub fn routes() -> Router<AppState> {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("ui/index.html"))))
        .route("/ui/style.css", get(|| file("text/css; charset=utf-8", include_str!("ui/style.css"))))
        .route("/ui/app.js", get(|| file("text/javascript; charset=utf-8", include_str!("ui/app.js"))))
        .route("/ui/icon.svg", get(|| file("image/svg+xml", include_str!("ui/icon.svg"))))
}

async fn file(media: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &'static str); 4] = [
        (header::CONTENT_TYPE, media),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
