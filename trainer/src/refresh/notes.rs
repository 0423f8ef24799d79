//! What a refresh remembers between two calls.

use serde::{Deserialize, Serialize};

/// What a run in the work folder is for; another plan makes the run worthless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The encoder it goes on from: an artefact's contract, or a run's newest weights.
    pub from: String,
    /// Fingerprint of the pictures' names and sizes.
    pub pictures: String,
    /// The version that is being written; set just before it is.
    pub writing: Option<u32>,
}

/// How the last refresh ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A new version was written.
    Written,
    /// The new encoder was not better; nothing was changed.
    Refused,
}

/// Whether the server uses the new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Nobody asked for it.
    NotAsked,
    /// Asked for, and not done yet: the next refresh tries again.
    Pending,
    /// The server uses it.
    Done,
}

/// Notes of the last refresh that came to an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Fingerprint of the pictures then.
    pub pictures: String,
    /// The encoder that it compared with.
    pub from: String,
    /// The encoder that is the newest since.
    pub newest: String,
    /// How it ended.
    pub outcome: Outcome,
    /// In a line.
    pub reason: String,
    /// The version written, as `<name>-v<N>`.
    pub version: Option<String>,
    /// Whether the server uses it.
    pub activation: Activation,
    /// When, RFC 3339.
    pub at: String,
}

impl Notes {
    /// Whether the same pictures were tried on the same encoder already.
    #[must_use]
    pub fn covers(&self, pictures: &str, from: &str) -> bool {
        self.pictures == pictures && (self.newest == from || self.from == from)
    }
}
