//! Whether an image looks like a digit at all: like one of MNIST's, which are what a network is trained on.
//!
//! A network gives an answer for everything, and is often sure of it. What is unlike all of these digits gets none: two
//! digits that touch, a blot, a knot in wood.

use std::sync::LazyLock;

use crate::data::{Mnist, PIXELS};

/// How many training digits an image is compared with.
const COMPARED: usize = 10_000;
/// The least cosine between an image and the training digit that is most like it. One in a thousand test digits has less.
const LEAST: f32 = 0.64;

/// The training digits, each with the length of its vector.
static DIGITS: LazyLock<Vec<([u8; PIXELS], f32)>> = LazyLock::new(|| {
    let train = Mnist::embedded().map(|mnist| mnist.train);
    let digits = train.iter().flat_map(|train| train.pixels().as_chunks().0).take(COMPARED);
    digits.map(|pixels| (*pixels, length(pixels))).collect()
});

/// Whether an image looks like a digit.
pub fn is_digit(pixels: &[u8; PIXELS]) -> bool {
    let least = LEAST * length(pixels);
    DIGITS.iter().any(|(digit, length)| product(digit, pixels) as f32 >= least * length)
}

fn length(pixels: &[u8; PIXELS]) -> f32 {
    (product(pixels, pixels) as f32).sqrt()
}

fn product(a: &[u8; PIXELS], b: &[u8; PIXELS]) -> u32 {
    a.iter().zip(b).map(|(&a, &b)| u32::from(a) * u32::from(b)).sum()
}
