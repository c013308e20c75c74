//! Weights to start from, in safetensors.

#![no_main]

use std::io::Cursor;
use std::path::Path;
use std::sync::OnceLock;

use tally_numerics::manifest::{Manifest, TensorSpec};

static NETWORK: OnceLock<Manifest> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let network = NETWORK.get_or_init(|| {
        let tensors = [TensorSpec::with_fan_in("w", &[2, 3], 1), TensorSpec::with_fan_in("b", &[2], 1)];
        Manifest::new(tensors.into()).expect("two tensors make a manifest")
    });
    let read = tally_checkpoint::read_weights_from(
        Path::new("weights"),
        Cursor::new(bytes),
        bytes.len() as u64,
        network,
    );
    if let Ok(weights) = read {
        assert_eq!(weights.values.len(), network.len());
        assert!(weights.values.iter().all(|value| value.is_finite()));
    }
});
