//! Whether a device computes what it must.

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use tally_mnist::LabelLoss;
use tally_mnist::Samples;
use tally_mnist::network::DigitEngine;
use tally_numerics::digest::{self, Digest};
use tally_numerics::init;
use tally_numerics::schema::Sums;
use tally_numerics::state::State;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_worker::device::Precision;
use tally_worker::engine::apply_whole;
use tally_worker::engine::host_replica::HostReplica;

use super::Options;
use super::golden::{GOLDEN, losses_by_name, numbers, samples, settle, weights};

/// How far a device is from PyTorch's double precision: the default kernels with either label loss, their variants with the first.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Golden {
    /// In what it was computed.
    pub precision: String,
    /// The largest error of an answer; answers are of size 0.1.
    pub answers: f64,
    /// The largest relative error of a part of the loss.
    pub losses: f64,
    /// The largest relative error of a tensor's gradient's norm.
    pub norms: f64,
    /// What each of them may be, in this order.
    pub tolerance: [f64; 3],
    /// The variant of the kernels.
    pub variant: String,
    /// A digest of the gradients with the first label loss, to compare variants that must have the same bits.
    pub bits: String,
}

/// What rounding may cost. float32 alone costs some 1e-7 an answer and 1e-6 a norm. TF32 keeps 11
/// bits of a factor (2⁻¹¹ = 5e-4), bf16 eight (2⁻⁸ = 4e-3); sums of many are nearer, but a
/// ReLU that opens or shuts by it moves a norm by more.
fn tolerance(precision: Precision) -> [f64; 3] {
    match precision {
        Precision::F32 => [1e-6, 1e-6, 1e-5],
        Precision::Tf32 => [2e-3, 2e-3, 3e-2],
        Precision::Bf16 => [2e-2, 2e-2, 1e-1],
    }
}

/// Holds answers, losses and gradients of 16 samples to the golden values.
///
/// # Errors
/// If the device fails, or is farther off than its rounding may cost.
pub fn golden(options: &Options, precision: Precision) -> anyhow::Result<Golden> {
    let tolerance = tolerance(precision);
    let mut worst = [0f64; 3];
    let mut keep = |at: usize, error: f64| {
        worst[at] = if error > worst[at] || error.is_nan() { error } else { worst[at] }
    };
    let mut bits = Digest::default();
    let leaf = samples(0, 16);
    let variant = options.variant();
    // No variant touches the kernels in which the label losses differ.
    let losses = if variant == "default" { 2 } else { 1 };
    for (index, (name, loss)) in losses_by_name().into_iter().take(losses).enumerate() {
        let mut engine = options.unchecked_engine(precision, loss)?;
        let manifest = engine.manifest().clone();
        let mut parameters = weights(&manifest);
        engine.load(State::new(parameters.clone(), &manifest, 1));
        let answers = engine.predict(&leaf)?;
        let forward = &GOLDEN["forward"];
        let golden: Vec<f64> = (0..leaf.len()).flat_map(|i| numbers(&forward["logits"][i])).collect();
        let golden = [golden, numbers(&forward["sum"]), numbers(&forward["difference"])].concat();
        let own = answers.logits.iter().flatten().chain(&answers.sums).chain(&answers.differences);
        own.zip(&golden).for_each(|(own, golden)| keep(0, (f64::from(*own) - golden).abs()));

        settle(&manifest, &mut parameters);
        engine.load(State::new(parameters.clone(), &manifest, 1));
        let mut gradient = vec![f32::NAN; manifest.len()];
        let losses = engine.gradient(&leaf, 1.0 / 16.0, &mut gradient, &mut |_| ())?;
        let losses = Sums::from(losses).scaled(1.0 / 16.0);
        if index == 0 {
            bits = digest::of(0, &gradient, &[&gradient]);
        }
        let golden = &GOLDEN[name];
        for (part, own) in ["label", "sum", "difference"].into_iter().zip(losses.0) {
            let of = golden["loss"][part].as_f64().unwrap_or(f64::NAN);
            keep(1, (own - of).abs() / of.abs().max(1.0));
        }
        for (index, tensor) in manifest.tensors().iter().enumerate() {
            let squares = gradient[manifest.range(index)].iter().map(|&g| f64::from(g) * f64::from(g));
            let of = golden["gradient"][&tensor.name]["l2"].as_f64().unwrap_or(f64::NAN);
            keep(2, (squares.sum::<f64>().sqrt() / of - 1.0).abs());
        }
    }
    let [answers, losses, norms] = worst;
    ensure!(
        worst.iter().zip(tolerance).all(|(error, most)| *error <= most),
        "answers, losses and norms are off by {worst:?}, allowed are {tolerance:?}"
    );
    let precision = precision.to_string();
    Ok(Golden { precision, answers, losses, norms, tolerance, variant, bits: bits.to_string() })
}

