//! Prints the table of `docs/measurements/pictures.md`: how a trained network's predictions do on pictures of digits
//! as people take them.
//!
//! `cargo run -p tally-mnist --example picture_set -- CHECKPOINT [PICTURES OF EACH CLASS [FIRST PICTURE]]`

#![allow(missing_docs, clippy::print_stdout)]

use std::io::Cursor;

use anyhow::Context;
use rayon::prelude::*;
use tally_mnist::Mnist;
use tally_mnist::data::{PIXELS, SIDE, Split};
use tally_mnist::digit_image::{Bounds, Invert, decode, prepare};
use tally_mnist::predict::Predictor;
use tally_worker::device::{BackendChoice, DeviceOptions, Precision};

#[path = "../tests/support/pictures/mod.rs"]
mod pictures;

/// A prediction that is more probable than this claims to be sure.
const SURE: f64 = 0.8;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let checkpoint = arguments.next().context("usage: picture_set CHECKPOINT [COUNT [FIRST]]")?;
    let count: usize = arguments.next().map_or(Ok(300), |count| count.parse())?;
    let first: usize = arguments.next().map_or(Ok(0), |first| first.parse())?;
    let device =
        DeviceOptions { backend: BackendChoice::Cpu, device: 0, precision: Precision::F32, threads: None };
    let mut predictor = Predictor::open(checkpoint.as_ref(), &device)?;
    let test = Mnist::embedded()?.test;
    println!("Pictures {first} to {} of each class.\n", first + count - 1);
    println!("| class | right | refused | wrong | wrong and sure | of these, misread as MNIST has them |");
    println!("|---|---|---|---|---|---|");
    for class in pictures::CLASSES {
        // The test digit that a picture shows, and what is read, if anything.
        let read: Vec<(Option<usize>, Option<[u8; PIXELS]>)> = (first..first + count)
            .into_par_iter()
            .map(|number| {
                let picture = pictures::make(class, number, &test);
                let read = decode(Cursor::new(picture.bytes), Bounds::FILE)
                    .and_then(|decoded| prepare(&decoded, Invert::Auto));
                (picture.digit, read.ok().map(|read| read.pixels))
            })
            .collect();
        let (mut right, mut refused, mut wrong, mut sure, mut misread) = (0, 0, 0, 0, 0);
        for (digit, pixels) in read {
            let Some(pixels) = pixels else {
                refused += 1;
                continue;
            };
            let label = digit.and_then(|digit| test.labels().get(digit).copied());
            let prediction = &predictor.predict(&pixels, &[5])?[0];
            if Some(prediction.digit) == label {
                right += 1;
                continue;
            }
            wrong += 1;
            if prediction.confidence > SURE {
                sure += 1;
                if let Some(plain) = digit.and_then(|digit| test.image(digit)) {
                    misread += usize::from(Some(predictor.predict(plain, &[5])?[0].digit) != label);
                }
            }
        }
        println!("| {class:?} | {right} | {refused} | {wrong} | {sure} | {misread} |");
    }
    Ok(())
}
