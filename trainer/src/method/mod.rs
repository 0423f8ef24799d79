//! How an encoder learns without labels.

pub mod byol;
pub mod learner;
pub mod loss;
pub mod part;
