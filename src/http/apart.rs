//! Apart: bodies taken apart off the async threads when they are large, in the place that they have in the server.

use std::sync::Arc;

use super::problem::Problem;
use crate::admission::Permit;

/// Bodies above this are taken apart off the async threads.
const LARGE_BODY: usize = 128 << 10;

/// Runs `work` on a blocking thread when it goes through more than a little. Nothing stops it once it has begun, so it
/// has to own the place in the server of what it goes through.
///
/// # Errors
/// What `work` gives, or 500 when it panicked.
pub async fn off_thread<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    if size <= LARGE_BODY {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| Problem::internal())?
}

/// Takes a body of `size` bytes apart, off the thread when it is large; it keeps its place until that has ended, whoever
/// waits for it.
///
/// # Errors
/// What `work` gives, or 500 when it panicked.
pub async fn take_apart<T: Send + 'static>(
    size: usize,
    permit: &Arc<Permit>,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let held = permit.clone();
    let work = move || {
        let outcome = work();
        drop(held);
        outcome
    };
    off_thread(size, work).await
}
