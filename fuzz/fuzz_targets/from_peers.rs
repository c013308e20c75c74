//! Everything that another worker can send on a link.

#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| tally_tests::hostile::peer::play(script));
