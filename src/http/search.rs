//! POST /search: the items nearest to a picture, an item, or a vector.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use latentd_model::{Contract, ImageBytes};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::apart::{off_thread, take_apart};
use super::auth::hold;
use super::embed::{ImageForm, RawBytes};
use super::extract::{MediaType, Payload, Query, parse_json};
use super::given::Given;
use super::held;
use super::input::multipart;
use super::json;
use super::problem::Problem;
use super::stored::{self, Include};
use super::target::{self, Target, resolve};
use crate::app::{App, AppState};
use crate::store::diversify::Diversity;
use crate::store::{self, Filter, InvalidValue, Metadata, Neighbour, StoreError};
use crate::trace;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(search))
}

/// Neighbours of a search that does not say how many.
const DEFAULT_K: usize = 10;

/// How to search. A JSON body may say the same, and then wins.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SearchQuery {
    /// The collection; `default` when left out.
    collection: Option<String>,
    /// How many neighbours at most, 1 to 1000.
    #[param(default = 10)]
    k: Option<usize>,
    /// Which items count, told by their metadata: a filter as JSON, e.g. `{"colour":"red"}`. See the body.
    filter: Option<String>,
    /// What a neighbour tells beside its id and score: `metadata`, `vector`, with a comma between them.
    #[param(default = "metadata")]
    include: Option<String>,
    /// Lowest score that counts, -1 to 1.
    min_score: Option<f32>,
    /// For a search by id, or by several: leave the items out that were named.
    #[param(default = true)]
    exclude_self: Option<bool>,
    /// How much neighbours are to differ from each other, 0 to 1. See the body.
    #[param(default = 0.0)]
    diversity: Option<f32>,
}

/// What to search for, and how: exactly one of `id`, `image`, `url`, `inputs`, `vector` and `positive`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchBody {
    /// The id of an item of the collection.
    pub(super) id: Option<String>,
    /// A picture file in base64, or as a data URI.
    pub(super) image: Option<String>,
    /// Where to fetch a picture file from; see the inputs of /embed.
    pub(super) url: Option<String>,
    /// One picture in the form that /embed takes.
    #[serde(default, deserialize_with = "json::at_most::<_, _, 1>")]
    pub(super) inputs: Option<Vec<SearchInput>>,
    /// A vector.
    #[serde(default, deserialize_with = "stored::components")]
    pub(super) vector: Option<Vec<f32>>,
    /// The contract of the encoder that made the vector.
    #[schema(value_type = Option<String>)]
    pub(super) contract: Option<Contract>,
    /// What to be near to, at most 64: the search is for the mean of these, less the mean of `negative`.
    #[serde(default, deserialize_with = "json::at_most::<_, _, { target::MOST }>")]
    pub(super) positive: Option<Vec<SearchExample>>,
    /// What to be far from, at most 64; only beside `positive`.
    #[serde(default, deserialize_with = "json::at_most::<_, _, { target::MOST }>")]
    pub(super) negative: Option<Vec<SearchExample>>,
    /// How many neighbours at most, 1 to 1000.
    #[schema(default = 10)]
    k: Option<usize>,
    /// Which items count, told by their metadata: an object whose members must all hold.
    ///
    /// `{"colour": "red"}` asks for equality; `{"price": {"$gte": 10, "$lt": 20}}` for a range; `$eq`, `$ne`, `$in`,
    /// `$nin`, `$gt`, `$gte`, `$lt`, `$lte` and `$exists` are known, and `$and`, `$or`, `$not` join filters. A
    /// dotted name goes into objects, a list counts as each of its elements, and the filter is applied exactly,
    /// however few items it leaves. It may have 256 KiB of text, 8 levels of `$and`, `$or` and `$not`, 256
    /// conditions, 1024 members of objects and filters in lists, 1000 values of a list and 4096 of all lists.
    #[schema(value_type = Option<Object>, example = json!({"colour": {"$in": ["red", "blue"]}, "price": {"$lt": 20}}))]
    filter: Option<Box<RawValue>>,
    /// What a neighbour tells beside its id and score; `["metadata"]` when left out.
    #[serde(default, deserialize_with = "json::at_most::<_, _, 16>")]
    include: Option<Vec<Include>>,
    /// Lowest score that counts, -1 to 1.
    min_score: Option<f32>,
    /// For a search by id, or by several: leave the items out that were named.
    #[schema(default = true)]
    exclude_self: Option<bool>,
    /// How much neighbours are to differ from each other, 0 (not at all: the nearest) to 1 (as much as possible):
    /// maximal marginal relevance among the `4k` nearest, at most 1000. Neighbours come in the order chosen.
    #[schema(default = 0.0)]
    diversity: Option<f32>,
}

