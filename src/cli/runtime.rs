//! `latentd runtime install`: fetches ONNX Runtime for an installed binary.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use latentd_model::runtime::{self, Flavour};

/// The arguments.
#[derive(Debug, Args)]
pub struct RuntimeArgs {
    #[command(subcommand)]
    command: RuntimeCommand,
}

#[derive(Debug, Subcommand)]
enum RuntimeCommand {
    /// Fetch ONNX Runtime into the per-user cache and check its SHA-256
    Install {
        /// The build with CUDA and TensorRT
        #[arg(long)]
        gpu: bool,
    },
}

/// Runs the command.
///
/// # Errors
/// When it cannot be fetched.
pub fn run(args: &RuntimeArgs) -> anyhow::Result<ExitCode> {
    let RuntimeCommand::Install { gpu } = args.command;
    let path = runtime::install(if gpu { Flavour::Gpu } else { Flavour::Cpu })?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}
