//! The API's description: /openapi.json, and Swagger UI at /docs.

use axum::Router;
use axum::http::{HeaderValue, Method, header};
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::content::Content;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{OpenApi, Ref, RefOr, Response, SecurityRequirement};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::auth::{self, Needs};
use super::problem::Problem;
use crate::app::AppState;
use crate::keys::Role;

/// A real reply, written by the tests into openapi/examples/.
pub struct Example {
    /// Its file there.
    pub file: &'static str,
    /// Path and method of its route.
    pub route: (&'static str, &'static str),
    /// Its status and media type.
    pub reply: (&'static str, &'static str),
    /// Its content.
    pub json: &'static str,
}

/// Declares an example whose file is compiled in.
macro_rules! example {
    ($method:literal $path:literal => $status:literal $media:ident $file:literal) => {
        Example {
            file: $file,
            route: ($path, $method),
            reply: ($status, $media),
            json: include_str!(concat!("../../openapi/examples/", $file)),
        }
    };
}

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";

/// The examples.
pub const EXAMPLES: &[Example] = &[
    example!("post" "/embed" => "200" JSON "embed.json"),
    example!("post" "/embed" => "422" PROBLEM "embed-corrupt.json"),
    example!("put" "/items/{id}" => "201" JSON "put-item.json"),
    example!("post" "/items" => "200" JSON "post-items.json"),
    example!("get" "/items/{id}" => "200" JSON "get-item.json"),
    example!("get" "/items/{id}" => "404" PROBLEM "get-item-unknown.json"),
    example!("get" "/items" => "200" JSON "list-items.json"),
    example!("post" "/search" => "200" JSON "search.json"),
    example!("post" "/search" => "409" PROBLEM "search-contract.json"),
    example!("get" "/collections" => "200" JSON "collections.json"),
    example!("get" "/models" => "200" JSON "models.json"),
    example!("get" "/info" => "200" JSON "info.json"),
];

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "latentd",
        description = "Embeddings of pictures and their nearest neighbours, by your own encoder.\n\nEvery error is an RFC 9457 problem with a stable `code`. Every vector carries the contract of its encoder; vectors of different contracts cannot be compared.\n\nEvery route takes a deadline in the header `x-request-timeout-ms` (or `grpc-timeout`): a request that is not finished by then leaves the queue and gets 504 `deadline_exceeded`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "embed", description = "Pictures to vectors"),
        (name = "inference", description = "The Open Inference Protocol (KServe, Triton)"),
        (name = "items", description = "The items of a collection"),
        (name = "search", description = "Nearest neighbours"),
        (name = "collections", description = "Collections of items"),
        (name = "models", description = "Encoders"),
        (name = "server", description = "Health, metrics, configuration"),
    )
)]
struct ApiDoc;

/// The description before the routes are added.
#[must_use]
pub fn base() -> OpenApi {
    ApiDoc::openapi()
}

/// Adds the examples to the description of their routes; `text` gives the content of each.
#[must_use]
pub fn with_examples(mut api: OpenApi, text: impl Fn(&Example) -> String) -> OpenApi {
    for example in EXAMPLES {
        let (path, method) = example.route;
        let content = api.paths.paths.get_mut(path).and_then(|item| content(item, method, example.reply));
        if let (Some(content), Ok(json)) = (content, serde_json::from_str(&text(example))) {
            content.example = Some(json);
        }
    }
    api
}

fn content<'a>(
    item: &'a mut PathItem,
    method: &str,
    (status, media): (&str, &str),
) -> Option<&'a mut Content> {
    let operation: &mut Option<Operation> = match method {
        "get" => &mut item.get,
        "put" => &mut item.put,
        "post" => &mut item.post,
        "delete" => &mut item.delete,
        _ => return None,
    };
    let RefOr::T(response) = operation.as_mut()?.responses.responses.get_mut(status)? else { return None };
    match response.content.get_mut(media)? {
        RefOr::T(content) => Some(content),
        RefOr::Ref(_) => None,
    }
}

/// Adds what is common to all: how a key is sent, and what requests get whose key does not do, or that are late.
pub fn with_common(mut api: OpenApi) -> OpenApi {
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let header = ApiKey::Header(ApiKeyValue::new(auth::X_API_KEY));
    components.add_security_scheme("api_key", SecurityScheme::ApiKey(header));
    for (path, item) in &mut api.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::PUT, &mut item.put),
            (Method::POST, &mut item.post),
            (Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            may_be_late(operation);
            match auth::needs(&method, path) {
                Some(Needs::Nothing) => {}
                Some(Needs::Role(role)) => needs_key(operation, role),
                None => needs_key(operation, Role::Admin),
            }
        }
    }
    api
}

fn needs_key(operation: &mut Operation, role: Role) {
    let scheme = |name: &str| SecurityRequirement::new(name, [] as [&str; 0]);
    // A server without keys takes everybody's requests, but for those of an administrator.
    let open = (role != Role::Admin).then(SecurityRequirement::default);
    operation.security = Some(open.into_iter().chain([scheme("bearer"), scheme("api_key")]).collect());
    tell(operation, "401", "The server has keys, and none of them was sent");
    tell(operation, "403", format!("The key has not the role {role}"));
    tell(operation, "429", "The key has had what it may for now; see retry-after");
}

/// What each request may get that takes too long, or whose body does.
fn may_be_late(operation: &mut Operation) {
    if operation.request_body.is_some() {
        tell(operation, "408", "The body did not come in time");
    }
    tell(operation, "504", "Not finished within the time that the client gave");
}

/// Describes a problem where the operation itself does not.
fn tell(operation: &mut Operation, status: &str, description: impl Into<String>) {
    let mut response = Response::new(description);
    let schema = Ref::from_schema_name("Problem");
    response.content.insert(PROBLEM.to_owned(), Content::new(Some(schema)).into());
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
}

/// The description as it is committed: pretty JSON and a line end.
///
/// # Errors
/// Never in practice.
pub fn to_json(api: &OpenApi) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(api)? + "\n")
}

/// /openapi.json and /docs.
pub fn routes(api: OpenApi) -> Router<AppState> {
    let page = SwaggerUi::new("/docs").config(Config::from("/openapi.json").try_it_out_enabled(true));
    let policy = HeaderValue::from_static(
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    );
    let layer = SetResponseHeaderLayer::if_not_present(header::CONTENT_SECURITY_POLICY, policy);
    // Written once: every reply shares it.
    let text = serde_json::to_vec(&api).ok().map(Bytes::from);
    let served = move || {
        let reply = match &text {
            Some(text) => ([(header::CONTENT_TYPE, JSON)], text.clone()).into_response(),
            None => Problem::internal().into_response(),
        };
        async move { reply }
    };
    let referrer = HeaderValue::from_static("no-referrer");
    let referrer = SetResponseHeaderLayer::if_not_present(header::REFERRER_POLICY, referrer);
    Router::from(page).layer(layer).layer(referrer).route("/openapi.json", get(served))
}
