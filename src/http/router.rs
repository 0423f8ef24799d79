//! The router: every resource's routes, and what all requests pass through.

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::{
    auth, collections, cors, docs, duplicates, embed, held, info, items, kserve, models, observe, openai,
    preprocess, refresh, search, ui,
};
use crate::app::AppState;

fn described() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(docs::base())
        .merge(embed::routes())
        .merge(openai::routes())
        .merge(kserve::routes())
        .merge(preprocess::routes())
        .merge(items::routes())
        .merge(search::routes())
        .merge(duplicates::routes())
        .merge(collections::routes())
        .merge(models::routes())
        .merge(refresh::routes())
        .merge(info::routes())
}

/// The description of the API.
#[must_use]
pub fn openapi() -> OpenApi {
    openapi_with(|example| example.json.to_owned())
}

/// The description of the API with other examples than those compiled in.
#[must_use]
pub fn openapi_with(text: impl Fn(&docs::Example) -> String) -> OpenApi {
    docs::with_common(docs::with_examples(described().into_openapi(), text))
}

/// The whole app as a service.
pub fn router(app: AppState) -> Router {
    let (routes, _) = described().split_for_parts();
    let routes = routes
        .layer(from_fn_with_state(app.clone(), held::hold))
        // What every reply shares takes no place.
        .merge(docs::routes(openapi()))
        .merge(ui::routes())
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(from_fn_with_state(app.clone(), auth::authorise))
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .layer(SetResponseHeaderLayer::if_not_present(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ));
    // Outermost, so that a browser's question needs no key and every reply can be read where it may be.
    let routes = match cors::layer(&app.config.cors_origins.0) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes.with_state(app)
}
