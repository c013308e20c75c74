//! What the engine promises beyond the golden values of `tests/golden.rs`.

#![allow(clippy::unwrap_used)]

use rayon::ThreadPoolBuilder;
use tally_numerics::digest::{self, Digest};
use tally_numerics::init;

use super::*;
use crate::data::PIXELS;

/// Samples like digits on a black background, without a file of them.
fn samples(first: u32, count: usize) -> Samples {
    let ids: Vec<u32> = (first..first + count as u32).collect();
    let pixel = |id: u32, place: u32| {
        let bright = (place.wrapping_mul(2_654_435_761) ^ id.wrapping_mul(40_503)) >> 7 & 1023;
        if bright < 256 { bright as u8 } else { 0 }
    };
    let pixels = ids.iter().flat_map(|&id| (0..PIXELS as u32).map(move |place| pixel(id, place))).collect();
    let numbers = ids.iter().map(|id| (id * 7 % 10) as u8).collect();
    let labels = ids.iter().map(|id| (id * 3 % 10) as u8).collect();
    Samples::new(ids, pixels, numbers, labels).unwrap()
}

fn engine(simd: Simd, threads: usize) -> CpuEngine {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut engine = CpuEngine::new(LabelLoss::CrossEntropy, pool, simd, String::new());
    let parameters = init::parameters(engine.manifest(), 5);
    let state = State::new(parameters, engine.manifest(), 1);
    engine.load(state);
    engine
}

fn digest_of(gradient: &[f32]) -> Digest {
    digest::of(0, gradient, &[gradient])
}

/// SUM-1 on every CPU: the digest of a whole gradient is the same with any instructions and
/// any number of threads.
#[test]
fn sum_1_a_gradient_has_the_same_bits_on_every_path_and_for_any_threads() {
    let microbatches = [samples(0, 1), samples(1, 0), samples(1, 1), samples(2, 0)];
    let microbatches: Vec<&Samples> = microbatches.iter().collect();
    let mut first = None;
    for simd in Simd::all() {
        for threads in [1, 2, 3] {
            let mut engine = engine(simd, threads);
            let mut out = vec![f32::NAN; engine.manifest().len()];
            let losses =
                engine.node_gradient(&microbatches, 0.5, WireDtype::F32, &mut out, &mut |_| ()).unwrap();
            let result = (digest_of(&out), losses);
            assert_eq!(first.get_or_insert_with(|| result.clone()), &result, "{simd}, {threads} threads");
        }
    }
}

/// SUM-1 and REP-1 on every CPU: a short training run ends in the same state.
#[test]
fn rep_1_a_run_ends_in_the_same_state_on_every_path() {
    let update = Update::sgd(0.01, 0.9, 0.5);
    let mut first = None;
    for (simd, threads) in Simd::all().into_iter().zip([3, 1, 2]) {
        let mut engine = engine(simd, threads);
        let mut out = vec![f32::NAN; engine.manifest().len()];
        let mut state = Digest::default();
        for step in 0..2 {
            engine.gradient(&samples(step, 1), 1.0, &mut out, &mut |_| ()).unwrap();
            state = engine.apply(&update, 0, &out);
            engine.commit();
        }
        assert_eq!(*first.get_or_insert(state), state, "{simd}");
    }
}

/// SUM-1: microbatches at once have the bits of microbatches one by one, added along their tree; also
/// where there are too many images for one go, microbatches of more than a batch, and empty ones.
#[test]
fn sum_1_a_node_has_the_bits_of_its_microbatches() {
    let of_f32 = [[3, 1, 0, 5], [0, 0, 0, 2], [100, 40, 0, 17], [0, 0, 120, 30], [0; 4]];
    let of_bf16 = [[3, 1, 0, 5], [0, 2, 0, 0], [80, 40, 0, 30]];
    let cases = of_f32.map(|sizes| (sizes, WireDtype::F32)).into_iter();
    for (sizes, rounding) in cases.chain(of_bf16.map(|sizes| (sizes, WireDtype::Bf16))) {
        let mut engine = engine(Simd::widest(), 2);
        let mut first = 0;
        let microbatches = sizes.map(|size| {
            first += size as u32;
            samples(first, size)
        });
        let microbatches: Vec<&Samples> = microbatches.iter().collect();
        let mut out = vec![f32::NAN; engine.manifest().len()];
        let parts = engine.node_gradient(&microbatches, 0.25, rounding, &mut out, &mut |_| ()).unwrap();
        let alone: Vec<(Losses, Vec<f32>)> = microbatches
            .iter()
            .map(|microbatch| {
                let mut out = vec![f32::NAN; out.len()];
                let losses = engine.gradient(microbatch, 0.25, &mut out, &mut |_| ()).unwrap();
                rounding.round(&mut out);
                (losses, out)
            })
            .collect();
        assert_eq!(parts, alone.iter().map(|(losses, _)| *losses).collect::<Vec<_>>(), "{sizes:?}");
        let gradients = alone
            .into_iter()
            .zip(&microbatches)
            .map(|((_, out), microbatch)| (!microbatch.is_empty()).then_some(out));
        let sum = tally_numerics::sum::along_tree(gradients, |mut left, right| {
            rounding.add(&mut left, &right);
            left
        });
        assert_eq!(digest_of(&sum.unwrap_or_else(|| vec![0.0; out.len()])), digest_of(&out), "{sizes:?}");
    }
}

#[test]
fn what_is_ready_grows_layer_by_layer_and_is_final() {
    let mut engine = engine(Simd::widest(), 2);
    let mut out = vec![f32::NAN; engine.manifest().len()];
    let mut prefixes: Vec<Vec<f32>> = Vec::new();
    engine.gradient(&samples(0, 2), 1.0, &mut out, &mut |done| prefixes.push(done.to_vec())).unwrap();
    assert!(prefixes.windows(2).all(|pair| pair[0].len() < pair[1].len()));
    assert!(prefixes.iter().all(|prefix| digest_of(prefix) == digest_of(&out[..prefix.len()])));
    assert_eq!(prefixes.last().map(Vec::len), Some(out.len()));
    let conv6 = engine.manifest().range(engine.manifest().find("conv6.weight").unwrap());
    assert!(prefixes[..3].iter().any(|prefix| prefix.len() >= conv6.end), "conv6 is among the first");
}

#[test]
fn an_answer_does_not_depend_on_what_is_asked_beside_it() {
    let mut engine = engine(Simd::widest(), 2);
    let (many, few) = (engine.predict(&samples(0, 150)).unwrap(), engine.predict(&samples(64, 7)).unwrap());
    assert_eq!(many.len(), 150);
    assert_eq!((&many.logits[64..71], &many.sums[64..71]), (&few.logits[..], &few.sums[..]));
}
