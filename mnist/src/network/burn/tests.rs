//! What any network on any Burn backend is held to, on burn-flex.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::thread;

use burn_flex::Flex;
use tally_worker::device::{BackendChoice, DeviceOptions};

use super::*;
use crate::data::PIXELS;
use crate::network::{ModelSpec, backend};

/// Samples like digits on a black background, without a file of them.
fn samples(ids: impl IntoIterator<Item = u32>) -> Samples {
    let ids: Vec<u32> = ids.into_iter().collect();
    let pixel =
        |id: u32, position: u32| match (position.wrapping_mul(2_654_435_761) ^ id.wrapping_mul(40_503)) >> 7
            & 1023
        {
            bright @ 0..256 => bright as u8,
            _ => 0,
        };
    let pixels =
        ids.iter().flat_map(|&id| (0..PIXELS as u32).map(move |position| pixel(id, position))).collect();
    let numbers = ids.iter().map(|id| (id * 7 % 10) as u8).collect();
    let labels = ids.iter().map(|id| (id * 3 % 10) as u8).collect();
    Samples::new(ids, pixels, numbers, labels).unwrap()
}

fn engine(model: ModelSpec, loss: LabelLoss, threads: u32) -> Box<dyn DigitEngine> {
    let backend = BackendChoice::Cpu;
    let device = DeviceOptions { backend, threads: Some(threads), ..DeviceOptions::default() };
    let mut engine = backend::network(&model, loss, &device).unwrap();
    let parameters = tally_numerics::init::parameters(engine.manifest(), 5);
    let state = State::new(parameters, engine.manifest(), 1);
    engine.load(state);
    engine
}

/// A network as it is computed on a device across a bus.
fn remote<N: Network>(network: N, loss: LabelLoss, precision: Precision) -> BurnEngine<Flex, N> {
    let context = DeviceContext::cpu_as_gpu(precision, 1).unwrap();
    let mut engine = BurnEngine::new(network, loss, context).unwrap();
    let parameters = tally_numerics::init::parameters(engine.manifest(), 5);
    let state = State::new(parameters, engine.manifest(), 1);
    engine.load(state);
    engine
}

/// How far two vectors are apart, as a part of the first's length.
fn distance(of: &[f32], other: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let differences = of.iter().zip(other).map(|(a, b)| f64::from(a - b));
    norm(&mut { differences }) / norm(&mut of.iter().map(|&x| f64::from(x)))
}

fn gradient(engine: &mut dyn DigitEngine, samples: &Samples) -> (Losses, Vec<u32>) {
    let mut out = vec![f32::NAN; engine.manifest().len()];
    let losses = engine.gradient(samples, 1.0 / 64.0, &mut out, &mut |_| ()).unwrap();
    (losses, out.iter().map(|g| g.to_bits()).collect())
}

