//! The generated code in `src/generated` is what `cluster.proto` says.
//!
//! It is kept in the repository so that a build needs no compiler of .proto files. After a change of
//! `cluster.proto`, `TALLY_GENERATE=1 cargo test -p tally-proto --test generated` writes it anew.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use prost::Message as _;

#[test]
fn the_generated_code_is_that_of_the_proto_file() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(["tally/v1/cluster.proto"], [here.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("descriptors.bin"), files.encode_to_vec()).unwrap();
    tonic_prost_build::configure().bytes(".").out_dir(out.path()).compile_fds(files).unwrap();
    for name in ["tally.v1.rs", "descriptors.bin"] {
        let (made, kept) = (out.path().join(name), here.join("src/generated").join(name));
        if std::env::var_os("TALLY_GENERATE").is_some() {
            std::fs::copy(&made, &kept).unwrap();
        }
        let equal = std::fs::read(&made).unwrap() == std::fs::read(&kept).unwrap();
        assert!(
            equal,
            "src/generated/{name} is stale: TALLY_GENERATE=1 cargo test -p tally-proto --test generated"
        );
    }
}
