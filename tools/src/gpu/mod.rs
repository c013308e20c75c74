//! What `gpu-check` finds out about a device: whether it computes what it must, and how fast.
//!
//! [`correct`] holds it to the golden values, to the update's rounding and to its own repetition;
//! [`speed`] times a step; [`cluster`] has several workers share it. [`parts`] runs each of these parts in a process of its own
//! with a deadline, so that a kernel that crashes or never ends spoils only its part. [`report`] prints each finding at
//! once as a line of JSON, and failures on the error stream too. So a run on a borrowed machine that is cut short has printed all
//! that it knew.

pub mod cluster;
pub mod correct;
#[path = "../../../mnist/tests/support/golden.rs"]
#[allow(missing_docs)]
mod golden;
pub mod parts;
pub mod report;
pub mod speed;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tally_mnist::network::gpu::GpuEngine;
use tally_mnist::network::gpu::layers::Variant;
use tally_mnist::network::gpu::program::Sources;
use tally_mnist::network::{DigitEngine, backend};
use tally_mnist::{LabelLoss, ModelSpec};
use tally_worker::device::{BackendChoice, DeviceOptions, Precision};
use tally_worker::engine::EngineError;

use self::report::Findings;

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
    /// How long a step takes in PyTorch
    Pytorch,
    /// How long it takes in a cluster
    Cluster,
    /// One step for a profiler, which the program starts
    Profile,
}

impl Part {
    /// The part's name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// All parts but the profile, which is of use only under a profiler.
    fn usual() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|part| *part != Self::Profile).collect()
    }
}

/// Check and measure a device: golden values, determinism, step times, the all-reduce, memory.
///
/// Prints each finding at once as a line of JSON, and at the end one line with all of them. A table and the failures go to the
/// error stream. Exits with 0 if all is as it must be, 1 if something
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

    /// What to find out [default: all but profile]
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::usual(), value_name = "PARTS", hide_default_value = true)]
    pub only: Vec<Part>,

    /// Seconds for each part
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub deadline: u64,

    /// Seconds for all parts together. Parts for which none are left are failures [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    pub within: Option<u64>,

    /// Sizes of the batch for step times
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1024, 4096], value_name = "SIZES")]
    pub batches: Vec<usize>,

    /// Steps of each size that are timed, after some untimed ones
    #[arg(long, default_value_t = 200)]
    pub steps: usize,

    /// How often a gradient is repeated and compared
    #[arg(long, default_value_t = 20)]
    pub repeats: usize,

    /// Variants of the kernels for golden values, repetition, steps and the profile, such as "default streams half,wide". Several
    /// are compared
    #[arg(long, value_delimiter = ' ', default_value = "default", value_name = "VARIANTS")]
    pub variants: Vec<String>,

    /// Numbers of workers that share the device
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4], value_name = "NUMBERS")]
    pub workers: Vec<usize>,

    /// The cluster's batch
    #[arg(long, default_value_t = 1024)]
    pub cluster_batch: usize,

    /// Where the logs of clusters stay [default: a temporary directory, which stays if a cluster fails]
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,

    /// A Python with PyTorch, and the script beside it that is timed there
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: PathBuf,

    /// The script; without it PyTorch is left out
    #[arg(long, value_name = "PATH")]
    pub peer: Option<PathBuf>,

    /// Ways in which PyTorch does a step: eager, graph, compile
    #[arg(long, value_delimiter = ',', default_value = "eager,graph", value_name = "WAYS")]
    pub ways: Vec<String>,

    /// Write the kernels' sources to a directory and do nothing else. TALLY_KERNELS can name the directory later
    #[arg(long, value_name = "DIR")]
    pub sources: Option<PathBuf>,

    /// Compare the findings in this file, a line of JSON each, and do nothing else
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,

    /// Do the parts in this process
    #[arg(long, hide = true)]
    pub here: bool,

    /// End with the process that started this one
    #[arg(long, hide = true)]
    pub end_with_parent: bool,
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

    /// The kernels' variant in this process.
    #[must_use]
    pub fn variant(&self) -> String {
        std::env::var(Variant::VARIABLE).unwrap_or_else(|_| "default".into())
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

    /// The same engine, but not held to the CPU first: what it computes wrong can then be told in full.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn unchecked_engine(
        &self,
        precision: Precision,
        loss: LabelLoss,
    ) -> Result<Box<dyn DigitEngine>, EngineError> {
        match self.exactly() {
            BackendChoice::CudaTally => Ok(Box::new(GpuEngine::new(loss, precision, self.device)?)),
            _ => self.engine(precision, loss),
        }
    }

    /// The same engine by its own type, which can measure itself. Only a GPU with Tally's kernels has it.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn gpu_engine(&self, precision: Precision) -> Result<GpuEngine, EngineError> {
        GpuEngine::checked(LabelLoss::default(), precision, self.device)
    }
}

/// Does it all and prints it.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    if let Some(folder) = &options.sources {
        return parts::exit_code(
            Sources::write(folder).map_err(|error| format!("{}: {error}", folder.display())),
        );
    }
    if let Some(file) = &options.compare {
        return parts::compare(file);
    }
    if options.here { here(options) } else { parts::run(options) }
}

/// Does the parts in this process.
fn here(options: &Options) -> ExitCode {
    if options.end_with_parent {
        parts::end_with_parent();
    }
    // A little later than whoever watches this process.
    parts::end_after(options.deadline + 1);
    let first = options.precisions()[0];
    let mut findings = Findings::default();
    match options.engine(first, LabelLoss::default()) {
        Ok(engine) => findings.device(&engine.device_name().replace(&format!(", {first}"), "")),
        Err(error @ EngineError::Unavailable(_)) => {
            return parts::unavailable(&error);
        }
        // It will be said of each part.
        Err(_) => findings.device(&format!("device {}", options.device)),
    }
    for precision in options.precisions() {
        for part in &options.only {
            let what = format!("{precision}, {}", part.name());
            match part {
                Part::Golden => findings.note(&what, correct::golden(options, precision)),
                Part::Update => findings.note(&what, correct::update(options, precision)),
                Part::Repetition => {
                    findings.repetition(&what, correct::repetition(options, precision), options.kernels());
                }
                Part::Steps => {
                    for &batch in &options.batches {
                        findings.note(&what, speed::steps(options, precision, batch));
                        if let Some(burn) = options.with_burn(precision) {
                            match speed::steps(&burn, precision, batch) {
                                // Burn's kernels are there to be compared, and need more to run.
                                Err(error) => findings.left_out(&format!("Burn's kernels: {error:#}")),
                                steps => findings.note(&what, steps),
                            }
                        }
                    }
                }
                // The script has all precisions in one process.
                Part::Pytorch if precision == first => speed::pytorch(options, &mut findings),
                Part::Pytorch => (),
                Part::Cluster => {
                    for &workers in &options.workers {
                        findings.note(&what, cluster::run(options, precision, workers));
                    }
                }
                Part::Profile => {
                    for &batch in &options.batches {
                        findings.note(&what, speed::profile(options, precision, batch));
                    }
                }
            }
        }
    }
    findings.exit_code()
}
