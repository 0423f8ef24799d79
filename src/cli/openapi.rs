//! `latentd openapi`: the API's description, as it is committed in openapi/openapi.json.

use std::io::Write;
use std::process::ExitCode;

use crate::http::{docs, router};

/// Prints the description.
///
/// # Errors
/// When standard output is closed.
pub fn run() -> anyhow::Result<ExitCode> {
    let json = docs::to_json(&router::openapi())?;
    std::io::stdout().write_all(json.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
