//! How long a step takes on a device, here and in PyTorch.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use tally_numerics::update::Update;
use tally_worker::device::Precision;
use tally_worker::devices::visible;

use super::Options;
use super::correct::{apply, ready};
use super::golden::samples;
use crate::statistics::median;

/// Steps before those that are timed: kernels are compiled and chosen in the first.
const UNTIMED: usize = 5;

/// A step of one worker, without a network between.
#[derive(Clone, Debug, Serialize)]
pub struct Steps {
    /// With whose kernels: "tally" or "burn".
    pub kernels: &'static str,
    /// In what it was computed.
    pub precision: String,
    /// Samples, in one leaf.
    pub batch: usize,
    /// The median step: samples there, gradient, read back; sum uploaded, update, digest.
    pub step_ms: f64,
    /// The part of it up to the gradient on the host.
    pub gradient_ms: f64,
    /// The rest.
    pub update_ms: f64,
    /// The quickest step.
    pub least_ms: f64,
    /// The first step, with the choosing and compiling of kernels.
    pub first_ms: f64,
    /// At the median.
    pub samples_per_second: f64,
}

/// Times steps with a batch as one leaf, its samples uploaded ahead as a session does it.
///
/// # Errors
/// If the device fails.
pub fn steps(options: &Options, precision: Precision, batch: usize) -> anyhow::Result<Steps> {
    let (mut engine, parameters) = ready(options, precision)?;
    let leaf = samples(0, batch);
    let mut gradient = vec![0.0; parameters.len()];
    let update = Update { learning_rate: 1e-4, momentum: 0.9, clip: 1.0 };
    let (mut whole, mut first_part) = (Vec::new(), Vec::new());
    for _ in 0..options.steps + UNTIMED {
        engine.prefetch(&leaf);
        let start = Instant::now();
        engine.gradient(&leaf, 1.0 / batch as f32, &mut gradient, &mut |_| ())?;
        first_part.push(start.elapsed().as_secs_f64() * 1e3);
        apply(engine.as_mut(), update, &gradient)?;
        whole.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let first_ms = whole[0];
    let step_ms = median(whole[UNTIMED..].iter().copied());
    let gradient_ms = median(first_part[UNTIMED..].iter().copied());
    let least_ms = whole[UNTIMED..].iter().copied().fold(f64::INFINITY, f64::min);
    let precision = precision.to_string();
    let samples_per_second = batch as f64 / step_ms * 1e3;
    let update_ms = step_ms - gradient_ms;
    let kernels = options.kernels();
    Ok(Steps {
        kernels,
        precision,
        batch,
        step_ms,
        gradient_ms,
        update_ms,
        least_ms,
        first_ms,
        samples_per_second,
    })
}

/// The same in PyTorch.
#[derive(Clone, Debug, Serialize)]
pub struct Pytorch {
    /// PyTorch's name for what it computed in.
    pub precision: &'static str,
    /// Samples.
    pub batch: usize,
    /// The median step: forward, backward, SGD.
    pub step_ms: f64,
    /// Whether that was with the channels last in memory.
    pub channels_last: bool,
}

/// Runs the script, in the same precision, with images in either layout; the quicker counts.
///
/// # Errors
/// If that fails.
pub fn pytorch(
    options: &Options,
    script: &Path,
    precision: Precision,
    batch: usize,
) -> anyhow::Result<Pytorch> {
    let precision = match precision {
        Precision::F32 => "fp32",
        Precision::Tf32 => "tf32",
        Precision::Bf16 => "bf16",
    };
    let device = if options.is_gpu() { "cuda" } else { "cpu" };
    let step = |channels_last: bool| {
        let mut command = Command::new(&options.python);
        command.arg(script).args(["step", "--device", device, "--precision", precision]);
        command.args(["--batch", &batch.to_string(), "--steps", &options.steps.to_string()]);
        command.args(channels_last.then_some("--channels-last"));
        let seen = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        command.env("CUDA_VISIBLE_DEVICES", visible(options.device, seen.as_deref()));
        let output = command.output().with_context(|| format!("cannot run {}", options.python.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        said.as_ref().and_then(|said| said["median_ms"].as_f64()).with_context(|| {
            let why = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("nothing").to_owned();
            format!("{} said no time: {why}", script.display())
        })
    };
    let (plain, channels_last) = (step(false)?, step(true)?);
    Ok(Pytorch { precision, batch, step_ms: plain.min(channels_last), channels_last: channels_last < plain })
}

/// What nvidia-smi says of the GPUs, a line each: name, driver, memory used and there is.
#[must_use]
pub fn gpu() -> Vec<String> {
    let query = "--query-gpu=name,driver_version,memory.used,memory.total,clocks.sm,power.draw";
    let output = Command::new("nvidia-smi").args([query, "--format=csv,noheader"]).output();
    let text = output.ok().filter(|output| output.status.success());
    let text = text.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
