//! What any network on any Burn backend is held to, on burn-flex.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::thread;

use burn_flex::{Flex, FlexDevice};
use tally_data::samples::PIXELS;

use super::*;
use crate::engine::ModelSpec;
use crate::engine::backend::{BackendChoice, build};

/// Samples like digits on a black background, without a file of them.
fn samples(ids: impl IntoIterator<Item = u32>) -> Samples {
    let ids: Vec<u32> = ids.into_iter().collect();
    let pixel = |id: u32, place: u32| match (place.wrapping_mul(2_654_435_761) ^ id.wrapping_mul(40_503)) >> 7
        & 1023
    {
        bright @ 0..256 => bright as u8,
        _ => 0,
    };
    let pixels = ids.iter().flat_map(|&id| (0..PIXELS as u32).map(move |place| pixel(id, place))).collect();
    let numbers = ids.iter().map(|id| (id * 7 % 10) as u8).collect();
    let labels = ids.iter().map(|id| (id * 3 % 10) as u8).collect();
    Samples::new(ids, pixels, numbers, labels).unwrap()
}

fn engine(model: ModelSpec, loss: LabelLoss, threads: usize) -> Box<dyn Engine> {
    let mut engine = build(&model, loss, BackendChoice::Cpu, 0, threads).unwrap();
    let parameters = tally_numerics::init::parameters(engine.manifest(), 5);
    let momentum = vec![0.0; parameters.len()];
    engine.load(parameters, momentum);
    engine
}