/// SUM-1: on one machine, whatever the number of threads and whatever came before.
#[test]
fn sum_1_a_gradients_bits_depend_on_samples_and_parameters_alone() {
    for model in [ModelSpec::Mlp, ModelSpec::Reference] {
        let microbatch = samples(0..8);
        let (mut one, mut two) =
            (engine(model.clone(), LabelLoss::CrossEntropy, 1), engine(model, LabelLoss::CrossEntropy, 2));
        let alone = gradient(one.as_mut(), &microbatch);
        gradient(two.as_mut(), &samples(8..19));
        assert!(alone == gradient(two.as_mut(), &microbatch), "two threads, after another microbatch");
        assert!(alone == gradient(two.as_mut(), &microbatch), "repeated");
        two.predict(&samples(3..5)).unwrap();
        // An engine beside it on other threads, as in the local mode.
        let beside = thread::scope(|scope| {
            let beside = scope.spawn(|| gradient(two.as_mut(), &microbatch));
            (gradient(one.as_mut(), &microbatch), beside.join().unwrap())
        });
        assert!(beside == (alone.clone(), alone), "two engines at once");
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_losses() {
    let microbatch = samples(0..6);
    for loss in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
        let mut engine = engine(ModelSpec::Mlp, loss, 2);
        let state = engine.state().unwrap();
        let mut out = vec![f32::NAN; state.parameters.len()];
        let losses = engine.gradient(&microbatch, 0.5, &mut out, &mut |_| ()).unwrap();
        let predicted = engine.predict(&microbatch).unwrap().losses(&microbatch, loss);
        assert!((losses.total() / predicted.total() - 1.0).abs() < 1e-6, "{losses:?}, {predicted:?}");

        for index in 0..engine.manifest().tensors().len() {
            let range = engine.manifest().range(index);
            for element in [range.start, (range.start + range.end) / 2, range.end - 1] {
                let mut at = |shift: f32| {
                    let mut shifted = state.clone();
                    shifted.parameters[element] += shift;
                    engine.load(shifted);
                    engine.predict(&microbatch).unwrap().losses(&microbatch, loss).total()
                };
                // Answers are float32, so that the losses' differences are good to some 1e-3.
                let step = 1e-3;
                let slope = 0.5 * (at(step) - at(-step)) / (2.0 * f64::from(step));
                let error = (slope - f64::from(out[element])).abs();
                let name = &engine.manifest().tensors()[index].name;
                assert!(
                    error < 0.003 * slope.abs() + 0.003,
                    "{loss}, {name}, element {element}: {slope}, not {}",
                    out[element]
                );
            }
        }
    }
}

#[test]
fn what_is_ready_grows_by_tensors_to_the_whole_gradient() {
    let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
    let manifest = engine.manifest().clone();
    let mut out = vec![f32::NAN; manifest.len()];
    let mut prefixes = Vec::new();
    engine.gradient(&samples(0..2), 1.0, &mut out, &mut |done| prefixes.push(done.to_vec())).unwrap();
    let ends: Vec<usize> = (0..manifest.tensors().len()).map(|index| manifest.range(index).end).collect();
    assert_eq!(prefixes.iter().map(Vec::len).collect::<Vec<_>>(), ends);
    assert!(prefixes.iter().all(|prefix| *prefix == out[..prefix.len()]), "what was ready is final");
}

#[test]
fn no_samples_have_no_gradient() {
    let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
    let (losses, bits) = gradient(engine.as_mut(), &samples([]));
    assert_eq!(losses, Losses::default());
    assert!(bits.iter().all(|&bits| bits == 0));
    assert!(engine.predict(&samples([])).unwrap().is_empty());
}

/// REP-1: an engine's update is the shared one, and it computes on with what was committed.
#[test]
fn rep_1_the_update_counts_from_the_commit_on() {
    let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
    let microbatch = samples(0..8);
    let update = Update::sgd(0.01, 0.9, 0.5);
    let mut state = engine.state().unwrap();
    for _ in 0..3 {
        let (_, bits) = gradient(engine.as_mut(), &microbatch);
        let gradient: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let middle = gradient.len() / 2;
        let digest = engine.apply(&update, middle, &gradient[middle..]).and(engine.apply(
            &update,
            0,
            &gradient[..middle],
        ));
        assert_eq!(engine.state().unwrap(), state, "not before the commit");
        let digest = digest.and(engine.finish_update().unwrap());
        let State { parameters, moments } = &mut state;
        assert_eq!(update.apply(0, &gradient, parameters, &mut [&mut moments[0]]), digest);
        engine.commit();
        assert_eq!(engine.state().unwrap(), state);
    }
    let later = gradient(engine.as_mut(), &microbatch);
    let mut other = self::engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
    other.load(state);
    assert!(later == gradient(other.as_mut(), &microbatch), "the device has the committed parameters");
}

#[test]
fn training_lowers_the_loss() {
    let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 2);
    let microbatch = samples(0..64);
    let update = Update::sgd(0.002, 0.9, 1.0);
    let mut totals = Vec::new();
    for _ in 0..100 {
        let (losses, bits) = gradient(engine.as_mut(), &microbatch);
        totals.push(losses.total());
        let gradient: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        engine.apply(&update, 0, &gradient);
        engine.finish_update().unwrap();
        engine.commit();
    }
    assert!(totals[99] < 0.2 * totals[0], "{totals:?}");
}

