//! Checkpoints and weights with arbitrary contents, also with matching checksums: they are read or refused, and
//! nothing panics. Weights are files from any source.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Cursor;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tally_numerics::manifest::{Manifest, TensorSpec, hex};
use tally_numerics::state::State;

use crate::meta::{Meta, tests::meta};
use crate::{CheckpointError, MANIFEST, MODEL, MOMENTS, newest_whole, read, read_weights_from, write};

fn network() -> Manifest {
    Manifest::new(vec![TensorSpec::with_fan_in("w", &[2, 3], 1), TensorSpec::with_fan_in("b", &[2], 1)])
        .unwrap()
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(vec![
            json!(null),
            json!(-1),
            json!(0),
            json!(1),
            json!(2),
            json!(u64::MAX),
            json!(1u64 << 62),
            json!(0.5),
            json!(""),
            json!([]),
            json!({}),
            json!([0, 24]),
            json!([4, 2]),
            json!([u64::MAX, u64::MAX]),
            json!("F64"),
            json!("BF16"),
            json!("I8"),
            json!("F4"),
            json!([65536, 65536, 65536, 65536]),
        ]),
        any::<i64>().prop_map(|n| json!(n)),
        ".{0,20}".prop_map(|text| json!(text)),
    ]
}

fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, v)| places(v, &format!("{at}/{name}"), into)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| places(v, &format!("{at}/{i}"), into))
        }
        _ => {}
    }
}

/// The value with the value at one of its places changed.
fn changed(mut value: Value, place: &prop::sample::Index, new: Value) -> Value {
    let mut there = Vec::new();
    places(&value, "", &mut there);
    *value.pointer_mut(&there[place.index(there.len())]).unwrap() = new;
    value
}

/// The text of a manifest with a checksum that fits.
fn sealed(body: &str) -> Vec<u8> {
    let sealed = format!("\",{}\n", body.trim_start_matches('{'));
    let seal = hex(&Sha256::digest(&sealed));
    [b"{\n  \"manifest_sha256\": \"", seal.as_bytes(), sealed.as_bytes()].concat()
}

/// A safetensors file of this header and these data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn weights(bytes: &[u8]) {
    let path = Path::new("weights");
    if let Ok(weights) = read_weights_from(path, Cursor::new(bytes), bytes.len() as u64, &network()) {
        assert_eq!(weights.values.len(), network().len());
        assert!(weights.values.iter().all(|value| value.is_finite()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_weights_or_are_refused(bytes in vec(any::<u8>(), 0..200), length: u64) {
        weights(&bytes);
        weights(&[&length.to_le_bytes()[..], &bytes].concat());
        weights(&file(&String::from_utf8_lossy(&bytes), &[0; 32]));
    }

    #[test]
    fn weights_with_a_changed_header_are_read_or_refused(
        place in any::<prop::sample::Index>(), new in value(), data in vec(any::<u8>(), 30..40),
    ) {
        let header = json!({
            "w": { "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24] },
            "b": { "dtype": "F32", "shape": [2], "data_offsets": [24, 32] },
        });
        weights(&file(&header.to_string(), &[0; 32]));
        let header = changed(header, &place, new);
        weights(&file(&header.to_string(), &[0; 32]));
        weights(&file(&header.to_string(), &data));
    }
}

/// Before there were several optimizers, a manifest did not name the moments: there was SGD's velocity.
#[test]
fn a_checkpoint_that_names_no_moments_is_one_of_sgd() {
    let root = tempfile::tempdir().unwrap();
    let state = State { parameters: vec![0.5; 8], moments: vec![vec![0.25; 8]] };
    let (digest, tensors) = (state.digest(), network());
    let parameters_sha256 = tensors.sha256(&state.parameters);
    let meta = Meta { step: 7, epoch: 1, digest, parameters_sha256, tensors, ..meta() };
    let path = write(root.path(), &meta, &state).unwrap();
    let mut whole: Value = serde_json::from_slice(&fs::read(path.join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(whole.as_object_mut().unwrap().remove("moments"), Some(json!(["momentum_buffer"])));
    fs::write(path.join(MANIFEST), sealed(&whole.to_string())).unwrap();
    let read = read(&path).unwrap();
    assert_eq!((read.state, read.meta.moments), (state, vec!["momentum_buffer".to_owned()]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn ckpt_1_a_changed_checkpoint_with_checksums_that_fit_is_read_or_refused(
        place in any::<prop::sample::Index>(), new in value(), which in 0usize..3, at in any::<prop::sample::Index>(),
    ) {
        let root = tempfile::tempdir().unwrap();
        let state = State { parameters: vec![0.5; 8], moments: vec![vec![0.25; 8]] };
        let tensors = network();
        let digest = state.digest();
        let parameters_sha256 = tensors.sha256(&state.parameters);
        let meta = Meta { step: 7, epoch: 1, digest, parameters_sha256, tensors, ..meta() };
        let path = write(root.path(), &meta, &state).unwrap();
        let whole: Value = serde_json::from_slice(&fs::read(path.join(MANIFEST)).unwrap()).unwrap();
        let changed = changed(whole, &place, new);
        fs::write(path.join(MANIFEST), sealed(&changed.to_string())).unwrap();
        if let Some(name) = [None, Some(MODEL), Some(MOMENTS[0])][which] {
            let mut bytes = fs::read(path.join(name)).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 0x10;
            fs::write(path.join(name), bytes).unwrap();
        }
        if let Ok(read) = read(&path) {
            prop_assert_eq!(read.state, state);
        }
        // What a newer Tally wrote ends the search; anything else is passed over.
        let newest = newest_whole(root.path(), None);
        prop_assert!(matches!(newest, Ok(_) | Err(CheckpointError::Version { .. })), "{newest:?}");
    }
}
