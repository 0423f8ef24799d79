//! `latentd serve`: from the configuration to a running server.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use latentd_model::{Artefact, Contract, RuntimeError, RuntimeInfo};
use tokio::net::TcpListener;

use super::Settings;
use crate::app::{App, AppState, Chosen};
use crate::backend::{self, Backends};
use crate::config::{self, Config};
use crate::http::{router, serve};
use crate::precision::{self, PrecisionReport};
use crate::refresh::{self, ModelRecord};
use crate::shutdown::Shutdown;
use crate::store::milvus::Address;
use crate::store::{
    EmbeddedOptions, EmbeddedStore, IndexOptions, MilvusOptions, MilvusStore, Store, StoreChoice,
};
use crate::{locate, telemetry, tuning};

/// Open files beside those of connections: the store's, the log, pictures that are fetched, and some to spare.
const OTHER_FILES: u64 = 512;

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
    allow_files(&config);
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

/// Raises what the system allows of open files, which connections are too, as far as it may be raised.
fn allow_files(config: &Config) {
    let wanted = config.max_connections as u64 + OTHER_FILES;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(allowed) if allowed < wanted => {
            tracing::warn!(
                allowed,
                wanted,
                "fewer files may be open than --max-connections takes: raise `ulimit -n`"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
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
pub async fn assemble(mut config: Config) -> anyhow::Result<AppState> {
    // First the store: it remembers which encoder it was changed to.
    let store = open_store(&config).await?;
    let Opened { runtime, artefact, mut backends, precision } = open_model_of(&config, &*store).await?;
    let tuned = tuning::tune(&mut config, artefact.manifest(), &mut backends)
        .context("the encoder fails on a grey picture")?;
    Ok(App::new(config, artefact, Some(runtime), backends, store, Chosen { precision, tuned })?)
}

/// An encoder with its sessions.
pub struct Opened {
    /// ONNX Runtime.
    pub runtime: RuntimeInfo,
    /// The encoder.
    pub artefact: Artefact,
    /// Its sessions.
    pub backends: Backends,
    /// Why it is this one of float and int8; absent where the store's encoder left no choice.
    pub precision: Option<PrecisionReport>,
}

/// How the store of a configuration is opened.
pub fn store_options(config: &Config) -> EmbeddedOptions {
    let (choice, ef, vectors) = (config.index, config.index_ef, config.vectors);
    let index = IndexOptions { choice, ef, vectors, ..IndexOptions::default() };
    EmbeddedOptions { index, durability: config.durability, ..EmbeddedOptions::new(&config.data_dir) }
}

/// Opens the store that the configuration names.
///
/// # Errors
/// When it cannot be opened.
pub async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let address = match &config.store {
        StoreChoice::Embedded => {
            return Ok(Arc::new(EmbeddedStore::open(store_options(config)).await?));
        }
        StoreChoice::Milvus(address) => (**address).clone(),
    };
    Ok(Arc::new(MilvusStore::open(milvus_options(config, address)?).await?))
}

/// How a store in Milvus is opened.
///
/// # Errors
/// A token file that cannot be read.
pub fn milvus_options(config: &Config, address: Address) -> anyhow::Result<MilvusOptions> {
    let mut options = MilvusOptions::new(address, config.data_dir.join("pictures"));
    let file = &config.store_token_file;
    if !file.as_os_str().is_empty() {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the store's token file {}", file.display()))?;
        options.token = Some(text.trim().to_owned());
    }
    Ok(options)
}

/// Loads ONNX Runtime and opens the sessions of the artefact to serve.
///
/// # Errors
/// When the runtime or the artefact is missing or unusable.
pub fn open_model(config: &Config) -> anyhow::Result<Opened> {
    let runtime = init_runtime(config)?;
    let (artefact, precision) =
        precision::choose(config.precision, locate::open(config)?, &[], config.device)?;
    open_backends(config, runtime, artefact, Some(precision))
}

/// As [`open_model`], the encoder being the one whose vectors the store holds.
///
/// # Errors
/// As [`open_model`], and when the store cannot be read or its encoder is gone.
pub async fn open_model_of(config: &Config, store: &dyn Store) -> anyhow::Result<Opened> {
    let contracts: Vec<Contract> = store.collections().await?.iter().map(|info| info.contract).collect();
    let binding = |model: &ModelRecord| {
        // An empty store holds nobody to an encoder, so that --model, or one that is gone, may.
        let wanted = config.model.as_os_str().is_empty() && model.dir.join("manifest.json").is_file();
        contracts.contains(&model.contract) || (contracts.is_empty() && wanted)
    };
    let active = refresh::active(store).await?.filter(binding);
    let runtime = init_runtime(config)?;
    let (artefact, precision) = match active {
        // Whoever activated it has chosen.
        Some(model) => (activated(config, &model)?, None),
        None => {
            let found = locate::open_for(config, &contracts)?;
            let (artefact, report) = precision::choose(config.precision, found, &contracts, config.device)?;
            (artefact, Some(report))
        }
    };
    open_backends(config, runtime, artefact, precision)
}

/// The encoder that the store was changed to. It wins over `--model`, since the store's vectors are its own; unless that
/// is a version of the same contract, which only tells more of the same encoder.
fn activated(config: &Config, model: &ModelRecord) -> anyhow::Result<Artefact> {
    let artefact = model.open(config)?;
    let asked = &config.model;
    if !asked.as_os_str().is_empty()
        && Artefact::manifest_of(asked).is_ok_and(|m| m.contract != model.contract)
    {
        tracing::warn!(
            model = model.name,
            asked = %asked.display(),
            "--model names another encoder than the one this store was changed to, which serves: change with POST /models/<name>/activate"
        );
    }
    Ok(artefact)
}

fn open_backends(
    config: &Config,
    runtime: RuntimeInfo,
    artefact: Artefact,
    precision: Option<PrecisionReport>,
) -> anyhow::Result<Opened> {
    let name = artefact.manifest().full_name();
    let backends = backend::ort::open(config, &artefact, &runtime)
        .with_context(|| format!("cannot open the encoder {name}"))?;
    Ok(Opened { runtime, artefact, backends, precision })
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
        "serving on {}://{address}",
        if app.tls.is_some() { "https" } else { "http" }
    );
}