/// One of several things to be near to or far from: exactly one of its members.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchExample {
    /// The id of an item of the collection.
    pub(super) id: Option<String>,
    /// A picture file in base64, or as a data URI.
    pub(super) image: Option<String>,
    /// Where to fetch a picture file from; see the inputs of /embed.
    pub(super) url: Option<String>,
    /// A vector of the encoder that `contract` names.
    #[serde(default, deserialize_with = "stored::components")]
    pub(super) vector: Option<Vec<f32>>,
}

impl SearchExample {
    /// How many of its members are given.
    pub(super) fn given(&self) -> usize {
        [self.id.is_some(), self.image.is_some(), self.url.is_some(), self.vector.is_some()]
            .iter()
            .filter(|&&given| given)
            .count()
    }
}

/// One picture in JSON, as /embed takes it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchInput {
    /// The picture file in base64, or as a data URI.
    pub(super) image: Option<String>,
    /// In place of `image`: where to fetch it from.
    pub(super) url: Option<String>,
}

/// The nearest items.
#[derive(Debug, Serialize, ToSchema)]
pub struct SearchReply {
    /// The collection.
    pub collection: String,
    /// The contract of what was searched for.
    #[schema(value_type = String)]
    pub contract: Contract,
    /// Best first; with `diversity` in the order in which they were chosen.
    pub neighbours: Vec<NeighbourView>,
}

/// A near item.
#[derive(Debug, Serialize, ToSchema)]
pub struct NeighbourView {
    /// Its id.
    pub id: String,
    /// Cosine similarity, -1 to 1.
    pub score: f32,
    /// What is kept with it, where `include` asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Metadata>,
    /// Its vector, where `include` asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
}

impl NeighbourView {
    /// Bytes of its JSON, about.
    fn size(&self) -> usize {
        let metadata = self.metadata.as_ref().map_or(0, |metadata| metadata.as_str().len());
        let vector = self.vector.as_ref().map_or(0, |vector| vector.len() * stored::NUMBER);
        self.id.len() + metadata + vector + stored::BESIDE
    }
}

/// How to search, with the defaults filled in.
struct How {
    k: usize,
    filter: Option<Filter>,
    include: Vec<Include>,
    min_score: Option<f32>,
    exclude_self: bool,
    diversity: Diversity,
}

