//! IDX files, plain and gzip.

#![no_main]

use std::path::Path;

use tally_mnist::data::idx;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(pixels) = idx::images(Path::new("images"), bytes) {
        assert!(!pixels.is_empty() && pixels.len() % 784 == 0);
    }
    if let Ok(labels) = idx::labels(Path::new("labels"), bytes) {
        assert!(!labels.is_empty() && labels.iter().all(|&label| label < 10));
    }
});
