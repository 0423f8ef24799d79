//! Why there is no configuration.

use std::path::PathBuf;

/// What can be wrong with a configuration. Every message says which key and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML, or holds an unknown key or a value of the wrong type.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: Box<toml::de::Error>,
    },
    /// A value is outside its range.
    #[error("{key} = {value}: {reason}")]
    Range {
        /// The key as written in `latentd.toml`.
        key: &'static str,
        /// The value found.
        value: String,
        /// What it must be.
        reason: String,
    },
}
