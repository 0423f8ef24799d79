//! /models/{name}/activate, /models/rollback, /models/refresh: changing the encoder while it serves.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use latentd_model::Artefact;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::apart::off_thread;
use super::extract::{Path, Query, Ready};
use super::problem::Problem;
use crate::app::AppState;
use crate::locate;
use crate::refresh::{self, ModelRecord, Order, Progress, RefreshError, RefreshState};

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(activate)).routes(routes!(rollback)).routes(routes!(progress, cancel))
}

/// How long a reply waits for a change that may be done in a moment.
const PATIENCE: Duration = Duration::from_secs(5);

impl From<RefreshError> for Problem {
    fn from(error: RefreshError) -> Self {
        let detail = error.to_string();
        match error {
            RefreshError::Busy(_) => Self::conflict("refresh_under_way", detail),
            RefreshError::AlreadyActive(_) => Self::conflict("already_active", detail),
            RefreshError::NoPrevious => Self::conflict("no_previous_model", detail),
            RefreshError::Unembeddable { without_picture, .. } => {
                Self::conflict("unembeddable_items", detail).with("unembeddable", without_picture)
            }
            RefreshError::Artefact(_)
            | RefreshError::Missing(_)
            | RefreshError::Encoder(_)
            | RefreshError::Golden(_) => Self::unprocessable("unusable_model", detail),
            RefreshError::Store(error) => error.into(),
            _ => {
                tracing::error!(error = detail, "a refresh failed");
                Self::internal()
            }
        }
    }
}

/// On what terms to change.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ActivateQuery {
    /// Leave out items that cannot be embedded again: given as vectors, or without a kept picture. Otherwise they
    /// make the server refuse.
    #[serde(default)]
    drop_unembeddable: bool,
    /// Least mean share of each item's 10 nearest neighbours that both encoders name, 0 to 1, on a sample of the
    /// items; below it nothing is changed.
    min_overlap: Option<f64>,
}

/// Change to another encoder
///
/// Every item is embedded again from what is kept of its picture, in the background, while the old encoder serves;
/// then encoder and collections change at once. What was written meanwhile is in both. Follow it at
/// `/models/refresh`. Needs the admin key, as `authorization: Bearer KEY`.
#[utoipa::path(
    post, path = "/models/{name}/activate", tag = "models",
    params(("name" = String, Path, description = "`<name>-v<N>`, as /models lists it"), ActivateQuery),
    responses(
        (status = 200, description = "Changed already", body = Progress),
        (status = 202, description = "Begun", body = Progress),
        (status = 400, description = "A bad query", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Not the admin key", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The server has no admin key", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such encoder", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It serves already, another change is under way (perhaps led by another process of the store), or items cannot be embedded again", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Its files are damaged, or its golden pictures fail", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not ready, or shutting down, or the distributed store does not answer; see retry-after", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full: nothing was changed", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn activate(
    State(app): State<AppState>,
    _: Ready,
    Path(name): Path<String>,
    Query(query): Query<ActivateQuery>,
) -> Result<(StatusCode, axum::Json<Progress>), Problem> {
    if query.min_overlap.is_some_and(|least| !(0.0..=1.0).contains(&least)) {
        return Err(Problem::bad_request("invalid_query", "min_overlap must be a number from 0 to 1"));
    }
    let config = app.config.clone();
    let looked_for = name.clone();
    let found = off_thread(usize::MAX, move || {
        let dir = locate::named(&config, std::path::Path::new(&looked_for));
        Ok(dir.map(|dir| Artefact::manifest_of(&dir).map(|manifest| (dir, manifest))))
    })
    .await?;
    let Some(found) = found else {
        let detail = format!("there is no encoder {name:?}: GET /models lists those at hand");
        return Err(Problem::not_found("unknown_model", detail));
    };
    let (dir, manifest) = found.map_err(|e| Problem::unprocessable("unusable_model", e.to_string()))?;
    let dir = dir.canonicalize().unwrap_or(dir);
    let model = ModelRecord { name: manifest.full_name(), dir, contract: manifest.contract };
    let ActivateQuery { drop_unembeddable: leave_out, min_overlap } = query;
    refresh::start(&app, Order { model, leave_out, min_overlap }).await?;
    Ok(reply(&app).await)
}

/// Whether to leave items out.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RollbackQuery {
    /// Leave out items written since the change that cannot be embedded again.
    #[serde(default)]
    drop_unembeddable: bool,
}

/// Go back to the encoder before
///
/// Its vectors are kept until the next change, so that only what was written since is embedded again: with little
/// of that it is done at once. Needs the admin key.
#[utoipa::path(
    post, path = "/models/rollback", tag = "models", params(RollbackQuery),
    responses(
        (status = 200, description = "Changed back", body = Progress),
        (status = 202, description = "Begun", body = Progress),
        (status = 401, description = "Not the admin key", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The server has no admin key", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Nothing to go back to, another change is under way, or items cannot be embedded again", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Its files are damaged, or its golden pictures fail", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not ready, or shutting down, or the distributed store does not answer; see retry-after", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full: nothing was changed", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn rollback(
    State(app): State<AppState>,
    _: Ready,
    Query(query): Query<RollbackQuery>,
) -> Result<(StatusCode, axum::Json<Progress>), Problem> {
    refresh::roll_back(&app, query.drop_unembeddable).await?;
    Ok(reply(&app).await)
}

/// Waits a little: 200 when it is done by then, 202 when it goes on.
async fn reply(app: &AppState) -> (StatusCode, axum::Json<Progress>) {
    let began = std::time::Instant::now();
    loop {
        let progress = app.refresh.progress();
        let under_way = matches!(progress.state, RefreshState::Embedding | RefreshState::Switching);
        if !under_way || began.elapsed() > PATIENCE {
            let status = if under_way { StatusCode::ACCEPTED } else { StatusCode::OK };
            return (status, axum::Json(progress));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How far a change is, or how the last one ended
#[utoipa::path(
    get, path = "/models/refresh", tag = "models",
    responses((status = 200, description = "The progress", body = Progress))
)]
async fn progress(State(app): State<AppState>) -> axum::Json<Progress> {
    axum::Json(app.refresh.progress())
}

/// Cancel a change
///
/// Nothing was changed then, and what was embedded again is deleted. Needs the admin key.
#[utoipa::path(
    delete, path = "/models/refresh", tag = "models",
    responses(
        (status = 202, description = "Cancelled", body = Progress),
        (status = 401, description = "Not the admin key", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The server has no admin key", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "No change is under way in this process", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn cancel(State(app): State<AppState>) -> Result<(StatusCode, axum::Json<Progress>), Problem> {
    if !app.refresh.cancel() {
        let progress = app.refresh.progress();
        let under_way = matches!(progress.state, RefreshState::Embedding | RefreshState::Switching);
        let detail = match progress.led_by.filter(|_| under_way) {
            Some(leader) => {
                format!("another latentd ({leader}) leads the change of the encoder: cancel it there")
            }
            None => "no change of the encoder is under way".to_owned(),
        };
        return Err(Problem::conflict("no_refresh", detail));
    }
    Ok((StatusCode::ACCEPTED, axum::Json(app.refresh.progress())))
}
