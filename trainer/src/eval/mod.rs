//! How good an encoder is: nearest neighbours and a linear probe on labelled pictures, beside simple baselines.

mod collect;
pub mod compare;
pub mod error;
pub mod evaluate;
pub mod features;
pub mod few;
pub mod hog;
pub mod knn;
pub mod lbfgs;
pub mod machine;
mod print;
pub mod probe;
pub mod spread;
pub mod subject;
pub mod table;

pub use compare::{Answer, Comparison, Helped};
pub use error::EvalError;
pub use evaluate::{EvalOptions, EvalProgress, evaluate};
pub use features::Features;
pub use few::{FewLabels, FewOptions};
pub use knn::{Neighbour, Vote, neighbours, vote, weighted_knn};
pub use machine::machine;
pub use probe::{LinearProbe, ProbeOptions, linear_probe};
pub use spread::{Spread, spread};
pub use subject::{EmbedError, Measured, Subject};
pub use table::{ClassAccuracy, EvalRow, EvalTable, Metric, Representation, Subsets};
