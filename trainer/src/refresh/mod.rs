//! Refresh: from new pictures to the next version of an encoder, if it is better than the one there is.

pub mod gate;
pub mod label_free;
pub mod notes;
pub mod workspace;

pub use gate::{Accept, Decision, Evidence, decide};
pub use label_free::{LabelFree, ViewsOf, overlap};
pub use notes::{Activation, Notes, Outcome, Plan};
pub use workspace::{Workspace, WorkspaceError};