/// Find the nearest items
///
/// Nearest to a picture (raw, in a form, or in JSON), to an item by its `id`, to a `vector` with its `contract`, or
/// to several of these (`positive`, `negative`). A large collection is searched through a graph (see `--index`), a
/// small one exactly. For a raw picture or a form, the query says how to search; of several pictures in a form those
/// whose parts are named `negative` are what to be far from.
#[utoipa::path(
    post, path = "/search", tag = "search", params(SearchQuery),
    request_body(description = "A picture, or JSON", content(
        (RawBytes = "image/*"), (RawBytes = "application/octet-stream"),
        (ImageForm = "multipart/form-data"), (SearchBody = "application/json"),
    )),
    responses(
        (status = 200, description = "The neighbours", body = SearchReply),
        (status = 400, description = "A broken body, query, vector or filter", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such collection or item", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The collection holds vectors of another contract", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large a body, or too many pictures or pixels", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not a picture of a supported format", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A corrupt picture", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "On a distributed store: a filter that orders several values of one field, which too many nearer items fail", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn search(
    State(app): State<AppState>,
    Query(query): Query<SearchQuery>,
    payload: Payload,
) -> Result<Response, Problem> {
    let collection = stored::collection(query.collection.as_deref())?;
    let (permit, caller) = (payload.permit.clone(), payload.caller.clone());
    let (target, how) = read(payload, query, &app).await?;
    let exclude = if how.exclude_self { target.items() } else { Vec::new() };
    let _held = hold(caller.as_ref(), target.pictures())?;
    let (target, permit) = target.fetched(&app, permit).await?;
    let tells_vectors = how.include.contains(&Include::Vector);
    let with_metadata = how.include.contains(&Include::Metadata);
    let How { k, filter, min_score, diversity, .. } = how;
    let with_vectors = tells_vectors || diversity.matters();
    let most = diversity.candidates(k);
    let mut again = target.depends_on_encoder();
    let mut vectors = app.replies.admit(0).await?;
    let (contract, found) = loop {
        let serving = app.embedder().artefact().contract();
        let (vector, contract) = resolve(&app, &collection, target.clone(), permit.clone()).await?;
        if with_vectors {
            // Each of the candidates brings its own.
            let bytes = most * vector.as_slice().len() * size_of::<f32>();
            let more = bytes.saturating_sub(vectors.bytes());
            app.replies.grow(&mut vectors, more).await?;
        }
        let (filter, exclude) = (filter.clone(), exclude.clone());
        let query = store::Query { vector, contract, k: most, filter, exclude, min_score, with_vectors };
        match trace::part("store search", app.store.search(collection.clone(), query)).await {
            Err(StoreError::ContractMismatch { .. })
                if std::mem::take(&mut again) && changed(&app, serving).await => {}
            found => break (contract, found?),
        }
    };
    let found = match diversity.matters() {
        true => {
            let waits = Arc::new(());
            // Once the request is dropped, the work alone has it.
            let waited_for = waits.clone();
            let gone = move || Arc::strong_count(&waited_for) == 1;
            let chosen = off_thread(found.len() * k, move || Ok(diversity.choose(found, k, gone))).await?;
            drop(waits);
            chosen
        }
        false => found,
    };
    let view = |neighbour: Neighbour| NeighbourView {
        id: neighbour.id.to_string(),
        score: neighbour.score,
        metadata: with_metadata.then_some(neighbour.metadata),
        vector: neighbour.vector.filter(|_| tells_vectors).map(|vector| vector.as_slice().to_vec()),
    };
    let neighbours: Vec<_> = found.into_iter().map(view).collect();
    let size = neighbours.iter().map(NeighbourView::size).sum();
    let reply = SearchReply { collection: collection.to_string(), contract, neighbours };
    held::json(&app, size, reply).await
}

/// Whether another encoder serves than `before`, once a change that is just being made is made.
async fn changed(app: &App, before: Contract) -> bool {
    drop(app.writes.read().await);
    app.embedder().artefact().contract() != before
}

async fn read(payload: Payload, query: SearchQuery, app: &App) -> Result<(Target<Given>, How), Problem> {
    let (Payload { media, bytes, permit, .. }, max_k) = (payload, app.config.max_k);
    let bytes = match media {
        MediaType::Image => bytes,
        MediaType::Multipart(boundary) => {
            let parts = multipart(bytes, boundary, app.config.max_images).await?;
            return Ok((target::of_form(parts)?, how(&SearchBody::default(), query, max_k)?));
        }
        MediaType::Json => {
            return take_apart(bytes.len(), &permit, move || read_json(&bytes, query, max_k)).await;
        }
    };
    let how = how(&SearchBody::default(), query, max_k)?;
    Ok((Target::picture(Given::File(ImageBytes(bytes))), how))
}

fn read_json(bytes: &[u8], query: SearchQuery, max_k: usize) -> Result<(Target<Given>, How), Problem> {
    let body: SearchBody = parse_json(bytes)?;
    let how = how(&body, query, max_k)?;
    Ok((target::of_json(body)?, how))
}

/// Reads the JSON of a search.
///
/// # Errors
/// As the route.
pub fn check_json(bytes: &[u8], max_k: usize) -> Result<(), Problem> {
    read_json(bytes, SearchQuery::default(), max_k).map(drop)
}

fn how(body: &SearchBody, query: SearchQuery, max_k: usize) -> Result<How, Problem> {
    let k = body.k.or(query.k).unwrap_or(DEFAULT_K.min(max_k));
    if k == 0 || k > max_k {
        return Err(Problem::from(InvalidValue::K(k)).with("max_k", max_k));
    }
    let filter = body.filter.as_ref().map(|filter| filter.get()).or(query.filter.as_deref());
    let filter = filter.map(Filter::from_json).transpose().map_err(StoreError::from)?;
    let include = match (&body.include, &query.include) {
        (Some(include), _) => include.clone(),
        (None, Some(text)) => stored::include(text)?,
        (None, None) => vec![Include::Metadata],
    };
    let min_score = body.min_score.or(query.min_score);
    let exclude_self = body.exclude_self.or(query.exclude_self).unwrap_or(true);
    let diversity = Diversity::new(body.diversity.or(query.diversity).unwrap_or_default())?;
    Ok(How { k, filter, include, min_score, exclude_self, diversity })
}
