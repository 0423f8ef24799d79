//! /items: the items of a collection, one by one and in pages.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::apart::take_apart;
use super::auth::hold;
use super::embed::RawBytes;
use super::entries::{self, Content, ItemBody};
use super::etag;
use super::extract::{MediaType, Path, Payload, Query, Ready};
use super::given::{Given, fetch_one};
use super::held;
use super::input::multipart_with_fields;
use super::problem::Problem;
use super::stored::{self, Include, ItemView, unknown_item};
use crate::admission::Permit;
use crate::app::{App, AppState};
use crate::indexer::{self, Entry, Source};
use crate::store::{CollectionName, ContentHash, InvalidValue, Item, ItemId, MAX_PAGE, Metadata, PAGE_BYTES};
use crate::trace;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(put_item, get_item, delete_item))
        .routes(routes!(get_image))
        .routes(routes!(list_items, super::bulk::post_items))
        .route("/items/{id}/{*rest}", any(slash_in_id))
}

/// Which collection.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CollectionQuery {
    /// The collection; `default` when left out.
    pub collection: Option<String>,
}

/// Where an item goes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PutQuery {
    /// The collection; `default` when left out. It comes into being with its first item.
    collection: Option<String>,
    /// For a raw picture: the metadata, a JSON object.
    metadata: Option<String>,
}

/// What was written.
#[derive(Debug, Serialize, ToSchema)]
pub struct PutReply {
    /// The item's id.
    pub id: String,
    /// Its collection.
    pub collection: String,
    /// Whether the id was new.
    pub created: bool,
    /// Number of this write.
    pub seq: u64,
}

/// A form of one picture, for the description alone.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct ItemForm {
    /// The picture file, under any name.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// The metadata, a JSON object.
    metadata: Option<String>,
}

