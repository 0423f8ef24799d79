//! The real `latentd-trainer` on real files: train, kill, resume, evaluate, export, and bad input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod budget;
mod doctor;
mod end_to_end;
mod init;
mod refresh;
mod resume;
mod support;
mod watch;