/// A NaN in any tensor must reach losses and gradient, wherever a ReLU or a pool lies between.
#[test]
fn a_nan_passes_through() {
    for model in [ModelSpec::Mlp, ModelSpec::Reference] {
        let mut engine = engine(model, LabelLoss::CrossEntropy, 2);
        let manifest = engine.manifest().clone();
        let state = engine.state().unwrap();
        for name in
            ["conv1.weight", "conv3.bias", "conv6.weight", "dense1.weight", "digit1.bias", "sum1.weight"]
        {
            let Some(index) = manifest.find(name) else { continue };
            let mut sick = state.clone();
            sick.parameters[manifest.range(index).start] = f32::NAN;
            engine.load(sick);
            let (losses, bits) = gradient(engine.as_mut(), &samples(0..1));
            assert!(losses.total().is_nan(), "{name}: {losses:?}");
            assert!(bits.iter().any(|&bits| f32::from_bits(bits).is_nan()), "{name}");
        }
    }
}

#[test]
fn an_output_does_not_depend_on_the_samples_beside_it() {
    let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 2);
    let (many, few) = (engine.predict(&samples(0..150)).unwrap(), engine.predict(&samples(64..128)).unwrap());
    assert_eq!(many.len(), 150);
    assert_eq!((&many.logits[64..128], &many.sums[64..128]), (&few.logits[..], &few.sums[..]));
}

#[test]
fn a_panic_on_the_device_becomes_an_error() {
    let context = DeviceContext::cpu(1).unwrap();
    let error = context.run::<()>(|_| panic!("out of {}", "memory")).unwrap_err();
    assert_eq!(error.to_string(), "the CPU backend failed: out of memory");
}

/// Where nothing waits for the device, the backward pass starts in float32, not in double: the
/// gradient is the same but for that rounding, the losses are the same.
#[test]
fn across_a_bus_it_is_the_same_gradient() {
    let microbatch = samples(0..12);
    for loss in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
        let mut near = engine(ModelSpec::Mlp, loss, 1);
        let mut far = remote(networks::Mlp, loss, Precision::F32);
        let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; near.manifest().len()]);
        let losses = near.gradient(&microbatch, 0.125, &mut one, &mut |_| ()).unwrap();
        assert_eq!(far.gradient(&microbatch, 0.125, &mut two, &mut |_| ()).unwrap(), losses);
        assert!(distance(&one, &two) < 1e-6, "{loss}: {}", distance(&one, &two));
        assert_eq!(near.predict(&microbatch).unwrap(), far.predict(&microbatch).unwrap());
    }
}

/// SUM-1: the device adds microbatches up as the host does.
#[test]
fn sum_1_a_node_has_the_bits_of_its_microbatches() {
    let mut engine = remote(networks::Mlp, LabelLoss::CrossEntropy, Precision::F32);
    let microbatches = [samples(0..8), samples(8..16), samples([]), samples(16..23)];
    let microbatches: Vec<&Samples> = microbatches.iter().collect();
    let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; engine.manifest().len()]);
    for rounding in [WireDtype::F32, WireDtype::Bf16] {
        assert!(engine.fuses_nodes(rounding));
        let mut prefixes = Vec::new();
        let mut ready = |done: &[f32]| prefixes.push(done.len());
        let parts = engine.node_gradient(&microbatches, 0.04, rounding, &mut one, &mut ready).unwrap();
        let one_by_one =
            node_gradient_one_by_one(&mut engine, &microbatches, 0.04, rounding, &mut two, &mut |_| ())
                .unwrap();
        assert_eq!((parts.len(), parts), (4, one_by_one));
        assert!(one.iter().zip(&two).all(|(a, b)| a.to_bits() == b.to_bits()), "{rounding}");
        assert!(prefixes.is_sorted() && prefixes.last() == Some(&one.len()), "{prefixes:?}");
        let none = engine.node_gradient(&[microbatches[2]], 1.0, rounding, &mut one, &mut |_| ()).unwrap();
        assert!(none[0] == Losses::default() && one.iter().all(|g| g.to_bits() == 0));
    }
}

