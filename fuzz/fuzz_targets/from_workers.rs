//! Everything that workers can send, played against the whole coordinator.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| tally_tests::hostile::coordinator::play(script));
