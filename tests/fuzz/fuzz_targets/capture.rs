//! Any bytes as a capture file: reading must return, with whatever it found before the damage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hound_user::capture::exercise(data));
