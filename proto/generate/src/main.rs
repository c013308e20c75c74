//! Writes `proto/src/generated` anew.

#![forbid(unsafe_code)]

use std::path::Path;

fn main() -> anyhow::Result<()> {
    tally_proto_generate::generate(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/generated"))
}
