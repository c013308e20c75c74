//! Prints the table of `docs/measurements/pictures.md`: how a trained network's predictions do on pictures of digits
//! as people take them.
//!
//! `cargo run -p tally-mnist --example picture_set -- CHECKPOINT [PICTURES OF EACH CLASS]`

#![allow(missing_docs, clippy::print_stdout)]

use std::io::Cursor;

use anyhow::Context;
use tally_mnist::Mnist;
use tally_mnist::data::{PIXELS, SIDE, Split};
use tally_mnist::digit_image::{Bounds, Invert, decode, prepare};
use tally_mnist::predict::Predictor;
use tally_worker::device::{BackendChoice, DeviceOptions, Precision};

#[path = "../tests/support/pictures.rs"]
mod pictures;

/// A prediction that is more probable than this claims to be sure.
const SURE: f64 = 0.8;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let checkpoint = arguments.next().context("usage: picture_set CHECKPOINT [PICTURES OF EACH CLASS]")?;
    let each = arguments.next().map_or(Ok(300), |count| count.parse())?;
    let device =
        DeviceOptions { backend: BackendChoice::Cpu, device: 0, precision: Precision::F32, threads: None };
    let mut predictor = Predictor::open(checkpoint.as_ref(), &device)?;
    let test = Mnist::embedded()?.test;
    println!(
        "| {each} pictures each | right | refused | wrong | wrong and over 80 % sure | misread as MNIST has them |"
    );
    println!("|---|---|---|---|---|---|");
    for class in pictures::CLASSES {
        let (mut refused, mut images, mut digits) = (0, Vec::new(), Vec::new());
        let mut originals = Vec::new();
        for number in 0..each {
            let picture = pictures::make(class, number, &test);
            originals.extend(picture.digit);
            match decode(Cursor::new(picture.bytes), Bounds::FILE)
                .and_then(|decoded| prepare(&decoded, Invert::Auto))
            {
                Ok(prepared) => {
                    images.extend(prepared.pixels);
                    digits.push(picture.digit);
                }
                Err(_) => refused += 1,
            }
        }
        let label = |digit: usize| test.labels().get(digit).copied();
        let predictions = predictor.predict(&images, &vec![5; digits.len()])?;
        let wrong =
            predictions.iter().zip(&digits).filter(|(made, digit)| Some(made.digit) != digit.and_then(label));
        let wrong: Vec<f64> = wrong.map(|(made, _)| made.confidence).collect();
        let sure = wrong.iter().filter(|&&confidence| confidence > SURE).count();
        let pixels: Vec<u8> =
            originals.iter().flat_map(|&digit| test.image(digit).unwrap_or(&[0; PIXELS]).to_vec()).collect();
        let plain = predictor.predict(&pixels, &vec![5; originals.len()])?;
        let misread =
            plain.iter().zip(&originals).filter(|&(made, &digit)| Some(made.digit) != label(digit)).count();
        let right = predictions.len() - wrong.len();
        println!("| {class:?} | {right} | {refused} | {} | {sure} | {misread} |", wrong.len());
    }
    Ok(())
}
