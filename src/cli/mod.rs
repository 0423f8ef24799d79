//! The command line: `latentd [serve]` and its companions.

mod client;
mod compare;
mod duplicates;
mod embed;
pub mod files;
mod healthcheck;
mod index;
mod key;
mod model;
mod openapi;
mod quantize;
mod reference;
mod revise;
mod runtime;
mod search;
pub mod serve;
mod store;
mod target;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, Layer};
use crate::log::{self, LogWriter};

/// Longest wait at the end for a reader of the log.
const LOG_FLUSH: Duration = Duration::from_secs(1);

/// Serve your own image encoder: embeddings and nearest neighbours over REST.
///
/// Without a command it serves. Settings come from flags, then LATENTD_* variables, then latentd.toml.
#[derive(Debug, Parser)]
#[command(name = "latentd", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct Settings {
    /// Configuration file [default: latentd.toml where it exists]
    #[arg(long, env = "LATENTD_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// The settings themselves.
    #[command(flatten)]
    pub layer: Layer,
}

impl Settings {
    /// The effective configuration.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(self) -> Result<Config, ConfigError> {
        Config::load(self.layer, self.config.as_deref())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the newest encoder (also without any command)
    Serve(Box<Settings>),
    /// Embed picture files into a numpy file
    Embed(Box<embed::EmbedArgs>),
    /// Index a folder of pictures, so that their neighbours can be found
    Index(Box<index::IndexArgs>),
    /// Find the indexed pictures nearest to one, or to several
    Search(Box<search::SearchArgs>),
    /// List indexed pictures that are nearly the same
    Duplicates(Box<duplicates::DuplicatesArgs>),
    /// List, verify, compare or quantize artefacts
    Model(model::ModelArgs),
    /// Make an API key
    Key(key::KeyArgs),
    /// Check, back up, restore, compact or migrate the store, or measure its recall
    Store(store::StoreArgs),
    /// Install ONNX Runtime
    Runtime(runtime::RuntimeArgs),
    /// Print the OpenAPI description
    Openapi,
    /// Ask a running server whether it is ready; exit 0 when it is
    Healthcheck(healthcheck::HealthcheckArgs),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command, settings } = Cli::parse();
    let outcome = match command {
        None => serve::run(settings),
        Some(Command::Serve(settings)) => serve::run(*settings),
        Some(Command::Embed(args)) => embed::run(*args),
        Some(Command::Index(args)) => index::run(&args),
        Some(Command::Search(args)) => search::run(&args),
        Some(Command::Duplicates(args)) => duplicates::run(&args),
        Some(Command::Model(args)) => model::run(args),
        Some(Command::Key(args)) => key::run(args),
        Some(Command::Store(args)) => store::run(args),
        Some(Command::Runtime(args)) => runtime::run(&args),
        Some(Command::Openapi) => openapi::run(),
        Some(Command::Healthcheck(args)) => healthcheck::run(&args),
    };
    let code = outcome.unwrap_or_else(|error| {
        // By way of the log: writing to standard error itself may wait for a reader that never comes.
        let _ = LogWriter.write_all(format!("latentd: {error:#}\n").as_bytes());
        ExitCode::FAILURE
    });
    log::flush(LOG_FLUSH);
    code
}
