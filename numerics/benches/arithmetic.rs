//! The passes over a gradient that a step makes, on one thread, for the reference network's
//! 6 402 764 elements: `cargo bench -p tally-numerics`. Bytes are those read and written.

#![forbid(unsafe_code)]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use tally_numerics::update::Update;
use tally_numerics::{CHUNK, digest, norm, sum};

const ELEMENTS: usize = 6_402_764;

fn main() {
    divan::main();
}

fn vector() -> Vec<f32> {
    (0..ELEMENTS).map(|i| (i % 1000) as f32 * 1e-3 - 0.5).collect()
}

#[divan::bench]
fn add(bencher: Bencher<'_, '_>) {
    let (mut left, right) = (vector(), vector());
    bencher.counter(BytesCount::new(12 * ELEMENTS)).bench_local(|| sum::add(black_box(&mut left), &right));
}

#[divan::bench]
fn update_in_place(bencher: Bencher<'_, '_>) {
    let (gradient, mut parameters, mut momentum) = (vector(), vector(), vec![0.0; ELEMENTS]);
    let update = Update { learning_rate: 1e-6, momentum: 0.9, clip: 1.0 };
    bencher
        .counter(BytesCount::new(20 * ELEMENTS))
        .bench_local(|| update.apply(0, black_box(&gradient), &mut parameters, &mut momentum));
}

#[divan::bench]
fn update_into_second_buffer(bencher: Bencher<'_, '_>) {
    let (gradient, parameters, momentum) = (vector(), vector(), vector());
    let (mut p, mut v) = (vector(), vector());
    let update = Update { learning_rate: 1e-6, momentum: 0.9, clip: 1.0 };
    bencher.counter(BytesCount::new(20 * ELEMENTS)).bench_local(|| {
        update.apply_into(0, black_box(&gradient), (&parameters, &momentum), (&mut p, &mut v))
    });
}

#[divan::bench]
fn digest_of_a_state(bencher: Bencher<'_, '_>) {
    let (parameters, momentum) = (vector(), vector());
    bencher
        .counter(BytesCount::new(8 * ELEMENTS))
        .bench_local(|| digest::of(0, black_box(&parameters), &momentum));
}

#[divan::bench]
fn norm_by_chunks(bencher: Bencher<'_, '_>) {
    let gradient = vector();
    bencher
        .counter(BytesCount::new(4 * ELEMENTS))
        .bench_local(|| black_box(&gradient).chunks(CHUNK).map(norm::sum_of_squares).sum::<f64>());
}

#[divan::bench]
fn scan_for_nan(bencher: Bencher<'_, '_>) {
    let gradient = vector();
    bencher
        .counter(BytesCount::new(4 * ELEMENTS))
        .bench_local(|| norm::first_non_finite(black_box(&gradient)));
}
