//! `latentd key`: makes the keys of `--api-keys-file`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::keys::Role;
use crate::keys::file::{self, KeyRecord};

/// The arguments.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key, print it once, and append its SHA-256 to the file of keys
    New(NewArgs),
}

#[derive(Debug, Args)]
struct NewArgs {
    /// What to call it, in the log too: A-Z a-z 0-9 . _ -
    #[arg(long)]
    name: String,
    /// What it may do; each role includes those before it
    #[arg(long, value_enum)]
    role: Role,
    /// The file of keys, made where there is none
    #[arg(long, env = "LATENTD_API_KEYS_FILE", hide_env_values = true)]
    file: PathBuf,
    /// Requests a second [default: as many as wanted]
    #[arg(long)]
    requests_per_second: Option<f64>,
    /// Requests at once [default: those of a second]
    #[arg(long, requires = "requests_per_second")]
    burst: Option<u32>,
    /// Pictures taken in and not yet answered [default: as many as the server takes]
    #[arg(long)]
    max_images: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// When the name is taken, a limit is out of range, or the file cannot be written.
pub fn run(args: KeyArgs) -> anyhow::Result<ExitCode> {
    let KeyCommand::New(NewArgs { name, role, file, requests_per_second, burst, max_images }) = args.command;
    let key = file::append(&file, |sha256| KeyRecord {
        requests_per_second,
        burst,
        max_images,
        ..KeyRecord::new(&name, role, sha256)
    })?;
    println!("{key}");
    eprintln!(
        "{name} may {role} now; {} has the key's SHA-256 only, so keep the key: it is not shown again",
        file.display()
    );
    Ok(ExitCode::SUCCESS)
}
