//! The official files, read by the `mnist` crate and by ours, hold the same samples.
//!
//! That crate shares no line with our reader. It reads plain files alone, so the embedded
//! ones are unpacked into a directory first, which [`Mnist::from_dir`] reads as well.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;

use flate2::read::GzDecoder;
use mnist::MnistBuilder;
use tally_mnist::data::Mnist;

#[test]
fn an_independent_reader_finds_the_same_pixels_and_labels() {
    let directory = tempfile::tempdir().unwrap();
    for (name, gzip) in [
        ("train-images-idx3-ubyte", &include_bytes!("../data/train-images-idx3-ubyte.gz")[..]),
        ("train-labels-idx1-ubyte", include_bytes!("../data/train-labels-idx1-ubyte.gz")),
        ("t10k-images-idx3-ubyte", include_bytes!("../data/t10k-images-idx3-ubyte.gz")),
        ("t10k-labels-idx1-ubyte", include_bytes!("../data/t10k-labels-idx1-ubyte.gz")),
    ] {
        let mut plain = Vec::new();
        GzDecoder::new(gzip).read_to_end(&mut plain).unwrap();
        fs::write(directory.path().join(name), plain).unwrap();
    }

    let theirs = MnistBuilder::new()
        .base_path(directory.path().to_str().unwrap())
        .label_format_digit()
        .training_set_length(60_000)
        .validation_set_length(0)
        .test_set_length(10_000)
        .finalize();
    for ours in [Mnist::embedded().unwrap(), Mnist::from_dir(directory.path()).unwrap()] {
        // Not `assert_eq`, which would print 47 million pixels.
        assert!(ours.train.pixels() == theirs.trn_img, "training pixels differ");
        assert!(ours.test.pixels() == theirs.tst_img, "test pixels differ");
        assert_eq!(ours.train.labels(), theirs.trn_lbl);
        assert_eq!(ours.test.labels(), theirs.tst_lbl);
    }
}
