//! /collections: the collections of items.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use latentd_model::Contract;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Path, Ready};
use super::held;
use super::problem::Problem;
use crate::app::AppState;
use crate::store::{CollectionInfo, CollectionName, StoreError};
use crate::trace;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_collections)).routes(routes!(delete_collection))
}

/// Bytes of a collection in a reply, about.
const LINE: usize = 256;

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
    /// How it is searched.
    pub index: IndexView,
}

/// How a collection is searched.
#[derive(Debug, Serialize, ToSchema)]
pub struct IndexView {
    /// `exact`: all vectors are compared; `hnsw`: a graph tells which are.
    #[schema(example = "exact")]
    pub kind: &'static str,
    /// Items that the graph does not lead to yet, so that they are compared with every query.
    pub waiting: u64,
    /// Nodes of the graph that a search for ten neighbours keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ef: Option<usize>,
    /// Share of the exact neighbours that searches found, of those it was measured on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall: Option<f64>,
}

impl From<CollectionInfo> for CollectionView {
    fn from(info: CollectionInfo) -> Self {
        let CollectionInfo { name, contract, dim, items, damaged, created, index } = info;
        let index =
            IndexView { kind: index.kind.name(), waiting: index.waiting, ef: index.ef, recall: index.recall };
        Self { name: name.to_string(), contract, dim, items, damaged, created: created.to_string(), index }
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
async fn list_collections(State(app): State<AppState>, _: Ready) -> Result<Response, Problem> {
    let found = trace::part("store collections", app.store.collections()).await?;
    let collections: Vec<_> = found.into_iter().map(CollectionView::from).collect();
    held::json(&app, collections.len() * LINE, CollectionsReply { collections }).await
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
        (status = 507, description = "The disk is full: nothing was deleted", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn delete_collection(
    State(app): State<AppState>,
    _: Ready,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let name = CollectionName::new(&name)?;
    if trace::part("store drop collection", app.store.drop_collection(name.clone())).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(StoreError::UnknownCollection(name).into())
}