fn place(memory: Memory, precision: Precision) -> Place<Flex> {
    let pool = Some(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    let (words, kind) = ("CPU".into(), "CPU".into());
    Place { backend: "CPU", words, kind, device: FlexDevice, memory, precision, pool }
}

/// A network as it is computed across a bus, which here is none.
fn remote<N: Network>(network: N, loss: LabelLoss, precision: Precision) -> BurnEngine<Flex, N> {
    let mut engine = BurnEngine::new(network, loss, place(Memory::Device, precision)).unwrap();
    let parameters = tally_numerics::init::parameters(engine.manifest(), 5);
    let momentum = vec![0.0; parameters.len()];
    engine.load(parameters, momentum);
    engine
}

/// How far two vectors are apart, as a part of the first's length.
fn distance(of: &[f32], other: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let differences = of.iter().zip(other).map(|(a, b)| f64::from(a - b));
    norm(&mut { differences }) / norm(&mut of.iter().map(|&x| f64::from(x)))
}

fn gradient(engine: &mut dyn Engine, samples: &Samples) -> (LossParts, Vec<u32>) {
    let mut out = vec![f32::NAN; engine.manifest().len()];
    let losses = engine.gradient(samples, 1.0 / 64.0, &mut out, &mut |_| ()).unwrap();
    (losses, out.iter().map(|g| g.to_bits()).collect())
}

/// SUM-1: on one machine, whatever the number of threads and whatever came before.
#[test]
fn sum_1_a_gradients_bits_depend_on_samples_and_parameters_alone() {
    for model in [ModelSpec::Mlp, ModelSpec::Reference] {
        let leaf = samples(0..8);
        let (mut one, mut two) =
            (engine(model.clone(), LabelLoss::CrossEntropy, 1), engine(model, LabelLoss::CrossEntropy, 2));
        let alone = gradient(one.as_mut(), &leaf);
        gradient(two.as_mut(), &samples(8..19));
        assert!(alone == gradient(two.as_mut(), &leaf), "two threads, after another leaf");
        assert!(alone == gradient(two.as_mut(), &leaf), "repeated");
        two.predict(&samples(3..5)).unwrap();
        // An engine beside it on other threads, as in the local mode.
        let beside = thread::scope(|scope| {
            let beside = scope.spawn(|| gradient(two.as_mut(), &leaf));
            (gradient(one.as_mut(), &leaf), beside.join().unwrap())
        });
        assert!(beside == (alone.clone(), alone), "two engines at once");
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_losses() {
    let leaf = samples(0..6);
    for loss in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
        let mut engine = engine(ModelSpec::Mlp, loss, 2);
        let (parameters, momentum) = engine.state().unwrap();
        let mut out = vec![f32::NAN; parameters.len()];
        let losses = engine.gradient(&leaf, 0.5, &mut out, &mut |_| ()).unwrap();
        let answered = engine.predict(&leaf).unwrap().losses(&leaf, loss);
        assert!((losses.total() / answered.total() - 1.0).abs() < 1e-6, "{losses:?}, {answered:?}");

        for index in 0..engine.manifest().tensors().len() {
            let range = engine.manifest().range(index);
            for place in [range.start, (range.start + range.end) / 2, range.end - 1] {
                let mut at = |shift: f32| {
                    let mut shifted = parameters.clone();
                    shifted[place] += shift;
                    engine.load(shifted, momentum.clone());
                    engine.predict(&leaf).unwrap().losses(&leaf, loss).total()
                };
                // Answers are float32, so that the losses' differences are good to some 1e-3.
                let step = 1e-3;
                let slope = 0.5 * (at(step) - at(-step)) / (2.0 * f64::from(step));
                let error = (slope - f64::from(out[place])).abs();
                let name = &engine.manifest().tensors()[index].name;
                assert!(
                    error < 0.003 * slope.abs() + 0.003,
                    "{loss}, {name}, element {place}: {slope}, not {}",
                    out[place]
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
    assert_eq!(losses, LossParts::default());
    assert!(bits.iter().all(|&bits| bits == 0));
    assert!(engine.predict(&samples([])).unwrap().is_empty());
}

/// REP-1: an engine's update is the shared one, and it computes on with what was committed.
#[test]
fn rep_1_the_update_counts_from_the_commit_on() {
    let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
    let leaf = samples(0..8);
    let update = Update { learning_rate: 0.01, momentum: 0.9, clip: 0.5 };
    let (mut parameters, mut momentum) = engine.state().unwrap();
    for _ in 0..3 {
        let (_, bits) = gradient(engine.as_mut(), &leaf);
        let gradient: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let middle = gradient.len() / 2;
        let digest = engine.apply(update, middle, &gradient[middle..]).and(engine.apply(
            update,
            0,
            &gradient[..middle],
        ));
        assert_eq!(engine.state().unwrap(), (parameters.clone(), momentum.clone()), "not before the commit");
        let digest = digest.and(engine.finish().unwrap());
        assert_eq!(update.apply(0, &gradient, &mut parameters, &mut momentum), digest);
        engine.commit();
        assert_eq!(engine.state().unwrap(), (parameters.clone(), momentum.clone()));
    }
    let later = gradient(engine.as_mut(), &leaf);
    let mut other = self::engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 1);
    other.load(parameters, momentum);
    assert!(later == gradient(other.as_mut(), &leaf), "the device has the committed parameters");
}

#[test]
fn training_lowers_the_loss() {
    let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 2);
    let leaf = samples(0..64);
    let update = Update { learning_rate: 0.002, momentum: 0.9, clip: 1.0 };
    let mut totals = Vec::new();
    for _ in 0..100 {
        let (losses, bits) = gradient(engine.as_mut(), &leaf);
        totals.push(losses.total());
        let gradient: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        engine.apply(update, 0, &gradient);
        engine.finish().unwrap();
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
        let (parameters, momentum) = engine.state().unwrap();
        for name in
            ["conv1.weight", "conv3.bias", "conv6.weight", "dense1.weight", "digit1.bias", "sum1.weight"]
        {
            let Some(index) = manifest.find(name) else { continue };
            let mut sick = parameters.clone();
            sick[manifest.range(index).start] = f32::NAN;
            engine.load(sick, momentum.clone());
            let (losses, bits) = gradient(engine.as_mut(), &samples(0..1));
            assert!(losses.total().is_nan(), "{name}: {losses:?}");
            assert!(bits.iter().any(|&bits| f32::from_bits(bits).is_nan()), "{name}");
        }
    }
}

#[test]
fn an_answer_does_not_depend_on_what_is_asked_beside_it() {
    let mut engine = engine(ModelSpec::Mlp, LabelLoss::CrossEntropy, 2);
    let (many, few) = (engine.predict(&samples(0..150)).unwrap(), engine.predict(&samples(64..128)).unwrap());
    assert_eq!(many.len(), 150);
    assert_eq!((&many.logits[64..128], &many.sums[64..128]), (&few.logits[..], &few.sums[..]));
}

#[test]
fn a_panic_on_the_device_becomes_an_error() {
    let place = place(Memory::Host, Precision::F32);
    let error = place.run::<()>(|_| panic!("out of {}", "memory")).unwrap_err();
    assert_eq!(error.to_string(), "the CPU backend failed: out of memory");
}

/// Where nothing waits for the device, the backward pass starts in float32, not in double: the
/// gradient is the same but for that rounding, the losses are the same.
#[test]
fn across_a_bus_it_is_the_same_gradient() {
    let leaf = samples(0..12);
    for loss in [LabelLoss::CrossEntropy, LabelLoss::SoftmaxNll] {
        let mut near = engine(ModelSpec::Mlp, loss, 1);
        let mut far = remote(networks::Mlp, loss, Precision::F32);
        let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; near.manifest().len()]);
        let losses = near.gradient(&leaf, 0.125, &mut one, &mut |_| ()).unwrap();
        assert_eq!(far.gradient(&leaf, 0.125, &mut two, &mut |_| ()).unwrap(), losses);
        assert!(distance(&one, &two) < 1e-6, "{loss}: {}", distance(&one, &two));
        assert_eq!(near.predict(&leaf).unwrap(), far.predict(&leaf).unwrap());
    }
}

/// SUM-1: the device adds leaves up as the host does.
#[test]
fn sum_1_a_subtree_has_the_bits_of_its_leaves() {
    let mut engine = remote(networks::Mlp, LabelLoss::CrossEntropy, Precision::F32);
    let leaves = [samples(0..8), samples(8..16), samples([]), samples(16..23)];
    let leaves: Vec<&Samples> = leaves.iter().collect();
    let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; engine.manifest().len()]);
    for rounding in [WireDtype::F32, WireDtype::Bf16] {
        assert!(engine.sums_subtrees(rounding));
        let mut prefixes = Vec::new();
        let mut ready = |done: &[f32]| prefixes.push(done.len());
        let parts = engine.subtree(&leaves, 0.04, rounding, &mut one, &mut ready).unwrap();
        let by_leaf = leaf_by_leaf(&mut engine, &leaves, 0.04, rounding, &mut two, &mut |_| ()).unwrap();
        assert_eq!((parts.len(), parts), (4, by_leaf));
        assert!(one.iter().zip(&two).all(|(a, b)| a.to_bits() == b.to_bits()), "{rounding}");
        assert!(prefixes.is_sorted() && prefixes.last() == Some(&one.len()), "{prefixes:?}");
        let none = engine.subtree(&[leaves[2]], 1.0, rounding, &mut one, &mut |_| ()).unwrap();
        assert!(none[0] == LossParts::default() && one.iter().all(|g| g.to_bits() == 0));
    }
}

