//! The integration tests: the real app, with the real bundled encoder, on a free port.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

mod acceptance;
mod bad_input;
mod cache;
mod cli;
mod cors;
mod embed;
mod encodings;
mod examples;
mod fuzz;
mod generations;
mod index_cli;
mod items;
mod keys;
mod kill9;
mod load;
mod metrics;
mod milvus;
mod milvus_change;
mod nasty;
mod openapi;
mod overload;
mod precision;
mod refresh;
mod search;
mod server;
mod similar;
mod store;
mod tls;
mod traces;
mod upkeep;
mod upload;
mod url_inputs;
mod vectors;
