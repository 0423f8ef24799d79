//! GET /models: the encoder that serves and those that lie beside it.

use std::path::Path;

use axum::extract::State;
use latentd_model::{Artefact, Contract, Manifest};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::apart::off_thread;
use super::problem::Problem;
use crate::app::AppState;
use crate::locate;
use crate::refresh::RefreshState;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(models))
}

/// The encoders at hand.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelsReply {
    /// The one that serves.
    pub active: String,
    /// The one before it, which /models/rollback goes back to.
    pub previous: Option<String>,
    /// All, by name and version.
    pub models: Vec<ModelEntry>,
}

/// One encoder.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelEntry {
    /// `<name>-v<N>`.
    pub name: String,
    /// The contract of its vectors.
    #[schema(value_type = Option<String>)]
    pub contract: Option<Contract>,
    /// Numbers of a vector.
    pub dim: Option<usize>,
    /// Whether it serves now.
    pub active: bool,
    /// `active`; `previous`, whose vectors are kept; `activating`; `installed`; or `unreadable`.
    pub state: ModelState,
    /// Why its manifest cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What an encoder is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// It serves.
    Active,
    /// It served before, and its vectors are kept.
    Previous,
    /// Items are being embedded with it.
    Activating,
    /// It lies in the models folder.
    Installed,
    /// Its manifest cannot be read.
    Unreadable,
}

/// The encoders at hand
#[utoipa::path(get, path = "/models", tag = "models", responses((status = 200, description = "The encoders", body = ModelsReply)))]
async fn models(State(app): State<AppState>) -> Result<axum::Json<ModelsReply>, Problem> {
    let serving = app.embedder().artefact().manifest().clone();
    let folders = locate::folders(&app.config);
    let found = off_thread(usize::MAX, move || {
        let paths = folders.iter().flat_map(|folder| locate::list(folder));
        Ok(paths.map(|path| entry(&path)).collect::<Vec<_>>())
    })
    .await?;
    let active = serving.full_name();
    let previous = app.refresh.previous();
    let next = app.refresh.progress();
    let next =
        next.contract.filter(|_| matches!(next.state, RefreshState::Embedding | RefreshState::Switching));
    let mut models = vec![ModelEntry { active: true, state: ModelState::Active, ..listed(&serving) }];
    for mut model in found {
        if model.contract.is_some() && model.contract == next {
            model.state = ModelState::Activating;
        } else if previous.as_ref().is_some_and(|previous| model.contract == Some(previous.contract)) {
            model.state = ModelState::Previous;
        }
        if models.iter().all(|seen| seen.name != model.name) {
            models.push(model);
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    let previous = previous.map(|model| model.name);
    Ok(axum::Json(ModelsReply { active, previous, models }))
}

fn listed(manifest: &Manifest) -> ModelEntry {
    ModelEntry {
        name: manifest.full_name(),
        contract: Some(manifest.contract),
        dim: Some(manifest.output.dim),
        active: false,
        state: ModelState::Installed,
        error: None,
    }
}

fn entry(path: &Path) -> ModelEntry {
    match Artefact::manifest_of(path) {
        Ok(manifest) => listed(&manifest),
        Err(error) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (state, error) = (ModelState::Unreadable, Some(error.to_string()));
            ModelEntry { name, contract: None, dim: None, active: false, state, error }
        }
    }
}
