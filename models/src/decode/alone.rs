//! Alone: a thread that decodes by itself.

use std::cell::OnceCell;

thread_local! {
    static POOL: OnceCell<Option<rayon::ThreadPool>> = const { OnceCell::new() };
}

/// Keeps what the calling thread decodes on this thread from now on, for its whole life.
///
/// A JPEG that is decoded at a fraction of its size is handed to rayon in parts. On a thread that rayon does not know
/// these go to the threads of its global pool, and the picture waits for those to get a core, which other pictures have
/// (`cargo bench --bench preprocess` tells what that costs). So a thread of which there is one a core calls this first.
/// Anything else that it hands to rayon stays on it as well.
///
/// Does nothing on a thread of rayon's own. What rayon keeps of the thread (a few KB) outlives it.
pub fn decode_alone() {
    POOL.with(|pool| {
        pool.get_or_init(|| {
            let ours = rayon::current_thread_index().is_none();
            let alone = || rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
            // Without it pictures are only slower.
            ours.then(alone).and_then(Result::ok)
        });
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_thread_alone_gives_nothing_away() {
        let found = std::thread::spawn(|| {
            decode_alone();
            decode_alone();
            let own = std::thread::current().id();
            rayon::join(rayon::current_num_threads, || std::thread::current().id() == own)
        });
        assert_eq!(found.join().unwrap(), (1, true));
    }

    #[test]
    fn a_thread_of_rayon_stays_in_its_pool() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let threads = pool.install(|| {
            decode_alone();
            rayon::current_num_threads()
        });
        assert_eq!(threads, 2);
    }
}
