//! Records: what the processes on one engine agree on.

use std::collections::BTreeMap;

use latentd_model::Contract;
use serde::{Deserialize, Serialize};

/// A generation that does not serve but is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub generation: u64,
    /// Of the collections that it was made for.
    pub contract: Contract,
}

/// A change of the encoder that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The process that carries it out, and what people may call it.
    pub leader: String,
    pub leader_name: String,
    /// Milliseconds without a sign of life after which another may take over.
    pub lead_ms: u64,
    pub from: Contract,
    pub to: Contract,
    /// The generation that is filled.
    pub generation: u64,
    /// Whether nobody may write, since the switch is near.
    pub held: bool,
}

/// One record of the line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub latentd_agreement: u32,
    pub number: u64,
    /// The generation that serves; the first is 0, others have the number of the record that began them.
    pub serving: u64,
    pub previous: Option<Kept>,
    pub change: Option<Change>,
    pub settings: BTreeMap<String, String>,
}

impl Record {
    /// Whether collections of a generation are of use.
    pub fn needs(&self, generation: u64) -> bool {
        generation == self.serving
            || self.previous.is_some_and(|kept| kept.generation == generation)
            || self.change.as_ref().is_some_and(|change| change.generation == generation)
    }

    /// The generation that deletions go to beside the one that serves: the one that is filled, or the one before.
    pub fn spare(&self) -> Option<u64> {
        let filled = self.change.as_ref().map(|change| change.generation);
        filled.or(self.previous.map(|kept| kept.generation))
    }

    /// Whether the change that is under way goes back to the generation before. That has items which were left out
    /// and are to come back; what was deleted since is gone from it.
    pub fn goes_back(&self) -> bool {
        let filled = self.change.as_ref().map(|change| change.generation);
        filled.is_some() && filled == self.previous.map(|kept| kept.generation)
    }

    pub fn held(&self) -> bool {
        self.change.as_ref().is_some_and(|change| change.held)
    }
}
