//! IDX files with anything in them: read whole or refused, without a panic, and without
//! more memory than the bytes that are there.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::collection::vec;
use proptest::prelude::*;
use tally_mnist::data::idx;
use tally_mnist::data::samples::PIXELS;

/// A header's word: often right, else at an edge or anything.
fn word(right: u32) -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(right), 1 => any::<u32>(), 1 => Just(u32::MAX), 1 => Just(0), 1 => 0u32..4]
}

fn file() -> impl Strategy<Value = Vec<u8>> {
    let magic = prop_oneof![word(0x803), word(0x801)];
    (magic, word(2), word(28), word(28), vec(0u8..12, 0..2000), any::<bool>()).prop_map(
        |(magic, count, rows, columns, mut body, exact)| {
            let mut bytes: Vec<u8> = [magic, count].iter().flat_map(|w| w.to_be_bytes()).collect();
            if magic == 0x803 {
                bytes.extend([rows, columns].iter().flat_map(|w| w.to_be_bytes()));
            }
            if exact && count < 4 {
                body.resize(if magic == 0x803 { count as usize * PIXELS } else { count as usize }, 3);
            }
            bytes.extend(body);
            bytes
        },
    )
}

fn check(bytes: &[u8], unpacked: usize) {
    if let Ok(pixels) = idx::images(Path::new("images"), bytes) {
        assert!(pixels.len() % PIXELS == 0 && pixels.len() + 16 == unpacked);
    }
    if let Ok(labels) = idx::labels(Path::new("labels"), bytes) {
        assert!(labels.iter().all(|&label| label < 10) && labels.len() + 8 == unpacked);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_an_idx_file_or_are_refused(bytes in vec(any::<u8>(), 0..400)) {
        check(&bytes, bytes.len());
    }

    #[test]
    fn a_file_of_any_header_is_read_whole_or_refused(file in file(), flip in any::<prop::sample::Index>(), bit in 0u8..8) {
        check(&file, file.len());
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&file).unwrap();
        let mut packed = packed.finish().unwrap();
        check(&packed, file.len());
        let at = flip.index(packed.len());
        packed[at] ^= 1 << bit;
        // A flipped bit that is not found is in a part of gzip's header that says nothing.
        check(&packed, file.len());
    }
}
