//! The command line: one file per command.

mod bench;
mod doctor;
mod eval;
mod exit;
mod export;
mod machine;
mod overrides;
mod pictures;
mod progress;
mod readout;
mod refresh;
mod report;
mod resume;
mod subject;
mod train;
mod verify;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};

/// Train an image encoder on your own unlabelled pictures, and export it for `latentd serve`.
#[derive(Debug, Parser)]
#[command(name = "latentd-trainer", version)]
struct Cli {
    /// Threads to compute with; by default what the machine (or its cgroup) offers.
    #[arg(long, global = true, env = "LATENTD_TRAINER_THREADS")]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Doctor(doctor::Args),
    Train(train::Args),
    Resume(resume::Args),
    Eval(eval::Args),
    Export(export::Args),
    Report(report::Args),
    Refresh(Box<refresh::Args>),
    Bench(bench::Args),
}

/// Set by Ctrl-C or SIGTERM; a second one ends the process at once.
static STOP: AtomicBool = AtomicBool::new(false);

/// Runs the command line; errors are one line on standard error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("LATENTD_LOG").unwrap_or_else(|_| "info".into()),
        )
        .with_target(false)
        .init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            error.downcast_ref::<exit::Exit>().map_or(ExitCode::FAILURE, |exit| ExitCode::from(exit.code))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Some(threads) = cli.threads {
        anyhow::ensure!((1..=1024).contains(&threads), "--threads {threads} is outside 1 to 1024");
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; once more ends at once");
    })?;
    match cli.command {
        Command::Doctor(args) => args.run(),
        Command::Train(args) => args.run(),
        Command::Resume(args) => args.run(),
        Command::Eval(args) => args.run(),
        Command::Export(args) => args.run(),
        Command::Report(args) => args.run(),
        Command::Refresh(args) => args.run(),
        Command::Bench(args) => args.run(),
    }
}

/// The command line as typed, for a person to repeat.
fn command_line() -> String {
    let quote = |arg: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            arg
        } else {
            format!("'{}'", arg.replace('\'', "'\\''"))
        }
    };
    let args = std::env::args().skip(1).map(quote);
    std::iter::once("latentd-trainer".to_string()).chain(args).collect::<Vec<_>>().join(" ")
}
