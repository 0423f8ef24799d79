//! ONNX Runtime: finding the shared library and loading it, once per process.

mod install;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

pub use install::{Flavour, install};

/// The version of ONNX Runtime that latentd is tested with and that `latentd runtime install`
/// fetches; the first line of tools/onnxruntime.tsv says the same.
pub const ORT_VERSION: &str = "1.32.0";

/// The library that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// The file, or the bare name that the system's loader found.
    pub path: PathBuf,
    /// Its version, e.g. `1.32.0`; `unknown` when the library does not say.
    pub version: String,
}

/// Why there is no ONNX Runtime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// None was found.
    #[error(
        "ONNX Runtime was not found: run `latentd runtime install`, or set ORT_DYLIB_PATH to a libonnxruntime (looked at {looked_at})"
    )]
    NotFound {
        /// Every place, separated by commas.
        looked_at: String,
    },
    /// One was found but is unusable.
    #[error("{path} is no usable ONNX Runtime ({reason}): run `latentd runtime install`, or name another")]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// It could not be fetched.
    #[error("{0}")]
    Install(String),
}

struct Loaded {
    environment: Environment,
    info: RuntimeInfo,
}

static LOADED: OnceLock<Loaded> = OnceLock::new();
/// Held while loading, so that calls at the same time wait for one outcome. A failure is not
/// kept: the library may be installed before the next call.
static LOADING: Mutex<()> = Mutex::new(());

/// Finds and loads ONNX Runtime, once per process; later calls give the same answer.
///
/// The order: `explicit`, `ORT_DYLIB_PATH`, beside the executable (also in `lib/` there), the
/// per-user cache, the system's library path. The first that exists is loaded or is the error.
///
/// # Errors
/// None was found, or the one found is unusable.
pub fn init(explicit: Option<&Path>) -> Result<RuntimeInfo, RuntimeError> {
    let loaded = load(explicit)?;
    if let Some(wanted) = explicit.filter(|path| *path != loaded.info.path) {
        tracing::warn!(
            loaded = %loaded.info.path.display(), wanted = %wanted.display(),
            "ONNX Runtime is loaded once per process; the first one stays"
        );
    }
    Ok(loaded.info.clone())
}

/// The environment that sessions are made in; loads ONNX Runtime when that was not done.
pub(crate) fn environment() -> Result<&'static Environment, RuntimeError> {
    Ok(&load(None)?.environment)
}

fn load(explicit: Option<&Path>) -> Result<&'static Loaded, RuntimeError> {
    if let Some(loaded) = LOADED.get() {
        return Ok(loaded);
    }
    // The lock guards no data, so a panic of another holder leaves nothing broken.
    let _guard = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = LOADED.get() {
        return Ok(loaded);
    }
    let loaded = find(explicit, &Places::of_this_process(), open)?;
    tracing::debug!(path = %loaded.info.path.display(), version = loaded.info.version, "ONNX Runtime is loaded");
    Ok(LOADED.get_or_init(|| loaded))
}

fn open(path: &Path) -> Result<Loaded, RuntimeError> {
    let refuse = |reason: String| RuntimeError::Load { path: path.into(), reason };
    let builder = ort::init_from(path).map_err(|e| refuse(e.to_string()))?;
    let environment = builder
        .with_name("latentd")
        .with_telemetry(false)
        .with_logger(Arc::new(forward_log))
        .build()
        .map_err(|e| refuse(e.to_string()))?;
    environment.set_log_level(LogLevel::Warning);
    let version = version(path);
    Ok(Loaded { environment, info: RuntimeInfo { path: path.into(), version } })
}

/// ONNX Runtime's own log goes where the program's goes. Its warnings are about choices that
/// a user of latentd does not make, so only its errors stand out.
fn forward_log(level: LogLevel, category: &str, _id: &str, code: &str, message: &str) {
    match level {
        LogLevel::Fatal | LogLevel::Error => {
            tracing::error!(target: "onnxruntime", category, code, "{message}");
        }
        LogLevel::Warning => tracing::debug!(target: "onnxruntime", category, code, "{message}"),
        _ => tracing::trace!(target: "onnxruntime", category, code, "{message}"),
    }
}

/// The library tells its version only in the branch that it was built from; its file name
/// usually tells it too.
fn version(path: &Path) -> String {
    let built = ort::info()
        .split_once("git-branch=rel-")
        .and_then(|(_, rest)| rest.split(',').next())
        .map(str::to_owned);
    built.or_else(|| version_in_name(path)).unwrap_or_else(|| "unknown".into())
}

/// `1.32.0` of `libonnxruntime.so.1.32.0` or `libonnxruntime.1.32.0.dylib`.
fn version_in_name(path: &Path) -> Option<String> {
    let real = path.canonicalize().unwrap_or_else(|_| path.into());
    let name = real.file_name()?.to_str()?;
    let rest = name.strip_prefix("libonnxruntime.")?;
    let number = rest.strip_prefix("so.").or_else(|| rest.strip_suffix(".dylib"))?;
    number.starts_with(|c: char| c.is_ascii_digit()).then(|| number.to_owned())
}

/// Where libraries may lie, apart from the one that is named explicitly.
struct Places {
    variable: Option<PathBuf>,
    beside: Option<PathBuf>,
    cache: Option<PathBuf>,
    system: Vec<&'static str>,
}

