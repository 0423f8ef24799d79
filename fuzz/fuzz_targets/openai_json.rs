#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| latentd::fuzzing::openai_json(bytes));