#[test]
fn samples_that_went_ahead_change_nothing() {
    let mut engine = remote(networks::Mlp, LabelLoss::CrossEntropy, Precision::F32);
    let leaves: Vec<Samples> = (0..20).map(|leaf| samples(8 * leaf..8 * leaf + 8)).collect();
    let without: Vec<_> = leaves.iter().map(|leaf| gradient(&mut engine, leaf)).collect();
    leaves.iter().for_each(|leaf| engine.prefetch(leaf));
    assert_eq!(engine.ahead.len(), MOST_AHEAD, "no more wait than there may");
    for (leaf, without) in leaves.iter().zip(without) {
        assert!(gradient(&mut engine, leaf) == without);
    }
    assert!(engine.ahead.is_empty(), "each is used once");
    // Another run's samples may have the same ids.
    engine.prefetch(&leaves[0]);
    let (parameters, momentum) = engine.state().unwrap();
    engine.load(parameters, momentum);
    assert!(engine.ahead.is_empty());
}

/// The parameters stay float32; what lies between them and the answers is rounded to 8 bits.
#[test]
fn bf16_is_near_float32_and_trains() {
    let leaf = samples(0..64);
    let mut fine = remote(networks::Mlp, LabelLoss::CrossEntropy, Precision::F32);
    let mut coarse = remote(networks::Mlp, LabelLoss::CrossEntropy, Precision::Bf16);
    let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; fine.manifest().len()]);
    let losses = fine.gradient(&leaf, 1.0 / 64.0, &mut one, &mut |_| ()).unwrap();
    let rounded = coarse.gradient(&leaf, 1.0 / 64.0, &mut two, &mut |_| ()).unwrap();
    assert_ne!(losses, rounded);
    assert!((losses.total() / rounded.total() - 1.0).abs() < 0.02, "{losses:?}, {rounded:?}");
    assert!((1e-5..0.05).contains(&distance(&one, &two)), "{}", distance(&one, &two));
    assert!(coarse.device().ends_with("bf16"));
    let update = Update { learning_rate: 0.002, momentum: 0.9, clip: 1.0 };
    let mut totals = Vec::new();
    for _ in 0..100 {
        totals.push(coarse.gradient(&leaf, 1.0 / 64.0, &mut two, &mut |_| ()).unwrap().total());
        coarse.apply(update, 0, &two);
        coarse.finish().unwrap();
        coarse.commit();
    }
    assert!(totals[99] < 0.2 * totals[0], "{totals:?}");
}

/// The whole reference network with its convolutions and pools, as on a GPU.
#[test]
fn the_reference_network_is_the_same_across_a_bus() {
    let leaf = samples(0..4);
    let mut near = engine(ModelSpec::Reference, LabelLoss::CrossEntropy, 2);
    let mut far = remote(networks::Reference, LabelLoss::CrossEntropy, Precision::F32);
    let [mut one, mut two] = [(); 2].map(|()| vec![f32::NAN; near.manifest().len()]);
    near.gradient(&leaf, 0.25, &mut one, &mut |_| ()).unwrap();
    far.gradient(&leaf, 0.25, &mut two, &mut |_| ()).unwrap();
    assert!(distance(&one, &two) < 1e-5, "{}", distance(&one, &two));
}