impl Places {
    fn of_this_process() -> Self {
        let variable = std::env::var_os("ORT_DYLIB_PATH").filter(|value| !value.is_empty());
        let exe = std::env::current_exe().and_then(|exe| exe.canonicalize()).ok();
        Self {
            variable: variable.map(PathBuf::from),
            beside: exe.and_then(|exe| exe.parent().map(Path::to_path_buf)),
            cache: install::cache_folder(),
            system: if cfg!(target_os = "macos") {
                vec!["libonnxruntime.dylib"]
            } else if cfg!(windows) {
                vec!["onnxruntime.dll"]
            } else {
                vec!["libonnxruntime.so", "libonnxruntime.so.1"]
            },
        }
    }

    /// Files that would be taken, best first.
    fn candidates(&self) -> Vec<PathBuf> {
        let names: Vec<String> = install::library_names();
        let beside = self.beside.iter().flat_map(|dir| [dir.clone(), dir.join("lib")]);
        let mut found: Vec<PathBuf> =
            beside.flat_map(|dir| names.iter().map(move |name| dir.join(name)).collect::<Vec<_>>()).collect();
        if let Some(cache) = &self.cache {
            found.extend(install::cached_libraries(cache));
        }
        found
    }
}

fn find<T>(
    explicit: Option<&Path>,
    places: &Places,
    open: impl Fn(&Path) -> Result<T, RuntimeError>,
) -> Result<T, RuntimeError> {
    // A library that somebody named is that one or an error, never silently another.
    if let Some(path) = explicit.or(places.variable.as_deref()) {
        return open(path);
    }
    let candidates = places.candidates();
    if let Some(path) = candidates.iter().find(|path| path.is_file()) {
        return open(path);
    }
    for name in &places.system {
        if let Ok(found) = open(Path::new(name)) {
            return Ok(found);
        }
    }
    let beside = places.beside.iter().map(|dir| dir.display().to_string());
    let cache = places.cache.iter().map(|dir| dir.display().to_string());
    let system = places.system.iter().map(|name| (*name).to_owned());
    let looked_at: Vec<String> = beside.chain(cache).chain(system).collect();
    Err(RuntimeError::NotFound { looked_at: looked_at.join(", ") })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn nowhere(dir: &Path) -> Places {
        Places {
            variable: None,
            beside: Some(dir.join("bin")),
            cache: Some(dir.join("cache")),
            system: vec!["libnone.so"],
        }
    }

    /// Stands for the loader: takes what exists as a file.
    fn exists(path: &Path) -> Result<PathBuf, RuntimeError> {
        let reason = || RuntimeError::Load { path: path.into(), reason: "no such file".into() };
        path.is_file().then(|| path.to_path_buf()).ok_or_else(reason)
    }

    fn touch(path: PathBuf) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"").unwrap();
        path
    }

    #[test]
    fn the_order_of_places() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = nowhere(dir.path());
        let error = find(None, &places, exists).unwrap_err();
        assert!(error.to_string().contains("latentd runtime install"), "{error}");
        assert!(!error.to_string().contains('\n'));
        let name = format!("libonnxruntime.so.{ORT_VERSION}");
        if cfg!(target_os = "linux") {
            let cached = touch(dir.path().join(format!("cache/onnxruntime-{ORT_VERSION}/{name}")));
            assert_eq!(find(None, &places, exists).unwrap(), cached);
            let beside = touch(dir.path().join("bin/lib").join(&name));
            assert_eq!(find(None, &places, exists).unwrap(), beside);
            let closer = touch(dir.path().join("bin/libonnxruntime.so"));
            assert_eq!(find(None, &places, exists).unwrap(), closer);
        }
        let variable = touch(dir.path().join("variable.so"));
        places.variable = Some(variable.clone());
        assert_eq!(find(None, &places, exists).unwrap(), variable);
        let explicit = touch(dir.path().join("explicit.so"));
        assert_eq!(find(Some(&explicit), &places, exists).unwrap(), explicit);
        // One that is named but missing is an error, whatever else there is.
        let missing = dir.path().join("missing.so");
        assert!(
            matches!(find(Some(&missing), &places, exists), Err(RuntimeError::Load { path, .. }) if path == missing)
        );
    }

    #[test]
    fn versions_in_file_names() {
        let version = |name: &str| version_in_name(Path::new(name));
        assert_eq!(version("/x/libonnxruntime.so.1.32.0").as_deref(), Some("1.32.0"));
        assert_eq!(version("/x/libonnxruntime.1.32.0.dylib").as_deref(), Some("1.32.0"));
        assert_eq!(version("/x/libonnxruntime.so"), None);
        assert_eq!(version("/x/other.so.1"), None);
    }

    #[test]
    fn concurrent_calls_give_one_answer() {
        let answers: Vec<_> = std::thread::scope(|scope| {
            let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| init(None))).collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        match &answers[0] {
            Ok(info) => println!("{} is version {}", info.path.display(), info.version),
            Err(RuntimeError::NotFound { .. }) => println!("skipped: no ONNX Runtime here"),
            Err(error) => panic!("{error}"),
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]));
    }
}
