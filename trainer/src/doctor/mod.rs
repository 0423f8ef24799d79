//! A check-up of a folder of pictures before it is trained on: what is in it, what is wrong with it, what to do.

pub mod checkup;
pub mod facts;
pub mod findings;
pub mod fingerprint;
mod judge;
pub mod layout;
pub mod near;
pub mod suggestion;
pub mod survey;
pub mod text;
pub mod twins;

pub use checkup::{Checkup, examine};
pub use facts::Facts;
pub use findings::{Finding, Level, Verdict};
pub use fingerprint::{Fingerprint, Orientation};
pub use near::NearIndex;
pub use survey::{Survey, SurveyOptions, SurveyProgress};
