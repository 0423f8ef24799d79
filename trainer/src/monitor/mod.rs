//! A run watched without labels: how the encoder does on a few pictures that it is not trained on.
//!
//! The views that it looks at are drawn once for all, from a stream of randomness of their own, so that two verdicts
//! differ by the encoder alone and training goes on as if nobody had looked.

pub mod health;
pub mod judge;
pub mod watch;

pub use health::Health;
pub use judge::{Collapse, Judge, Outcome};
pub use watch::{Watched, Watcher};
