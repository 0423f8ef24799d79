//! Where pictures come from: folders scanned, decoded once into a cache, and rendered into batches of views.

pub mod cache;
pub mod error;
pub mod held_out;
pub mod labelled;
pub mod loader;
pub mod picture;
pub mod random;
mod read;
pub mod scan;
mod store;

pub use cache::{BuildOptions, BuildProgress, PictureCache};
pub use error::DataError;
pub use held_out::spaced;
pub use labelled::{Labelled, LabelledSplits, SplitOrigin, scan_labelled, scan_splits};
pub use loader::{Batch, Loader, LoaderConfig};
pub use picture::PictureRef;
pub(crate) use read::read_bounded;
pub use scan::{Scan, Skipped, scan};
