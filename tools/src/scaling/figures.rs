//! What many workers cost a coordinator, and how soon a local run takes its first step.

use std::time::Instant;

use tally_mnist::network::backend;
use tally_mnist::{LabelLoss, Mnist, MnistWithNumbers, ModelSpec};
use tally_numerics::CHUNK;
use tally_numerics::wire::WireDtype;
use tally_proto::convert::Microbatch;
use tally_worker::device::{BackendChoice, DeviceOptions};

use super::calibrate::LARGE;
use super::cases::MEBI;
use super::measure::{Case, Measured, measure};
use crate::cluster::{Coordinator, RunDir, Signal};
use crate::statistics::median;

/// The clusters of issue 6, by what they are.
#[must_use]
pub fn clusters() -> [(&'static str, Case); 2] {
    let case = |workers: usize, parameters: usize, micros: u64, batch_size| Case {
        workers,
        model: format!("synthetic:parameters={parameters},us-per-sample={micros}"),
        batch_size,
        microbatches: workers as u32,
        wire_dtype: WireDtype::F32,
        link: None,
    };
    [
        ("256 workers, 1 MiB of gradient", case(256, MEBI, 100_000, 512)),
        ("16 workers, the reference network's size", case(16, LARGE, 100_000, 64)),
    ]
}

/// Measures one and says what it found.
///
/// # Errors
/// As [`measure`].
pub fn figure(what: &str, case: &Case) -> anyhow::Result<String> {
    let Measured { step, compute, cpu, memory, .. } = measure(case)?;
    let coordinator = cpu.coordinators();
    let workers = cpu.workers + cpu.computing;
    let count = case.workers as f64;
    Ok(format!(
        "{what}: step {:.1} ms, {:.1} over its computing; coordinator {:.0} MiB, {:.1} ms of CPU a step, {:.2} for each \
         worker, {:.1} of it the driver's; all workers {:.1} ms of CPU a step, on the same cores",
        step * 1e3,
        (step - compute) * 1e3,
        memory / f64::from(1 << 20),
        coordinator * 1e3,
        coordinator / count * 1e3,
        cpu.driver * 1e3,
        workers * 1e3
    ))
}

/// Seconds from the start of a local run of this model to its first committed step: the median of `times`.
#[must_use]
pub fn first_step(model: &str, times: usize) -> f64 {
    let seconds = (0..times).map(|_| {
        let run = RunDir::new();
        let options = ["--local", "--workers", "2", "--backend", "cpu", "--threads", "1", "--model", model];
        let started = Instant::now();
        let coordinator = Coordinator::start([&options[..], &["--run-dir", run.arg()]].concat());
        run.wait_for_step(1);
        let seconds = started.elapsed().as_secs_f64();
        coordinator.signal(Signal::INT);
        coordinator.succeed();
        seconds
    });
    median(seconds)
}

/// The share of the reference network's computing of four leaves of eight samples after which the first chunk of
/// their gradient is ready: the median of `times`.
///
/// # Errors
/// If there are no samples or there is no engine.
pub fn first_chunk(times: usize) -> anyhow::Result<f64> {
    let train = MnistWithNumbers::train(Mnist::embedded()?.train, 1);
    let leaves = (0..4).map(|leaf| train.microbatch(8 * leaf..8 * leaf + 8));
    let leaves: Vec<Microbatch> = leaves.collect();
    let leaves: Vec<&Microbatch> = leaves.iter().collect();
    let device = DeviceOptions { backend: BackendChoice::Cpu, threads: Some(1), ..DeviceOptions::default() };
    let mut engine = backend::engine(&ModelSpec::Reference, LabelLoss::CrossEntropy, &device)?;
    let mut out = vec![0.0; engine.manifest().len()];
    let mut shares = Vec::new();
    for _ in 0..times {
        let started = Instant::now();
        let mut first = None;
        let mut ready = |prefix: &[f32]| {
            if prefix.len() >= CHUNK {
                first.get_or_insert_with(|| started.elapsed());
            }
        };
        engine.node_gradient(&leaves, 1.0 / 64.0, WireDtype::F32, &mut out, &mut ready)?;
        let whole = started.elapsed();
        shares.push(first.unwrap_or(whole).as_secs_f64() / whole.as_secs_f64());
    }
    Ok(median(shares))
}
