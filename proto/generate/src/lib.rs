//! Makes the code of the messages and the service from `cluster.proto`, with protox, so that no `protoc` is needed.
//!
//! The code is kept in `proto/src/generated`, so that a user's build needs no compiler of .proto files.
//! `cargo run -p tally-proto-generate` writes it anew; a test of tally-proto compares it.

#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::Context as _;
use prost::Message as _;

/// The files that [`generate`] makes.
pub const FILES: [&str; 2] = ["tally.v1.rs", "descriptors.bin"];

/// Makes the code, and the descriptions for server reflection, in the directory `out`.
///
/// # Errors
/// If `cluster.proto` is wrong, or `out` can't be written to.
pub fn generate(out: &Path) -> anyhow::Result<()> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let files = protox::compile(["tally/v1/cluster.proto"], [proto])?;
    let descriptors = out.join("descriptors.bin");
    std::fs::write(&descriptors, files.encode_to_vec())
        .with_context(|| format!("cannot write {}", descriptors.display()))?;
    tonic_prost_build::configure().bytes(".").out_dir(out).compile_fds(files)?;
    Ok(())
}
