//! Ends of a command that a script tells apart by their exit code.

/// The new encoder is not better; nothing was changed.
pub const NOT_BETTER: u8 = 3;
/// Another process is at work in the same folder.
pub const LOCKED: u8 = 4;
/// The new version was written, but the server does not use it yet.
pub const NOT_ACTIVATED: u8 = 5;
/// Stopped by Ctrl-C or SIGTERM; the same command goes on.
pub const STOPPED: u8 = 130;

/// An end with an exit code of its own, and what is said about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Exit {
    /// The exit code.
    pub code: u8,
    message: String,
}

impl Exit {
    /// With a message in one line.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
