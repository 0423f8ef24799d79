//! Reply: where the outcome of a picture goes.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::admission::Permit;
use crate::outcome::Outcome;
use crate::store::ContentHash;

type Before = Box<dyn FnOnce(&Outcome) + Send>;

/// Where a picture's answer goes, and its place in the server until then.
pub struct Reply {
    sender: oneshot::Sender<Outcome>,
    permit: Permit,
    before: Option<Before>,
    /// What it waited for a thread.
    pub wait: Duration,
    /// The file's hash, where it is known.
    pub content: Option<ContentHash>,
}

impl Reply {
    /// An answer that goes to `sender`.
    #[must_use]
    pub fn new(sender: oneshot::Sender<Outcome>, permit: Permit) -> Self {
        Self { sender, permit, before: None, wait: Duration::ZERO, content: None }
    }

    /// Has `work` look at the outcome before it is sent; dropped where none is sent.
    pub fn before(&mut self, work: impl FnOnce(&Outcome) + Send + 'static) {
        self.before = Some(Box::new(work));
    }

    /// Whether nobody waits for it: the client has hung up, or its deadline has passed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Answers, and gives the place back before.
    pub fn send(self, outcome: Outcome) {
        let Self { sender, permit, before, .. } = self;
        if let Some(work) = before {
            work(&outcome);
        }
        drop(permit);
        let _ = sender.send(outcome);
    }
}
