//! Any bytes as unwind sections, rows and stack: evaluating and stepping must return.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hound_unwind::exercise(data));
