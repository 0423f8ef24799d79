//! Keys at the door: which route needs which role, and whose request this is.

use std::sync::{Arc, OnceLock};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use crate::app::{App, AppState};
use crate::keys::{InFlight, Key, Role};

/// Longest key that is looked at.
const MAX_KEY: usize = 512;

/// The code and detail for a key that nobody knows.
const INVALID_KEY: (&str, &str) = ("invalid_key", "this key is not known here");

/// The header beside `authorization` that a key may come in.
pub const X_API_KEY: &str = "x-api-key";

/// What a route asks of whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: health for probes, and pages that hold no data.
    Nothing,
    /// A key of this role or a higher one, where the server has keys.
    Role(Role),
}

/// What the routes need; `None` for one that nobody decided on, which then needs the highest role.
#[must_use]
pub fn needs(method: &Method, path: &str) -> Option<Needs> {
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let by_method = |other: Role| Needs::Role(if reads { Role::Read } else { other });
    Some(match path {
        "/" | "/livez" | "/readyz" | "/openapi.json" => Needs::Nothing,
        _ if path.starts_with("/ui/") || path.starts_with("/docs") => Needs::Nothing,
        "/embed" | "/search" | "/duplicates" | "/preprocess" => Needs::Role(Role::Read),
        "/v1/embeddings" => Needs::Role(Role::Read),
        "/v2" | "/v2/health/live" | "/v2/health/ready" => Needs::Nothing,
        // Inference is a POST and changes nothing.
        _ if path.starts_with("/v2/models/") => Needs::Role(Role::Read),
        "/info" | "/metrics" | "/models" | "/collections" => by_method(Role::Admin),
        "/items" | "/collections/{name}" => by_method(Role::Write),
        _ if path.starts_with("/items/") => by_method(Role::Write),
        _ if path.starts_with("/models/") => by_method(Role::Admin),
        _ => return None,
    })
}

/// Whose request it is, in the request's extensions: for what is limited by key.
#[derive(Debug, Clone)]
pub struct Caller {
    key: Arc<Key>,
    /// The role that the request takes.
    role: Role,
}

impl Caller {
    /// Whose request it is now, for one that goes on: the key's entry may have changed since, or be gone.
    ///
    /// # Errors
    /// What a new request would get.
    pub fn again(&self, app: &App) -> Result<Self, Problem> {
        let role = self.role;
        match app.keys.again(&self.key) {
            Some(key) if key.role() >= role => Ok(Self { key, role }),
            Some(key) => Err(role_needed(&key, role)),
            None => Err(Problem::new(StatusCode::UNAUTHORIZED, INVALID_KEY.0, INVALID_KEY.1)),
        }
    }

    /// Pictures that may be in flight at once, when that is limited.
    pub fn max_images(&self) -> Option<usize> {
        self.key.max_images()
    }
}

/// Takes `pictures` in flight for whoever calls; they are given back when the result is dropped.
///
/// # Errors
/// 429 when the caller's key has as many in flight as it may, 413 when it never may have so many.
pub fn hold(caller: Option<&Caller>, pictures: usize) -> Result<Option<InFlight>, Problem> {
    let Some(Caller { key, .. }) = caller else { return Ok(None) };
    if let Some(max) = key.max_images().filter(|&max| pictures > max) {
        let detail = format!("this key may have {max} pictures in flight: send fewer in one request");
        let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_images", detail);
        return Err(problem.with("max_images", max));
    }
    key.pictures(pictures).map(Some).ok_or_else(|| {
        let detail = "this key has as many pictures in flight as it may: wait for replies";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "key_images_in_flight", detail);
        problem.retry_after(std::time::Duration::from_secs(1))
    })
}

/// Where the door writes whose request it was, for the log.
#[derive(Debug, Clone, Default)]
pub struct Who(Arc<OnceLock<Arc<Key>>>);

impl Who {
    /// The key's name, when there is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.get().map(|key| key.name())
    }
}

/// The middleware: lets a request in, or answers with a problem before its body is read.
pub async fn authorise(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    // Without a route it is a 404 whoever asks.
    let Some(path) = request.extensions().get::<MatchedPath>() else { return next.run(request).await };
    let needs = needs(request.method(), path.as_str()).unwrap_or(Needs::Role(Role::Admin));
    let role = match needs {
        Needs::Nothing => return next.run(request).await,
        Needs::Role(role) => role,
    };
    let key = match admit(&app, request.headers(), role) {
        Ok(key) => key,
        Err(refused) => return refused.into_response(),
    };
    if let Some(key) = key {
        if let Some(Who(who)) = request.extensions().get::<Who>() {
            let _ = who.set(key.clone());
        }
        if let Err(wait) = key.request() {
            let detail = "this key has made as many requests as it may for now";
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
            return problem.retry_after(wait).into_response();
        }
        request.extensions_mut().insert(Caller { key, role });
    }
    next.run(request).await
}

