//! What `gpu-check` finds out about a device: whether it computes what it must, and how fast.
//!
//! [`correct`] holds it to the golden values, to the update's rounding and to its own repetition;
//! [`speed`] times a step; [`cluster`] has several workers share it; [`report`] is what is printed. Whatever fails is
//! written down and the rest goes on, so that one run on a borrowed machine tells all it can.

pub mod cluster;
pub mod correct;
#[path = "../../../mnist/tests/support/golden.rs"]
#[allow(missing_docs)]
mod golden;
pub mod report;
pub mod speed;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tally_mnist::network::{DigitEngine, backend};
use tally_mnist::{LabelLoss, ModelSpec};
use tally_worker::device::{BackendChoice, DeviceOptions, Precision};
use tally_worker::engine::EngineError;

use self::report::Report;

/// What there is to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Answers, losses and gradients beside the golden values
    Golden,
    /// Updates beside the host's
    Update,
    /// Whether a repeated gradient has the same bits, and a subtree its leaves'
    Repetition,
    /// How long a step takes
    Steps,
    /// How long it takes in a cluster
    Cluster,
}

/// Check and measure a device: golden values, determinism, step times, the all-reduce, memory.
///
/// Prints a table, and as the last line one JSON object. Exits with 0 if all is as it must be, 1 if something
/// is not, and 3 if the device can't be had. (Called as `gpu-check coordinator …` or `gpu-check
/// worker …` it is those programs.)
#[derive(Clone, Debug, Parser)]
#[command(name = "gpu-check", version, max_term_width = 100)]
pub struct Options {
    /// What to check
    #[arg(long, value_enum, default_value_t = BackendChoice::Cuda)]
    pub backend: BackendChoice,

    /// Which CUDA device, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device: usize,

    /// What to compute in, each in turn [default: f32,tf32,bf16 on a GPU, else f32]
    #[arg(long, value_delimiter = ',', value_name = "PRECISIONS")]
    pub precisions: Vec<Precision>,

    /// What to find out
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::value_variants().to_vec(), value_name = "PARTS", hide_default_value = true)]
    pub only: Vec<Part>,

    /// Sizes of the batch for step times
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1024, 4096], value_name = "SIZES")]
    pub batches: Vec<usize>,

    /// Steps of each size that are timed, after a few that are not
    #[arg(long, default_value_t = 20)]
    pub steps: usize,

    /// How often a gradient is repeated and compared
    #[arg(long, default_value_t = 20)]
    pub repeats: usize,

    /// Numbers of workers that share the device
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4], value_name = "NUMBERS")]
    pub workers: Vec<usize>,

    /// The cluster's batch
    #[arg(long, default_value_t = 1024)]
    pub cluster_batch: usize,

    /// A Python with PyTorch, and the script beside it that is timed there
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: PathBuf,

    /// The script; without it PyTorch is left out
    #[arg(long, value_name = "PATH")]
    pub peer: Option<PathBuf>,
}

impl Options {
    /// The precisions that are checked.
    #[must_use]
    pub fn precisions(&self) -> Vec<Precision> {
        match (self.precisions.as_slice(), self.is_gpu()) {
            ([], true) => Precision::value_variants().to_vec(),
            ([], false) => vec![Precision::F32],
            (some, _) => some.to_vec(),
        }
    }

    /// What is asked for, and nothing in its place.
    #[must_use]
    pub fn exactly(&self) -> BackendChoice {
        match self.backend {
            BackendChoice::Cuda => BackendChoice::CudaTally,
            other => other,
        }
    }

    /// Whether it is an NVIDIA GPU.
    #[must_use]
    pub fn is_gpu(&self) -> bool {
        matches!(self.exactly(), BackendChoice::CudaTally | BackendChoice::CudaBurn)
    }

    /// Whose kernels compute.
    #[must_use]
    pub fn kernels(&self) -> &'static str {
        match self.backend {
            BackendChoice::CudaBurn | BackendChoice::CpuAsGpu => "burn",
            _ => "tally",
        }
    }

    /// The same with Burn's kernels, if they are in this program and have this precision.
    #[must_use]
    pub fn with_burn(&self, precision: Precision) -> Option<Self> {
        let there = cfg!(feature = "cuda")
            && self.exactly() == BackendChoice::CudaTally
            && precision != Precision::F32;
        there.then(|| Self { backend: BackendChoice::CudaBurn, ..self.clone() })
    }

    /// An engine for the reference network on the device.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn engine(&self, precision: Precision, loss: LabelLoss) -> Result<Box<dyn DigitEngine>, EngineError> {
        let device = DeviceOptions { backend: self.exactly(), device: self.device, precision, threads: None };
        backend::network(&ModelSpec::Reference, loss, &device)
    }
}

/// Does it all and prints it.
#[allow(clippy::print_stdout, clippy::print_stderr)]
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let first = options.precisions()[0];
    let device = match options.engine(first, LabelLoss::default()) {
        Ok(engine) => engine.device_name().replace(&format!(", {first}"), ""),
        Err(error @ EngineError::Unavailable(_)) => {
            eprintln!("error: {error}");
            return ExitCode::from(3);
        }
        // It will be said of each part.
        Err(_) => format!("device {}", options.device),
    };
    let mut report = Report::new(&device);
    for precision in options.precisions() {
        let begin = |part: Part, words: &str| {
            let wanted = options.only.contains(&part);
            if wanted {
                eprintln!("{device}, {precision}: {words}");
            }
            wanted
        };
        if begin(Part::Golden, "golden values") {
            report.note(precision, "golden values", correct::golden(options, precision), |r| &mut r.golden);
        }
        if begin(Part::Update, "update") {
            report.note(precision, "update", correct::update(options, precision), |r| &mut r.updates);
        }
        if begin(Part::Repetition, "repetition") {
            report.note(precision, "repetition", correct::repetition(options, precision), |r| {
                &mut r.repetition
            });
        }
        for &batch in &options.batches {
            if !begin(Part::Steps, &format!("steps of {batch}")) {
                continue;
            }
            report.note(precision, "step times", speed::steps(options, precision, batch), |r| &mut r.steps);
            if let Some(burn) = options.with_burn(precision) {
                match speed::steps(&burn, precision, batch) {
                    // It needs more to run, and is there to be compared.
                    Err(error) => eprintln!("left out: Burn's kernels: {error:#}"),
                    steps => report.note(precision, "step times", steps, |r| &mut r.steps),
                }
            }
            if let Some(script) = &options.peer {
                let steps = speed::pytorch(options, script, precision, batch);
                report.note(precision, "PyTorch", steps, |r| &mut r.pytorch);
            }
        }
        for &workers in &options.workers {
            if begin(Part::Cluster, &format!("a cluster of {workers}")) {
                report.note(precision, "cluster", cluster::run(options, precision, workers), |r| {
                    &mut r.clusters
                });
            }
        }
    }
    report.gpu = speed::gpu();
    println!("{report}");
    match serde_json::to_string(&report) {
        Ok(json) => println!("{json}"),
        Err(error) => eprintln!("error: no JSON: {error}"),
    }
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
