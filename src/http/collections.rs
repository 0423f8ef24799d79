//! /collections: the collections of items.

use axum::extract::State;
use axum::http::StatusCode;
use latentd_model::Contract;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Path, Ready};
use super::problem::Problem;
use crate::app::AppState;
use crate::store::{CollectionInfo, CollectionName, StoreError};

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_collections)).routes(routes!(delete_collection))
}

/// The collections.
#[derive(Debug, Serialize, ToSchema)]
pub struct CollectionsReply {
    /// By name.
    pub collections: Vec<CollectionView>,
}

/// A collection.
#[derive(Debug, Serialize, ToSchema)]
pub struct CollectionView {
    /// Its name.
    #[schema(example = "default")]
    pub name: String,
    /// The contract of all its vectors.
    #[schema(value_type = String, example = "0123456789abcdef")]
    pub contract: Contract,
    /// Numbers of a vector.
    pub dim: usize,
    /// How many items.
    pub items: u64,
    /// Items that searches leave out because they were damaged on disk; written again they heal.
    pub damaged: u64,
    /// When its first item was written.
    #[schema(value_type = String, format = DateTime)]
    pub created: String,
}

impl From<CollectionInfo> for CollectionView {
    fn from(info: CollectionInfo) -> Self {
        let CollectionInfo { name, contract, dim, items, damaged, created } = info;
        Self { name: name.to_string(), contract, dim, items, damaged, created: created.to_string() }
    }
}

/// List collections
///
/// A collection comes into being with its first item, which binds it to that item's contract.
#[utoipa::path(
    get, path = "/collections", tag = "collections",
    responses(
        (status = 200, description = "The collections", body = CollectionsReply),
        (status = 503, description = "Not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn list_collections(
    State(app): State<AppState>,
    _: Ready,
) -> Result<axum::Json<CollectionsReply>, Problem> {
    let collections = app.store.collections().await?.into_iter().map(CollectionView::from).collect();
    Ok(axum::Json(CollectionsReply { collections }))
}

/// Delete a collection
///
/// With all its items. Its name is then free, also for another contract.
#[utoipa::path(
    delete, path = "/collections/{name}", tag = "collections", params(("name" = String, Path, description = "The collection")),
    responses(
        (status = 204, description = "Deleted"),
        (status = 400, description = "A bad collection name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such collection", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn delete_collection(
    State(app): State<AppState>,
    _: Ready,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let name = CollectionName::new(&name)?;
    if app.store.drop_collection(name.clone()).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(StoreError::UnknownCollection(name).into())
}
