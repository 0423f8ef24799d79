//! GET /models: the encoder that serves and those that lie beside it.

use std::path::Path;

use axum::extract::State;
use latentd_model::{Contract, Manifest};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::input::off_thread;
use super::problem::Problem;
use crate::app::AppState;
use crate::locate;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(models))
}

/// The encoders at hand.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelsReply {
    /// The one that serves.
    pub active: String,
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
    /// Why its manifest cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
    let mut models = vec![ModelEntry { active: true, ..listed(&serving) }];
    for model in found {
        if models.iter().all(|seen| seen.name != model.name) {
            models.push(model);
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(axum::Json(ModelsReply { active, models }))
}

fn listed(manifest: &Manifest) -> ModelEntry {
    ModelEntry {
        name: manifest.full_name(),
        contract: Some(manifest.contract),
        dim: Some(manifest.output.dim),
        active: false,
        error: None,
    }
}

fn entry(path: &Path) -> ModelEntry {
    match locate::manifest(path) {
        Ok(manifest) => listed(&manifest),
        Err(error) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            ModelEntry { name, contract: None, dim: None, active: false, error: Some(error.to_string()) }
        }
    }
}