/// The key of a request that may do what `role` may; `None` where no key is needed and none is known.
fn admit(app: &App, headers: &HeaderMap, role: Role) -> Result<Option<Arc<Key>>, Refused> {
    let keys = &app.keys;
    let given = given(headers);
    let key = given.and_then(|given| keys.find(given));
    if !keys.required() && role != Role::Admin {
        return Ok(key);
    }
    if !keys.any() {
        let detail = "changing the encoder is off: start the server with --admin-key-file or --api-keys-file, and send an admin key as `authorization: Bearer KEY`";
        return Err(Refused::Forbidden(Problem::new(StatusCode::FORBIDDEN, "admin_key_not_set", detail)));
    }
    match key {
        Some(key) if key.role() >= role => Ok(Some(key)),
        Some(key) => Err(Refused::Forbidden(role_needed(&key, role))),
        None => {
            let (code, detail) = match given {
                _ if !keys.required() => {
                    ("admin_key_needed", "this takes the admin key: send it as `authorization: Bearer KEY`")
                }
                None => (
                    "key_needed",
                    "this takes a key: send it as `authorization: Bearer KEY` or `x-api-key: KEY`",
                ),
                Some(_) => INVALID_KEY,
            };
            Err(Refused::Unknown(Problem::new(StatusCode::UNAUTHORIZED, code, detail)))
        }
    }
}

fn role_needed(key: &Key, role: Role) -> Problem {
    let detail = format!("this key has the role {}, and this takes {role}", key.role());
    Problem::new(StatusCode::FORBIDDEN, "role_needed", detail).with("role", role.to_string())
}

/// A request that is not let in.
enum Refused {
    /// Nobody knows who it is.
    Unknown(Problem),
    /// It may not.
    Forbidden(Problem),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Forbidden(problem) => problem.into_response(),
            Self::Unknown(problem) => {
                let mut response = problem.into_response();
                let challenge = HeaderValue::from_static("Bearer realm=\"latentd\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                response
            }
        }
    }
}

/// The key that a request brings: a bearer token, else `x-api-key`.
pub fn given(headers: &HeaderMap) -> Option<&str> {
    let bearer = || {
        let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    };
    let plain = || headers.get(X_API_KEY)?.to_str().ok();
    bearer().or_else(plain).map(str::trim).filter(|key| !key.is_empty() && key.len() <= MAX_KEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_as_bearer_or_in_a_header_of_its_own() {
        let of = |pairs: &[(&'static str, &str)]| {
            let value = |text: &str| HeaderValue::from_str(text).unwrap();
            let headers = pairs.iter().map(|&(name, text)| (name.parse().unwrap(), value(text))).collect();
            given(&headers).map(str::to_owned)
        };
        assert_eq!(of(&[("authorization", "bearer  k ")]).as_deref(), Some("k"));
        assert_eq!(of(&[("x-api-key", "k")]).as_deref(), Some("k"));
        assert_eq!(of(&[("authorization", "Basic eA=="), ("x-api-key", "k")]).as_deref(), Some("k"));
        assert_eq!(of(&[("authorization", "Bearer a"), ("x-api-key", "b")]).as_deref(), Some("a"));
        assert_eq!(of(&[("authorization", "Bearer")]), None);
        assert_eq!(of(&[("authorization", "Bearer  ")]), None);
        assert_eq!(of(&[("x-api-key", &"k".repeat(MAX_KEY + 1))]), None);
    }

    #[test]
    fn every_route_of_the_description_has_a_role_that_somebody_decided_on() {
        let api = super::super::router::openapi();
        assert!(api.paths.paths.len() > 10);
        for (path, item) in &api.paths.paths {
            let there = [
                (Method::GET, &item.get),
                (Method::PUT, &item.put),
                (Method::POST, &item.post),
                (Method::DELETE, &item.delete),
                (Method::PATCH, &item.patch),
            ];
            for (method, _) in there.into_iter().filter(|(_, operation)| operation.is_some()) {
                assert!(needs(&method, path).is_some(), "{method} {path}");
            }
        }
        let role = |method, path| needs(&method, path);
        assert_eq!(role(Method::PUT, "/items/{id}"), Some(Needs::Role(Role::Write)));
        assert_eq!(role(Method::GET, "/items/{id}/image"), Some(Needs::Role(Role::Read)));
        assert_eq!(role(Method::DELETE, "/collections/{name}"), Some(Needs::Role(Role::Write)));
        assert_eq!(role(Method::POST, "/models/{name}/activate"), Some(Needs::Role(Role::Admin)));
        assert_eq!(role(Method::DELETE, "/models/refresh"), Some(Needs::Role(Role::Admin)));
        assert_eq!(role(Method::GET, "/models/refresh"), Some(Needs::Role(Role::Read)));
        assert_eq!(role(Method::GET, "/livez"), Some(Needs::Nothing));
        assert_eq!(role(Method::POST, "/v2/models/{name}/infer"), Some(Needs::Role(Role::Read)));
        assert_eq!(role(Method::GET, "/new"), None);
    }
}
