//! latentd: serve your own image encoder, embeddings and nearest neighbours over REST.
//!
//! A request goes [`http`] → [`embedder`] (decode pool) → [`batcher`] → [`backend`] → ONNX Runtime,
//! and from there to the reply or the [`store`].

pub mod admission;
pub mod app;
pub mod backend;
pub mod batcher;
pub mod cache;
pub mod cli;
pub mod config;
pub mod embedder;
pub mod fair;
pub mod fetch;
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod http;
pub mod indexer;
pub mod keys;
pub mod locate;
pub mod log;
pub mod memory;
pub mod net;
pub mod npy;
pub mod outcome;
pub mod pool;
pub mod precision;
pub mod refresh;
pub mod reply;
pub mod roster;
pub mod shutdown;
pub mod slots;
pub mod store;
pub mod telemetry;
pub mod thumbnail;
pub mod tls;
pub mod trace;
pub mod transfer;
pub mod tuning;
pub mod watch;
