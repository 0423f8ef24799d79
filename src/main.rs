//! The `latentd` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    latentd::cli::main()
}