/// Whether a device rounds the update as the coordinator does (**REP-1**).
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Updates {
    /// In what the gradients were computed.
    pub precision: String,
    /// Steps after which the digests were equal.
    pub steps: usize,
}

/// Takes a few steps, on the device and beside it on the host.
///
/// # Errors
/// If the device fails, or its bits differ.
pub fn update(options: &Options, precision: Precision) -> anyhow::Result<Updates> {
    let steps = 3;
    let (mut engine, parameters) = ready(options, precision)?;
    let manifest = engine.manifest().clone();
    let mut gradient = vec![0.0; parameters.len()];
    let mut host = HostReplica::default();
    host.load(State::new(parameters, &manifest, 1));
    for step in 0..steps {
        engine.gradient(&samples(16 * step, 16 * step + 16), 1.0 / 16.0, &mut gradient, &mut |_| ())?;
        let update = Update::sgd(0.0371, 0.9, 0.7312);
        let (on_device, on_host) =
            (apply(engine.as_mut(), &update, &gradient)?, host.apply(&update, 0, &gradient));
        host.commit();
        ensure!(
            on_device == on_host,
            "after step {step} the device has digest {on_device}, the host {on_host}"
        );
        ensure!(engine.state()? == *host.state(), "a digest hides a difference");
    }
    Ok(Updates { precision: precision.to_string(), steps })
}

/// Applies a whole gradient, chunk by chunk as it comes, and commits it.
pub(super) fn apply(
    engine: &mut dyn DigitEngine,
    update: &Update,
    gradient: &[f32],
) -> anyhow::Result<Digest> {
    let digest = apply_whole(engine, update, gradient)?;
    engine.commit();
    Ok(digest)
}

/// An engine with initial parameters, and these.
pub(super) fn ready(
    options: &Options,
    precision: Precision,
) -> anyhow::Result<(Box<dyn DigitEngine>, Vec<f32>)> {
    let mut engine = options.engine(precision, LabelLoss::default())?;
    let parameters = init::parameters(engine.manifest(), 1);
    let state = State::new(parameters.clone(), engine.manifest(), 1);
    engine.load(state);
    Ok((engine, parameters))
}

/// Whether a repeated gradient has the same bits (**SUM-1**, for one model of GPU).
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Repetition {
    /// In what it was computed.
    pub precision: String,
    /// How often each was computed.
    pub repeats: usize,
    /// For each size of a leaf: the size, and how many of the repetitions had other bits.
    pub different: Vec<(usize, usize)>,
    /// Whether leaves summed on the device have the bits of leaves that the host sums.
    pub subtree_is_its_leaves: bool,
}

/// Repeats gradients, with one engine and another, and sums a subtree in both ways.
///
/// # Errors
/// If the device fails. Bits that differ are a finding, and in the report.
pub fn repetition(options: &Options, precision: Precision) -> anyhow::Result<Repetition> {
    let (mut one, _) = ready(options, precision)?;
    let (mut two, _) = ready(options, precision)?;
    let [mut first, mut again] = [(); 2].map(|()| vec![0.0; one.manifest().len()]);
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    let mut different = Vec::new();
    // Leaves of a cluster, and one of the largest batch: of several pieces, if it is large.
    let mut sizes: Vec<usize> = options.batches.iter().map(|batch| (batch / 8).max(1)).collect();
    sizes.extend(options.batches.iter().max());
    for size in sizes {
        let leaf = samples(0, size);
        one.gradient(&leaf, 1.0, &mut first, &mut |_| ())?;
        let mut others = 0;
        for repeat in 0..options.repeats {
            let engine = if repeat % 2 == 0 { &mut two } else { &mut one };
            engine.gradient(&leaf, 1.0, &mut again, &mut |_| ())?;
            others += usize::from(!same(&first, &again));
        }
        different.push((size, others));
    }
    // A subtree of four leaves, of which one is empty.
    let [left, right, none, last] = [samples(0, 8), samples(8, 16), Samples::default(), samples(16, 24)];
    let mut subtree_is_its_leaves = true;
    for rounding in [WireDtype::F32, WireDtype::Bf16] {
        one.node_gradient(&[&left, &right, &none, &last], 1.0, rounding, &mut first, &mut |_| ())?;
        one.gradient(&left, 1.0, &mut again, &mut |_| ())?;
        rounding.round(&mut again);
        let mut sum = again.clone();
        for leaf in [&right, &last] {
            two.gradient(leaf, 1.0, &mut again, &mut |_| ())?;
            rounding.round(&mut again);
            rounding.add(&mut sum, &again);
        }
        subtree_is_its_leaves &= same(&first, &sum);
    }
    Ok(Repetition {
        precision: precision.to_string(),
        repeats: options.repeats,
        different,
        subtree_is_its_leaves,
    })
}
