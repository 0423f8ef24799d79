//! The router: every resource's routes, and what all requests pass through.

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::{collections, docs, embed, info, items, models, observe, preprocess, search, ui};
use crate::app::AppState;

fn described() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(docs::base())
        .merge(embed::routes())
        .merge(preprocess::routes())
        .merge(items::routes())
        .merge(search::routes())
        .merge(collections::routes())
        .merge(models::routes())
        .merge(info::routes())
}

/// The description of the API.
#[must_use]
pub fn openapi() -> OpenApi {
    docs::with_examples(described().into_openapi())
}

/// The whole app as a service.
pub fn router(app: AppState) -> Router {
    let (routes, api) = described().split_for_parts();
    routes
        .merge(docs::routes(docs::with_examples(api)))
        .merge(ui::routes())
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}
