//! The worker's command line.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::access::client::ClientAccess;
use crate::devices::Devices;
use crate::engine::backend::{self, BackendChoice};
use crate::engine::burn::Precision;
use crate::engine::{Engine, EngineError, LabelLoss, ModelSpec};
use crate::evaluate::EvaluateOptions;
use crate::logging::LogOptions;
use crate::predict::command::PredictOptions;
use crate::session::WorkerOptions;

/// Computes gradients for a Tally cluster.
///
/// Connects to a coordinator, which says what to compute and sends the samples; nothing is
/// kept on this machine. It may join late, leave (Ctrl-C) and come back.
#[derive(Debug, Parser)]
#[command(name = "worker", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Work for a coordinator (the default), or one of these
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What `worker` alone does: work.
    #[command(flatten)]
    pub work: WorkOptions,
}

/// The commands beside working.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the test line of a checkpoint
    Evaluate(EvaluateOptions),
    /// Answer pictures of digits
    Predict(PredictOptions),
}

/// What to compute with.
#[derive(Clone, Debug, Args)]
pub struct DeviceOptions {
    /// What to compute with; auto takes a CUDA device where one can work
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto, help_heading = "Device")]
    pub backend: BackendChoice,

    /// Which CUDA device, from 0
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Device")]
    pub device: usize,

    /// What a GPU computes the network in; parameters, gradients and their sums are float32 in any case
    #[arg(long, value_enum, default_value_t = Precision::default(), help_heading = "Device")]
    pub precision: Precision,

    /// Threads to compute with on a CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Device")]
    pub threads: Option<u32>,
}

impl DeviceOptions {
    /// An engine for a model on this device.
    ///
    /// # Errors
    /// As [`backend::build`].
    pub fn build(&self, model: &ModelSpec, loss: LabelLoss) -> Result<Box<dyn Engine>, EngineError> {
        backend::build_in(self.precision, model, loss, self.backend, self.device, self.threads())
    }

    /// The number of threads, asked for or there.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |t| t as usize)
    }
}

/// Options of a worker.
#[derive(Debug, Args)]
pub struct WorkOptions {
    /// The coordinator
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50051", help_heading = "Cluster")]
    pub connect: String,

    /// Give up after so many seconds without a coordinator
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Cluster")]
    pub connect_timeout: u64,

    /// Never give up: wait for a coordinator for as long as it takes, and for the next one when
    /// a run is over or was stopped
    #[arg(long, conflicts_with = "connect_timeout", help_heading = "Cluster")]
    pub stay: bool,

    /// This worker's name, for people [default: host and process number]
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub name: Option<String>,

    /// Send gradients through sockets even to a coordinator on this machine
    #[arg(long, help_heading = "Cluster")]
    pub no_shared_memory: bool,

    /// What to show the coordinator.
    #[command(flatten)]
    pub access: ClientAccess,

    /// What to compute with.
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Be several workers, a process for each of these: numbers such as 0,1,3, or all CUDA devices
    #[arg(long, value_name = "N,N…|all", conflicts_with = "device", help_heading = "Device")]
    pub devices: Option<Devices>,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

impl WorkOptions {
    /// As the session takes them.
    #[must_use]
    pub fn session(&self) -> WorkerOptions {
        let defaults = WorkerOptions::new(self.connect.clone());
        WorkerOptions {
            access: self.access.clone(),
            connect_timeout: Duration::from_secs(self.connect_timeout),
            name: self.name.clone().unwrap_or_else(|| defaults.name.clone()),
            backend: self.device.backend,
            device: self.device.device,
            precision: self.device.precision,
            threads: self.device.threads(),
            tell: true,
            stay: self.stay,
            share_memory: !self.no_shared_memory,
            ..defaults
        }
    }
}
