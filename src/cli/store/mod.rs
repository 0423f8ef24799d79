//! `latentd store`: looking after the store.

mod migrate;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// The arguments.
#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy the embedded store into another, compare, and go on where it was broken off
    Migrate(Box<migrate::MigrateArgs>),
}

/// Runs the command.
///
/// # Errors
/// When the store cannot be opened, or the command fails.
pub fn run(args: StoreArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Migrate(args) => migrate::run(*args),
    }
}
