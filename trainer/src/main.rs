//! `latentd-trainer`: train, evaluate and export an image encoder.

use std::process::ExitCode;

/// Feature maps are large, short-lived and of few sizes: mimalloc keeps their pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    latentd_trainer::cli::main()
}
