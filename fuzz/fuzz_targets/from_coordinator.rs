//! Everything that a coordinator can send, played against a worker's compute thread.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| tally_tests::hostile::worker::play(script));
