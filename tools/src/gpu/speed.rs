//! How long a step takes on a device, here and in PyTorch.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tally_mnist::network::DigitEngine as _;
use tally_mnist::network::gpu::GpuEngine;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;
use tally_worker::device::Precision;
use tally_worker::devices::visible;
use tally_worker::engine::{EngineError, Replica as _, apply_whole};

use super::Options;
use super::correct::{apply, ready};
use super::golden::samples;
use super::report::{Finding, Findings};
use crate::statistics::median;

/// The least number of steps before those that are timed. Kernels are compiled and chosen in the first ones.
const UNTIMED: usize = 5;
/// The least time before the steps that are timed, because a GPU's clocks rise only under load.
const WARMING: Duration = Duration::from_millis(300);

fn sgd() -> Update {
    Update::sgd(1e-6, 0.9, 1.0)
}

/// A step of one worker, without a network between.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Steps {
    /// With whose kernels: "tally" or "burn".
    pub kernels: String,
    /// In what it was computed.
    pub precision: String,
    /// The variant of the kernels.
    pub variant: String,
    /// Samples, in one leaf.
    pub batch: usize,
    /// The median step: samples there, gradient, read back; sum uploaded, update, digest.
    pub step_ms: f64,
    /// The device's part of a step, without copies across the bus: a median by the device's own events, over other steps.
    pub device_ms: Option<f64>,
    /// The part of the step up to the gradient on the host.
    pub gradient_ms: f64,
    /// The rest.
    pub update_ms: f64,
    /// The quickest step.
    pub least_ms: f64,
    /// The first step, with the choosing and compiling of kernels.
    pub first_ms: f64,
    /// At the median.
    pub samples_per_second: f64,
    /// The number of steps that were timed.
    pub steps: usize,
}

/// Times steps with a batch as one leaf. As in a session, samples are uploaded ahead and the sum is taken as it is ready.
///
/// # Errors
/// If the device fails.
#[allow(clippy::print_stderr)]
pub fn steps(options: &Options, precision: Precision, batch: usize) -> anyhow::Result<Steps> {
    let (mut engine, parameters) = ready(options, precision)?;
    let leaf = samples(0, batch);
    let scale = 1.0 / batch as f32;
    let (mut sum, mut room) = (vec![0.0; parameters.len()], vec![0.0; parameters.len()]);
    let (mut whole, mut first_part) = (Vec::new(), Vec::new());
    let warming = Instant::now();
    let mut untimed = 0;
    while whole.len() < untimed + options.steps {
        engine.prefetch(&leaf);
        let start = Instant::now();
        let mut there = 0;
        engine.node_gradient_as_ready(&[&leaf], scale, WireDtype::F32, &mut room, &mut |sum| {
            there = sum.len()
        })?;
        first_part.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(there == sum.len(), "the whole gradient is told to be there");
        apply(engine.as_mut(), &sgd(), &sum)?;
        whole.push(start.elapsed().as_secs_f64() * 1e3);
        if whole.len() <= UNTIMED || warming.elapsed() < WARMING {
            untimed = whole.len();
        }
        if whole.len() == 1 {
            engine.gradient(&leaf, scale, &mut sum, &mut |_| ())?;
        }
    }
    drop(engine);
    let first_ms = whole[0];
    let step_ms = median(whole[untimed..].iter().copied());
    let gradient_ms = median(first_part[untimed..].iter().copied());
    let least_ms = whole[untimed..].iter().copied().fold(f64::INFINITY, f64::min);
    let device_ms = match options.kernels() == "tally" && options.is_gpu() {
        true => match on_the_device(options, precision, batch, &sum) {
            // An old driver cannot say it, and the step's time counts all the same.
            Err(error @ EngineError::Unavailable(_)) => {
                eprintln!("left out: the time on the device: {error}");
                None
            }
            measured => Some(measured?),
        },
        false => None,
    };
    Ok(Steps {
        kernels: options.kernels().to_owned(),
        precision: precision.to_string(),
        variant: options.variant(),
        batch,
        step_ms,
        device_ms,
        gradient_ms,
        update_ms: step_ms - gradient_ms,
        least_ms,
        first_ms,
        samples_per_second: batch as f64 / step_ms * 1e3,
        steps: options.steps,
    })
}

