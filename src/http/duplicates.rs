//! GET /duplicates: items that are nearly the same.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Query, Ready};
use super::problem::Problem;
use super::{held, stored};
use crate::app::AppState;
use crate::store::ItemId;
use crate::store::duplicates::{self, Listing, Page};

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_duplicates))
}

/// Part of the time that a request may take after which a page ends.
const PART: u32 = 4;

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
    /// By the item looked at, and for each of these the nearest first.
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
/// Goes through the items in the order of their ids, page by page, and pairs each with those of greater ids that
/// are at least as similar as the threshold, the 100 nearest at most. An item that has as many is paired with its
/// nearest of a lesser id too, so that none is left out; such a pair may come twice. A page may have no pairs, and
/// ends early when a quarter of the time that a request may take has passed, or its pairs take 8 MiB; the last one has
/// no `next`. In a collection that is searched through a graph, pairs are found as neighbours are (see `latentd store
/// recall`).
#[utoipa::path(
    get, path = "/duplicates", tag = "search", params(DuplicatesQuery),
    responses(
        (status = 200, description = "The pairs of a page", body = DuplicatesReply),
        (status = 400, description = "A bad query", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such collection", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn list_duplicates(
    State(app): State<AppState>,
    _: Ready,
    Query(query): Query<DuplicatesQuery>,
) -> Result<Response, Problem> {
    let collection = stored::collection(query.collection.as_deref())?;
    let after = query.after.as_deref().map(ItemId::new).transpose()?;
    let _running = app.listings.try_acquire().map_err(|_| {
        let detail = "as many listings of duplicates as may run at once are under way: try again";
        Problem::unavailable("overloaded", detail).retry_after(Duration::from_secs(1))
    })?;
    let time = app.config.request_timeout() / PART;
    let (threshold, limit) = (query.threshold, query.limit);
    let listing = Listing { collection: collection.clone(), threshold, after, limit, time };
    let Page { pairs, examined, next } = duplicates::page(&*app.store, listing).await?;
    let size = pairs.iter().map(duplicates::Pair::size).sum();
    let pair = |pair: duplicates::Pair| Pair {
        id: pair.id.to_string(),
        other: pair.other.to_string(),
        score: pair.score,
    };
    let reply = DuplicatesReply {
        collection: collection.to_string(),
        pairs: pairs.into_iter().map(pair).collect(),
        examined,
        next: next.map(|id| id.to_string()),
    };
    held::json(&app, size, reply).await
}