/// Write an item
///
/// Its picture is embedded and a thumbnail is kept; or give a vector with its contract. An item of the same id
/// is replaced whole. The reply comes when the item is on disk, and from then on searches find it. A slash in
/// an id is written `%2F`.
#[utoipa::path(
    put, path = "/items/{id}", tag = "items", params(("id" = String, Path, description = "1 to 512 bytes, percent-encoded"), PutQuery),
    request_body(description = "A picture, a form with a picture and its metadata, or JSON", content(
        (RawBytes = "image/*"), (RawBytes = "application/octet-stream"),
        (ItemForm = "multipart/form-data"), (ItemBody = "application/json"),
    )),
    responses(
        (status = 200, description = "Replaced", body = PutReply),
        (status = 201, description = "New", body = PutReply),
        (status = 400, description = "A broken body, id, collection name, vector or metadata", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The collection holds vectors of another contract", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large a body, or too many pixels", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Not a picture of a supported format", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A corrupt picture", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn put_item(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<PutQuery>,
    payload: Payload,
) -> Result<Response, Problem> {
    let (id, collection) = (ItemId::new(&id)?, stored::collection(query.collection.as_deref())?);
    let (permit, caller) = (payload.permit.clone(), payload.caller.clone());
    let (content, metadata) = one_item(payload, query.metadata.as_deref(), &app).await?;
    let _held = hold(caller.as_ref(), usize::from(matches!(content, Content::Picture(_))))?;
    let (source, permit) = match content {
        Content::Vector(vector, contract) => (Source::Vector(vector, contract), permit),
        Content::Picture(given) => {
            let (picture, permit) = fetch_one(&app, given, permit).await?;
            (Source::Picture(picture), permit)
        }
    };
    let entry = Entry { id, source, metadata };
    // The encoder does not change while this is held.
    let _writing = app.writes.read().await;
    let (embedder, keep) = (app.embedder(), app.config.keep_pictures);
    let written =
        indexer::index(&embedder, &*app.store, collection.clone(), vec![entry], keep, Some(permit)).await?;
    let upserted = written.into_iter().next().ok_or_else(Problem::internal)??;
    let status = if upserted.created { StatusCode::CREATED } else { StatusCode::OK };
    let reply = PutReply {
        id: upserted.id.to_string(),
        collection: collection.to_string(),
        created: upserted.created,
        seq: upserted.seq,
    };
    Ok((status, axum::Json(reply)).into_response())
}

async fn one_item(
    payload: Payload,
    metadata: Option<&str>,
    app: &App,
) -> Result<(Content, Metadata), Problem> {
    let Payload { media, bytes, permit, .. } = payload;
    if metadata.is_some() && media != MediaType::Image {
        let detail = "?metadata= goes with a raw picture: in a form or in JSON the metadata is in the body";
        return Err(Problem::bad_request("invalid_query", detail));
    }
    match media {
        MediaType::Image => {
            let metadata = metadata.map(Metadata::from_json).transpose()?.unwrap_or_default();
            Ok((Content::Picture(Given::File(bytes.into())), metadata))
        }
        MediaType::Multipart(boundary) => {
            let (files, fields) = multipart_with_fields(bytes, boundary, app.config.max_images).await?;
            entries::one_of_form(files, fields)
        }
        MediaType::Json => take_apart(bytes.len(), &permit, move || entries::one_of_json(&bytes)).await,
    }
}

/// What of an item is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct GetQuery {
    /// The collection; `default` when left out.
    collection: Option<String>,
    /// `vector` to get the vector too.
    #[serde(default)]
    include: String,
}

/// Get an item
#[utoipa::path(
    get, path = "/items/{id}", tag = "items", params(("id" = String, Path, description = "Percent-encoded"), GetQuery),
    responses(
        (status = 200, description = "The item", body = ItemView),
        (status = 400, description = "A bad id, collection name or query", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such item or collection", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn get_item(
    State(app): State<AppState>,
    _: Ready,
    Path(id): Path<String>,
    Query(query): Query<GetQuery>,
) -> Result<axum::Json<ItemView>, Problem> {
    let (id, collection) = (ItemId::new(&id)?, stored::collection(query.collection.as_deref())?);
    let with_vector = stored::include(&query.include)?.contains(&Include::Vector);
    let found = trace::part("store get", app.store.get(collection.clone(), id.clone())).await?;
    let item = found.ok_or_else(|| unknown_item(&collection, &id))?;
    Ok(axum::Json(ItemView::new(item, with_vector)))
}

/// Delete an item
///
/// The reply comes when the deletion is on disk; from then on no search finds the item.
#[utoipa::path(
    delete, path = "/items/{id}", tag = "items", params(("id" = String, Path, description = "Percent-encoded"), CollectionQuery),
    responses(
        (status = 204, description = "Deleted"),
        (status = 400, description = "A bad id or collection name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such item or collection", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full: nothing was deleted", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn delete_item(
    State(app): State<AppState>,
    _: Ready,
    Path(id): Path<String>,
    Query(query): Query<CollectionQuery>,
) -> Result<StatusCode, Problem> {
    let (id, collection) = (ItemId::new(&id)?, stored::collection(query.collection.as_deref())?);
    let there = trace::part("store delete", app.store.delete(collection.clone(), vec![id.clone()])).await?;
    if there == [true] { Ok(StatusCode::NO_CONTENT) } else { Err(unknown_item(&collection, &id)) }
}

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// The collection; `default` when left out.
    collection: Option<String>,
    /// The id after which the page begins: `next` of the page before.
    after: Option<String>,
    /// Items of a page at most, 1 to 1000: it ends early with 8 MiB of metadata and vectors.
    #[serde(default = "default_limit")]
    #[param(default = 100)]
    limit: usize,
    /// `vector` to get the vectors too.
    #[serde(default)]
    include: String,
}

fn default_limit() -> usize {
    100
}

/// Items of a page that are read at a time.
const AT_A_TIME: usize = 100;

/// A page of items.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListReply {
    /// The collection.
    pub collection: String,
    /// The items, in the order of their ids' bytes.
    pub items: Vec<ItemView>,
    /// What to give as `after` for the next page; null on the last one.
    pub next: Option<String>,
}

/// List items
#[utoipa::path(
    get, path = "/items", tag = "items", params(ListQuery),
    responses(
        (status = 200, description = "A page", body = ListReply),
        (status = 400, description = "A bad query", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such collection", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn list_items(
    State(app): State<AppState>,
    _: Ready,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let collection = stored::collection(query.collection.as_deref())?;
    let after = query.after.as_deref().map(ItemId::new).transpose()?;
    let with_vector = stored::include(&query.include)?.contains(&Include::Vector);
    let Page { items: found, next, place: _place } =
        page(&app, &collection, after, query.limit, with_vector).await?;
    let items: Vec<_> = found.into_iter().map(|item| ItemView::new(item, with_vector)).collect();
    let next = next.map(|id| id.to_string());
    let size = items.iter().map(ItemView::size).sum();
    held::json(&app, size, ListReply { collection: collection.to_string(), items, next }).await
}

/// The items of a page.
struct Page {
    items: Vec<Item>,
    /// The last one's id where there may be more.
    next: Option<ItemId>,
    /// Their place in the server: others are read meanwhile.
    place: Permit,
}

async fn page(
    app: &App,
    collection: &CollectionName,
    mut after: Option<ItemId>,
    limit: usize,
    vectors: bool,
) -> Result<Page, Problem> {
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(InvalidValue::Limit(limit).into());
    }
    let (mut items, mut place): (Vec<Item>, _) = (Vec::new(), app.replies.admit(0).await?);
    let size = |item: &Item| {
        let vector = item.vector.as_ref().map_or(0, |vector| size_of_val(vector.as_slice()));
        item.metadata.as_str().len() + vector
    };
    loop {
        let wanted = AT_A_TIME.min(limit - items.len());
        let listing = app.store.list(collection.clone(), after, wanted, vectors);
        let found = trace::part("store list", listing).await?;
        let more = found.len() == wanted;
        app.replies.grow(&mut place, found.iter().map(size).sum()).await?;
        items.extend(found);
        after = items.last().filter(|_| more).map(|item| item.id.clone());
        if !more || items.len() == limit || place.bytes() >= PAGE_BYTES {
            return Ok(Page { items, next: after, place });
        }
    }
}

/// Get an item's thumbnail
///
/// A JPEG of at most 256 pixels a side.
#[utoipa::path(
    get, path = "/items/{id}/image", tag = "items", params(("id" = String, Path, description = "Percent-encoded"), CollectionQuery),
    responses(
        (status = 200, description = "The thumbnail", body = RawBytes, content_type = "image/jpeg"),
        (status = 304, description = "The one that the client has (if-none-match)"),
        (status = 400, description = "A bad id or collection name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such item or collection, or an item without a picture", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Overloaded, not ready, or shutting down; see retry-after", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn get_image(
    State(app): State<AppState>,
    _: Ready,
    Path(id): Path<String>,
    Query(query): Query<CollectionQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (id, collection) = (ItemId::new(&id)?, stored::collection(query.collection.as_deref())?);
    let found = trace::part("store thumbnail", app.store.thumbnail(collection.clone(), id.clone())).await?;
    let Some(thumbnail) = found else { return Err(no_image(&app, collection, id).await) };
    let tag = format!("\"{}\"", ContentHash::of(&thumbnail.0));
    let mut response = if etag::is_known(&headers, &tag) {
        etag::not_modified(&tag)
    } else {
        let media = [(header::CONTENT_TYPE, HeaderValue::from_static("image/jpeg"))];
        etag::tagged((media, thumbnail.0).into_response(), &tag)
    };
    // The item may be replaced at any time, so that a cache must ask each time.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    Ok(response)
}

async fn no_image(app: &App, collection: CollectionName, id: ItemId) -> Problem {
    match trace::part("store get", app.store.get(collection.clone(), id.clone())).await {
        Err(error) => error.into(),
        Ok(None) => unknown_item(&collection, &id),
        Ok(Some(_)) => {
            Problem::not_found("no_image", format!("item {id:?} was made from a vector: it has no picture"))
        }
    }
}

/// A slash that was not percent-encoded would otherwise give a bare "no such route".
async fn slash_in_id() -> Problem {
    Problem::not_found("route_not_found", "a slash in an item's id is written %2F in the address")
}
