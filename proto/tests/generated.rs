//! The generated code in `src/generated` is what `cluster.proto` says.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use tally_proto_generate::{FILES, generate};

#[test]
fn the_generated_code_is_that_of_the_proto_file() {
    let made = tempfile::tempdir().unwrap();
    generate(made.path()).unwrap();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    for file in FILES {
        let equal = std::fs::read(made.path().join(file)).unwrap() == std::fs::read(kept.join(file)).unwrap();
        assert!(equal, "src/generated/{file} is stale: run `cargo run -p tally-proto-generate`");
    }
}