#[test]
fn samples_that_went_ahead_change_nothing() {
    let mut engine = remote(networks::Mlp, LabelLoss::CrossEntropy, Precision::F32);
    let microbatches: Vec<Samples> =
        (0..20).map(|microbatch| samples(8 * microbatch..8 * microbatch + 8)).collect();
    let without: Vec<_> = microbatches.iter().map(|microbatch| gradient(&mut engine, microbatch)).collect();
    microbatches.iter().for_each(|microbatch| engine.prefetch(microbatch));
    assert_eq!(engine.ahead.len(), MOST_AHEAD, "no more wait than there may");
    for (microbatch, without) in microbatches.iter().zip(without) {
        assert!(gradient(&mut engine, microbatch) == without);
    }
    assert!(engine.ahead.is_empty(), "each is used once");
    // Another run's samples may have the same ids.
    engine.prefetch(&microbatches[0]);
    let state = engine.state().unwrap();
    engine.load(state);
    assert!(engine.ahead.is_empty());
}

/// The parameters stay float32; what lies between them and the outputs is rounded to 8 bits.
#[test]
fn bf16_is_near_float32_and_trains() {
    let microbatch = samples(0..64);
    let mut fine = remote(networks::Mlp, LabelLoss::CrossEntropy, Precision::F32);
    let mut coarse = remote(networks::Mlp, LabelLoss::CrossEntropy, Precision::Bf16);
    let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; fine.manifest().len()]);
    let losses = fine.gradient(&microbatch, 1.0 / 64.0, &mut one, &mut |_| ()).unwrap();
    let rounded = coarse.gradient(&microbatch, 1.0 / 64.0, &mut two, &mut |_| ()).unwrap();
    assert_ne!(losses, rounded);
    assert!((losses.total() / rounded.total() - 1.0).abs() < 0.02, "{losses:?}, {rounded:?}");
    assert!((1e-5..0.05).contains(&distance(&one, &two)), "{}", distance(&one, &two));
    assert!(coarse.device_name().ends_with("bf16"));
    let update = Update::sgd(0.002, 0.9, 1.0);
    let mut totals = Vec::new();
    for _ in 0..100 {
        totals.push(coarse.gradient(&microbatch, 1.0 / 64.0, &mut two, &mut |_| ()).unwrap().total());
        coarse.apply(&update, 0, &two);
        coarse.finish_update().unwrap();
        coarse.commit();
    }
    assert!(totals[99] < 0.2 * totals[0], "{totals:?}");
}

/// The whole reference network with its convolutions and pools, as on a GPU.
#[test]
fn the_reference_network_is_the_same_across_a_bus() {
    let microbatch = samples(0..4);
    let mut near = engine(ModelSpec::Reference, LabelLoss::CrossEntropy, 2);
    let mut far = remote(networks::Reference, LabelLoss::CrossEntropy, Precision::F32);
    let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; near.manifest().len()]);
    near.gradient(&microbatch, 0.25, &mut one, &mut |_| ()).unwrap();
    far.gradient(&microbatch, 0.25, &mut two, &mut |_| ()).unwrap();
    assert!(distance(&one, &two) < 1e-5, "{}", distance(&one, &two));
}
