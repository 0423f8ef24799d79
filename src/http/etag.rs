//! Entity tags: a client that has a reply already is told so (RFC 9110, 8.8.3 and 13.1.2).

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Whether `if-none-match` lists the tag; weak and strong forms of it are the same.
#[must_use]
pub fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let wanted = opaque(tag);
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|listed| opaque(listed) == wanted)
}

/// Adds the tag to a reply.
#[must_use]
pub fn tagged(mut response: Response, tag: &str) -> Response {
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// 304.
#[must_use]
pub fn not_modified(tag: &str) -> Response {
    tagged(StatusCode::NOT_MODIFIED.into_response(), tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_a_list() {
        let known = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            }
            is_known(&headers, "W/\"abc\"")
        };
        for values in [&["\"abc\""][..], &["W/\"abc\""], &["\"x\", W/\"abc\""], &["\"x\"", "\"abc\""]] {
            assert!(known(values), "{values:?}");
        }
        for values in [&[][..], &["\"abcd\""], &["abc"], &["*"], &[""], &["\"ABC\""]] {
            assert!(!known(values), "{values:?}");
        }
    }
}
