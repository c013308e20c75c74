//! The text of `journal.jsonl` and of `run.json`.

#![no_main]

use std::path::Path;

use tally_run::{directory, journal};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("run");
    if let Ok((lines, whole)) = journal::parse(path, bytes) {
        assert!(whole <= bytes.len());
        for line in &lines {
            // What was read can be written, and reads the same.
            let again = serde_json::to_vec(line).expect("a line can be written");
            assert_eq!(&serde_json::from_slice::<journal::Line>(&again).expect("it can be read"), line);
        }
    }
    let _ = directory::parse_config(path, bytes);
});
