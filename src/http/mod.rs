//! HTTP: routes, extractors, replies. Handlers extract, call one thing, and respond.

pub mod auth;
pub mod bulk;
pub mod collections;
pub mod cors;
pub mod deadline;
pub mod docs;
pub mod duplicates;
pub mod embed;
pub mod encoding;
pub mod entries;
pub mod etag;
pub mod extract;
pub mod info;
pub mod input;
pub mod items;
pub mod models;
pub mod observe;
pub mod preprocess;
pub mod problem;
pub mod refresh;
pub mod router;
pub mod search;
pub mod serve;
pub mod stored;
pub mod target;
pub mod ui;
