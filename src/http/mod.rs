//! HTTP: routes, extractors, replies. Handlers extract, call one thing, and respond.

pub mod docs;
pub mod embed;
pub mod encoding;
pub mod extract;
pub mod info;
pub mod input;
pub mod models;
pub mod observe;
pub mod preprocess;
pub mod problem;
pub mod router;
pub mod serve;
pub mod ui;
