//! GET /duplicates: items that are nearly the same.

use axum::extract::State;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Query, Ready};
use super::problem::Problem;
use super::stored;
use crate::app::{App, AppState};
use crate::store::{self, CollectionName, InvalidValue, Item, ItemId, StoreError};

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(duplicates))
}

/// Near items of one item, at most.
const MOST: usize = 100;
/// Searches of one request at a time: the others' searches wait no longer than for these.
const TOGETHER: usize = 2;

/// Which items to look at.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DuplicatesQuery {
    /// The collection; `default` when left out.
    collection: Option<String>,
    /// Lowest score of two items that count as nearly the same, -1 to 1.
    #[serde(default = "default_threshold")]
    #[param(default = 0.95)]
    threshold: f32,
    /// The id after which the page begins: `next` of the page before.
    after: Option<String>,
    /// Items that a page looks at, 1 to 1000.
    #[serde(default = "default_limit")]
    #[param(default = 100)]
    limit: usize,
}

fn default_threshold() -> f32 {
    0.95
}

fn default_limit() -> usize {
    100
}

/// Pairs of a page.
#[derive(Debug, Serialize, ToSchema)]
pub struct DuplicatesReply {
    /// The collection.
    pub collection: String,
    /// Each pair once: by the lesser id, and for each of these the nearest first, at most 100.
    pub pairs: Vec<Pair>,
    /// Items that this page looked at.
    pub examined: usize,
    /// What to give as `after` for the next page; null on the last one.
    pub next: Option<String>,
}

/// Two items that are nearly the same.
#[derive(Debug, Serialize, ToSchema)]
pub struct Pair {
    /// The lesser id.
    pub id: String,
    /// The greater id.
    pub other: String,
    /// Cosine similarity, -1 to 1.
    pub score: f32,
}

/// List near-duplicates
///
/// Goes through the items in the order of their ids, page by page, and gives for each the items of greater ids that
/// are at least as similar as the threshold. A page may have no pairs; the last one has no `next`.
#[utoipa::path(
    get, path = "/duplicates", tag = "search", params(DuplicatesQuery),
    responses(
        (status = 200, description = "The pairs of a page", body = DuplicatesReply),
        (status = 400, description = "A bad query", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such collection", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn duplicates(
    State(app): State<AppState>,
    _: Ready,
    Query(query): Query<DuplicatesQuery>,
) -> Result<axum::Json<DuplicatesReply>, Problem> {
    let collection = stored::collection(query.collection.as_deref())?;
    let after = query.after.as_deref().map(ItemId::new).transpose()?;
    if !(-1.0..=1.0).contains(&query.threshold) {
        return Err(InvalidValue::MinScore.into());
    }
    let items = app.store.list(collection.clone(), after, query.limit, true).await?;
    let next = items.last().filter(|_| items.len() == query.limit).map(|item| item.id.to_string());
    let examined = items.len();
    let searches = stream::iter(items).map(|item| near(&app, &collection, item, query.threshold));
    let pairs: Vec<Vec<Pair>> = searches.buffered(TOGETHER).try_collect().await?;
    let (collection, pairs) = (collection.to_string(), pairs.into_iter().flatten().collect());
    Ok(axum::Json(DuplicatesReply { collection, pairs, examined, next }))
}

/// The items of greater ids that are near to one.
async fn near(
    app: &App,
    collection: &CollectionName,
    item: Item,
    threshold: f32,
) -> Result<Vec<Pair>, StoreError> {
    let Some(vector) = item.vector else { return Ok(Vec::new()) };
    let query = store::Query {
        vector,
        contract: item.contract,
        k: MOST,
        filter: None,
        exclude: vec![item.id.clone()],
        min_score: Some(threshold),
        with_vectors: false,
    };
    let found = match app.store.search(collection.clone(), query).await {
        // The collection changed its encoder or went away between the page and the search.
        Err(StoreError::ContractMismatch { .. } | StoreError::UnknownCollection(_)) => return Ok(Vec::new()),
        found => found?,
    };
    let greater = found.into_iter().filter(|neighbour| neighbour.id > item.id);
    let pair = |neighbour: store::Neighbour| Pair {
        id: item.id.to_string(),
        other: neighbour.id.to_string(),
        score: neighbour.score,
    };
    Ok(greater.map(pair).collect())
}
