//! `latentd serve`: from the configuration to a running server.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use latentd_model::{Artefact, RuntimeError, RuntimeInfo};
use tokio::net::TcpListener;

use super::Settings;
use crate::app::{App, AppState};
use crate::backend::{self, Backends};
use crate::config::{self, Config};
use crate::http::{router, serve};
use crate::shutdown::Shutdown;
use crate::store::{EmbeddedOptions, EmbeddedStore, Store};
use crate::{locate, telemetry};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When anything that serving needs is missing.
pub fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let config = settings.load()?;
    telemetry::start_log(&config);
    for name in config::unknown_variables() {
        tracing::warn!(name, "this environment variable is no setting of latentd: misspelt?");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config::cores())
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let outcome = runtime.block_on(start(config));
    // What did not end within its time limit does not hold up the process.
    runtime.shutdown_background();
    outcome
}

async fn start(config: Config) -> anyhow::Result<ExitCode> {
    let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!("cannot listen on {}: choose another address with --listen", config.listen)
    })?;
    let app = assemble(config).await?;
    announce(&app, &listener);
    let checked = tokio::spawn(check(app.clone(), shutdown.clone()));
    serve::serve(app.clone(), listener, router::router(app), shutdown).await;
    checked.await.context("the golden check panicked")
}

/// The golden check beside the listener, so that /livez and /readyz answer meanwhile.
async fn check(app: AppState, shutdown: Shutdown) -> ExitCode {
    match app.check().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the golden check failed: not serving");
            shutdown.start();
            ExitCode::FAILURE
        }
    }
}

/// Opens the model, the store and the app of a configuration.
///
/// # Errors
/// When one of them cannot be opened.
pub async fn assemble(config: Config) -> anyhow::Result<AppState> {
    let (runtime, artefact, backends) = open_model(&config)?;
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(EmbeddedOptions::new(&config.data_dir)).await?);
    Ok(App::new(config, artefact, Some(runtime), backends, store)?)
}

/// Loads ONNX Runtime and opens the sessions of the artefact to serve.
///
/// # Errors
/// When the runtime or the artefact is missing or unusable.
pub fn open_model(config: &Config) -> anyhow::Result<(RuntimeInfo, Artefact, Backends)> {
    let artefact = locate::open(config)?;
    let runtime = init_runtime(config)?;
    let name = artefact.manifest().full_name();
    let backends = backend::ort::open(config, &artefact, &runtime)
        .with_context(|| format!("cannot open the encoder {name}"))?;
    Ok((runtime, artefact, backends))
}

/// Loads the ONNX Runtime that the configuration names, else the one that is found.
///
/// # Errors
/// When there is none.
pub fn init_runtime(config: &Config) -> Result<RuntimeInfo, RuntimeError> {
    let explicit = Some(config.onnxruntime.as_path()).filter(|path| !path.as_os_str().is_empty());
    latentd_model::runtime::init(explicit)
}

fn announce(app: &App, listener: &TcpListener) {
    let embedder = app.embedder();
    let manifest = embedder.artefact().manifest();
    let address =
        listener.local_addr().map_or_else(|_| app.config.listen.to_string(), |address| address.to_string());
    tracing::info!(
        model = manifest.full_name(),
        contract = %manifest.contract,
        dim = manifest.output.dim,
        device = embedder.device().used,
        sessions = embedder.sessions(),
        decode_threads = embedder.decode_threads(),
        onnxruntime = app.runtime.as_ref().map(|runtime| runtime.version.as_str()),
        "serving on http://{address}"
    );
}
