//! The passes over a gradient that a step makes, on one thread, for the reference network's
//! 6 402 764 elements: `cargo bench -p tally-numerics`. Bytes are those read and written.

#![forbid(unsafe_code)]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use tally_numerics::update::Update;
use tally_numerics::update::examples::rules;
use tally_numerics::update::rule::Rule;
use tally_numerics::{digest, norm, sum};

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

/// The optimizers by the names of [`rules`].
const RULES: [&str; 6] = ["SGD", "Adam", "AMSGrad", "RMSProp", "centered RMSProp with momentum", "Lion"];

fn rule(name: &str) -> Rule {
    match rules().into_iter().find(|(of, _)| *of == name) {
        Some((_, rule)) => rule,
        None => unreachable!("it is one of them"),
    }
}

/// A state for a rule: positive moments, since mean squares are.
fn moments(rule: &Rule) -> Vec<Vec<f32>> {
    vec![vector().into_iter().map(|x| x.abs() + 1e-3).collect(); rule.moments()]
}

/// Bytes of an update, in which each vector is read and written, and the gradient read.
fn bytes(rule: &Rule) -> BytesCount {
    BytesCount::new((4 + 8 * (1 + rule.moments())) * ELEMENTS)
}

#[divan::bench(args = RULES)]
fn update_in_place(bencher: Bencher<'_, '_>, name: &str) {
    let rule = rule(name);
    let (gradient, mut parameters, mut state) = (vector(), vector(), moments(&rule));
    let update = Update::of(rule, 1.0);
    bencher.counter(bytes(&rule)).bench_local(|| {
        let mut state: Vec<&mut [f32]> = state.iter_mut().map(Vec::as_mut_slice).collect();
        update.apply(0, black_box(&gradient), &mut parameters, &mut state)
    });
}

#[divan::bench(args = RULES)]
fn update_into_second_buffer(bencher: Bencher<'_, '_>, name: &str) {
    let rule = rule(name);
    let (gradient, parameters, state) = (vector(), vector(), moments(&rule));
    let (mut next, mut next_state) = (vector(), moments(&rule));
    let update = Update::of(rule, 1.0);
    let state: Vec<&[f32]> = state.iter().map(Vec::as_slice).collect();
    bencher.counter(bytes(&rule)).bench_local(|| {
        let mut next_state: Vec<&mut [f32]> = next_state.iter_mut().map(Vec::as_mut_slice).collect();
        update.apply_into(0, black_box(&gradient), (&parameters, &state), (&mut next, &mut next_state))
    });
}

#[divan::bench]
fn digest_of_a_state(bencher: Bencher<'_, '_>) {
    let (parameters, momentum) = (vector(), vector());
    bencher
        .counter(BytesCount::new(8 * ELEMENTS))
        .bench_local(|| digest::of(0, black_box(&parameters), &[&momentum]));
}

#[divan::bench]
fn norm_by_chunks(bencher: Bencher<'_, '_>) {
    let gradient = vector();
    bencher
        .counter(BytesCount::new(4 * ELEMENTS))
        .bench_local(|| black_box(&gradient).chunks(norm::BLOCK).map(norm::sum_of_squares).sum::<f64>());
}

#[divan::bench]
fn scan_for_nan(bencher: Bencher<'_, '_>) {
    let gradient = vector();
    bencher
        .counter(BytesCount::new(4 * ELEMENTS))
        .bench_local(|| norm::first_non_finite(black_box(&gradient)));
}
