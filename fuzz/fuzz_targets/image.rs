#![no_main]

use std::panic::{catch_unwind, set_hook};
use std::sync::Mutex;

/// What the last panic said.
static LAST: Mutex<String> = Mutex::new(String::new());

// What a decoder of others panics on is refused as a corrupt picture, and the panic ends there. libFuzzer would end the
// run at it, so only what comes out of the function ends it here.
libfuzzer_sys::fuzz_target!(
    init: set_hook(Box::new(|panic| *LAST.lock().unwrap() = panic.to_string())),
    |bytes: &[u8]| {
        if catch_unwind(|| latentd::fuzzing::image(bytes)).is_err() {
            eprintln!("{}", LAST.lock().unwrap());
            std::process::abort();
        }
    }
);
