//! REPORT.html: what was trained, how it went and how good it is, in one file that needs nothing else.

pub mod chart;
pub mod contact;
pub mod html;
pub mod map;
pub mod metrics;
pub mod page;
mod pictures;
pub mod sections;
pub mod thumbnail;
pub mod verdict;

pub use contact::{ContactRow, Thumbnail, ViewExample, contact_rows, view_examples};
pub use map::{Map, map};
pub use metrics::{MetricRow, parse_metrics};
pub use page::{ReportInput, render};
pub use thumbnail::{encode_picture, encode_view};
pub use verdict::{Level, Verdict, verdict};