/// Milliseconds that the device computes in a step, at the median.
fn on_the_device(
    options: &Options,
    precision: Precision,
    batch: usize,
    sum: &[f32],
) -> Result<f64, EngineError> {
    let mut engine = options.gpu_engine(precision)?;
    let leaf = samples(0, batch);
    let mut room = vec![0.0; sum.len()];
    engine.device_ms()?;
    let mut times = Vec::new();
    let warming = Instant::now();
    while times.len() < options.steps.div_ceil(4) {
        engine.prefetch(&leaf);
        engine.node_gradient_as_ready(
            &[&leaf],
            1.0 / batch as f32,
            WireDtype::F32,
            &mut room,
            &mut |_| (),
        )?;
        apply_whole(&mut engine, &sgd(), sum)?;
        engine.commit();
        let time = engine.device_ms()?;
        if warming.elapsed() >= WARMING || options.steps < UNTIMED {
            times.push(time);
        }
    }
    Ok(median(times))
}

/// Takes two steps, the second one for a profiler.
///
/// # Errors
/// If the device fails.
pub fn profile(options: &Options, precision: Precision, batch: usize) -> anyhow::Result<Finding> {
    let mut engine = options.gpu_engine(precision)?;
    let leaf = samples(0, batch);
    let mut gradient = vec![0.0; engine.manifest().len()];
    let mut step = |engine: &mut GpuEngine| -> Result<(), EngineError> {
        engine.gradient(&leaf, 1.0 / batch as f32, &mut gradient, &mut |_| ())?;
        apply_whole(engine, &sgd(), &gradient)?;
        engine.commit();
        Ok(())
    };
    step(&mut engine)?;
    engine.profiled(step)?;
    Ok(Finding::Device { device: engine.device_name() })
}

/// The same in PyTorch.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Pytorch {
    /// PyTorch's name for what it computed in.
    pub precision: String,
    /// Samples.
    pub batch: usize,
    /// The way of a step: "eager", "graph" (replayed as a CUDA graph) or "compile".
    pub way: String,
    /// The median step: forward, backward, SGD. A wait for the device stands between blocks of ten.
    pub step_ms: f64,
    /// Whether that was with the channels last in memory.
    pub channels_last: bool,
}

/// Times steps in PyTorch, in one process, and prints the findings as they come.
pub fn pytorch(options: &Options, findings: &mut Findings) {
    if let Err(error) = told_by_pytorch(options, findings) {
        findings.fail("PyTorch", &format!("{error:#}"));
    }
}

fn told_by_pytorch(options: &Options, findings: &mut Findings) -> anyhow::Result<()> {
    let script = options.peer.as_deref().context("no script was named")?;
    let list = |words: Vec<String>| words.join(",");
    let precisions = options.precisions().into_iter().map(|precision| match precision {
        Precision::F32 => "fp32".to_owned(),
        Precision::Tf32 => "tf32".to_owned(),
        Precision::Bf16 => "bf16".to_owned(),
    });
    let mut command = Command::new(&options.python);
    command.arg(script).args(["steps", "--device", if options.is_gpu() { "cuda" } else { "cpu" }]);
    command.args(["--precisions", &list(precisions.collect()), "--steps", &options.steps.to_string()]);
    command.args(["--batches", &list(options.batches.iter().map(ToString::to_string).collect())]);
    command.args(["--ways", &list(options.ways.clone()), "--channels-last"]);
    let seen = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    command.env("CUDA_VISIBLE_DEVICES", visible(options.device, seen.as_deref()));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", options.python.display()))?;
    let mut told = 0;
    for line in child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()) {
        let line = line.context("PyTorch's script")?;
        match serde_json::from_str::<Value>(&line).map(|value| (serde_json::from_value(value.clone()), value))
        {
            Ok((Ok(found), _)) => {
                told += 1;
                findings.note::<Pytorch>("PyTorch", Ok(found));
            }
            // Tally does not fail if PyTorch has no such way here.
            Ok((Err(_), other)) => findings.left_out(&format!("PyTorch: {other}")),
            Err(_) => findings.left_out(&format!("PyTorch: {line}")),
        }
    }
    let status = child.wait()?;
    ensure!(status.success() && told > 0, "{} ended with {status} and told {told} times", script.display());
    Ok(())
}

/// What nvidia-smi says of the GPUs, a line each: name, driver, memory used and there is. It has three seconds: a GPU that hangs
/// may hang it too.
#[must_use]
pub fn gpu() -> Vec<String> {
    let query = "--query-gpu=name,driver_version,memory.used,memory.total,clocks.sm,power.draw";
    let output = Command::new("timeout").args(["3", "nvidia-smi", query, "--format=csv,noheader"]).output();
    let text = output.ok().filter(|output| output.status.success());
    let text = text.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
