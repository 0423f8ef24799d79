//! Fetching ONNX Runtime: the table of known builds, the per-user cache, and pip.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{ORT_VERSION, RuntimeError};

/// Known builds with their SHA-256; shared with tools/with-ort.
const TABLE: &str = include_str!("../../../tools/onnxruntime.tsv");
/// The program that fetches one; shared with tools/with-ort.
const FETCH: &str = include_str!("../../../tools/fetch_onnxruntime.py");

/// Which build of ONNX Runtime to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For CPUs.
    Cpu,
    /// With CUDA and TensorRT.
    Gpu,
}

impl Flavour {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }
}

/// A line of the table: one library of one build.
struct Build {
    flavour: &'static str,
    system: &'static str,
    machine: &'static str,
    package: &'static str,
    version: &'static str,
    file: &'static str,
}

fn builds() -> impl Iterator<Item = Build> {
    TABLE.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            _ if line.starts_with('#') => None,
            [flavour, system, machine, package, version, _tag, file, _sha256] => {
                Some(Build { flavour, system, machine, package, version, file })
            }
            _ => None,
        }
    })
}

/// The builds for the machine that this program was compiled for, the GPU's first: whoever
/// installed that wants it.
fn builds_here() -> impl Iterator<Item = Build> {
    let system = if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS };
    let machine = match std::env::consts::ARCH {
        "aarch64" if cfg!(target_os = "macos") => "arm64",
        arch => arch,
    };
    let mut here: Vec<Build> = builds().filter(|b| b.system == system && b.machine == machine).collect();
    here.sort_by_key(|b| b.flavour != Flavour::Gpu.name());
    here.into_iter()
}

/// `$XDG_CACHE_HOME/latentd`, or `~/.cache/latentd`.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("latentd"))
}

/// File names under which ONNX Runtime may lie beside a program.
pub(super) fn library_names() -> Vec<String> {
    if cfg!(target_os = "macos") {
        vec!["libonnxruntime.dylib".into(), format!("libonnxruntime.{ORT_VERSION}.dylib")]
    } else if cfg!(windows) {
        vec!["onnxruntime.dll".into()]
    } else {
        vec!["libonnxruntime.so".into(), format!("libonnxruntime.so.{ORT_VERSION}")]
    }
}

/// Where `install` leaves the libraries of this machine.
pub(super) fn cached_libraries(cache: &Path) -> Vec<PathBuf> {
    builds_here()
        .filter(|build| build.file.contains("libonnxruntime."))
        .map(|build| cache.join(format!("{}-{}", build.package, build.version)).join(build.file))
        .collect()
}

/// Fetches ONNX Runtime with `python3 -m pip` into the per-user cache and checks its SHA-256.
/// Gives the library's path. Does nothing when it is there already.
///
/// # Errors
/// No python3 or pip, no network, a machine without a known build, or a checksum that differs.
pub fn install(flavour: Flavour) -> Result<PathBuf, RuntimeError> {
    let failed = |what: String| RuntimeError::Install(what);
    let mut child = Command::new("python3")
        .args(["-c", FETCH, "--flavour", flavour.name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("python3 with pip is needed to fetch ONNX Runtime ({e}): install it, or set ORT_DYLIB_PATH to a libonnxruntime")))?;
    if let Some(mut table) = child.stdin.take() {
        // A child that ended early says why on its standard error.
        let _ = table.write_all(TABLE.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| failed(format!("python3: {e}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rfind(|line| !line.trim().is_empty());
        return Err(failed(last.unwrap_or("python3 failed without a word").to_owned()));
    }
    let path = String::from_utf8_lossy(&output.stdout);
    Ok(PathBuf::from(path.trim_end()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let lines: Vec<&str> = TABLE.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(builds().count(), lines.len(), "a line has not 8 fields");
        for line in lines {
            let sha256 = line.rsplit('\t').next().unwrap();
            assert!(sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
        }
        let first = builds().next().unwrap();
        assert_eq!((first.flavour, first.version), ("cpu", ORT_VERSION));
        for build in builds() {
            assert!(build.file.contains(build.version) || build.file.contains("providers"));
        }
    }

    #[test]
    fn this_machine_has_a_build() {
        if cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
            let found = cached_libraries(Path::new("/cache"));
            let expected = format!("/cache/onnxruntime-{ORT_VERSION}/libonnxruntime.so.{ORT_VERSION}");
            assert!(found.contains(&PathBuf::from(expected)));
        }
    }
}
