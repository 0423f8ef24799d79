//! The API's description: /openapi.json, and Swagger UI at /docs.

use axum::http::{HeaderValue, header};
use axum::routing::get;
use axum::{Json, Router};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::RefOr;
use utoipa::openapi::content::Content;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::app::AppState;

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
        description = "Embeddings of pictures and their nearest neighbours, by your own encoder.\n\nEvery error is an RFC 9457 problem with a stable `code`. Every vector carries the contract of its encoder; vectors of different contracts cannot be compared.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "embed", description = "Pictures to vectors"),
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
    let api = std::sync::Arc::new(api);
    let served = move || {
        let api = api.clone();
        async move { Json(api.as_ref().clone()) }
    };
    Router::from(page).layer(layer).route("/openapi.json", get(served))
}
