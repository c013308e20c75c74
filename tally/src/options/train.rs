//! Training: where, with whom, and what is written.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tally_cli::logging::LogOptions;
use tally_coordinator::access::options::AccessOptions;
use tally_core::reduce_mode::ReduceMode;
use tally_worker::device::{BackendChoice, DeviceOptions, Precision};

use super::training::Training;
use crate::local_workers::share_of_cores;

/// Where gradients are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reduce {
    /// At the coordinator.
    Star,
    /// At the workers.
    Sharded,
    /// Where it is faster.
    Auto,
}

impl From<Reduce> for ReduceMode {
    fn from(reduce: Reduce) -> Self {
        match reduce {
            Reduce::Star => Self::Star,
            Reduce::Sharded => Self::Sharded,
            Reduce::Auto => Self::Auto,
        }
    }
}

/// Options of a training run.
#[derive(Debug, Args)]
pub struct TrainOptions<O: Args> {
    /// Workers to wait for before a new run starts; later ones may join at any time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Cluster")]
    pub workers: u32,

    /// Run the workers in this process, dividing the cores among them
    #[arg(long, help_heading = "Cluster")]
    pub local: bool,

    /// The device on which local workers compute
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto, requires = "local", help_heading = "Cluster")]
    pub backend: BackendChoice,

    /// The number format in which local workers on a GPU compute the network
    #[arg(long, value_enum, default_value_t = Precision::default(), requires = "local", help_heading = "Cluster")]
    pub precision: Precision,

    /// Threads of each local worker [default: its share of the cores]
    #[arg(long, value_name = "N", requires = "local", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Cluster")]
    pub threads: Option<u32>,

    /// Where workers connect to; port 0 takes a free one [default: 0.0.0.0:50051, with --local
    /// 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESS", help_heading = "Cluster")]
    pub listen: Option<SocketAddr>,

    /// Where the dashboard and metrics are served; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000", help_heading = "Cluster")]
    pub http_listen: SocketAddr,

    /// Write a timeline of the coordinator and of each worker to this file, for Perfetto or chrome://tracing; an
    /// existing file is replaced
    #[arg(long, value_name = "FILE", conflicts_with = "no_timeline", help_heading = "Run directory")]
    pub trace: Option<PathBuf>,

    /// When the run is done, keep serving the dashboard and metrics until a signal comes
    #[arg(long, help_heading = "Cluster")]
    pub linger: bool,

    /// Workers send no times of their work: the timeline, and the metrics made from it, stay empty
    #[arg(long, help_heading = "Cluster")]
    pub no_timeline: bool,

    /// Options that decide what is trained.
    #[command(flatten)]
    pub training: Training<O>,

    /// A new directory for the run [default: the next runs/run-NNNN]
    #[arg(long, value_name = "DIR", conflicts_with = "resume", help_heading = "Run directory")]
    pub run_dir: Option<PathBuf>,

    /// Go on with a stopped run. Options under Training, Optimizer and Data, if they are given, must be as they
    /// were, except that --epochs may change under --lr-schedule constant, and --init and --data-dir may name new
    /// paths of the same files. All other options may change
    #[arg(long, value_name = "RUN_DIR", help_heading = "Run directory")]
    pub resume: Option<PathBuf>,

    /// For a supervisor that starts the same command again and again (Kubernetes, systemd, Slurm):
    /// go on with the run in --run-dir, if there is one already; and when stopped before the
    /// run's end, exit with code 75 instead of 0
    #[arg(long, requires = "run_dir", help_heading = "Run directory")]
    pub supervised: bool,

    /// Where gradients are added up: at the coordinator (star), at the workers, which need connections to each other
    /// (sharded), or where it is faster (auto). The result has the same bits
    #[arg(long, value_enum, default_value_t = Reduce::Auto, help_heading = "Cluster")]
    pub reduce: Reduce,

    /// In this share of the steps, 0 to 1, a second worker computes what another contributes, or the coordinator adds up
    /// what a worker added up, and the bits are compared [default: 0]
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = "Cluster")]
    pub audit_rate: Option<f64>,

    /// Steps between two checkpoints, beside those at the ends of epochs and at a stop [default: only these]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Run directory")]
    pub checkpoint_every: Option<u64>,

    /// Newest checkpoints to keep, beside the best [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Run directory")]
    pub keep_checkpoints: Option<u32>,

    /// Also write losses, rates, times and metrics as TensorBoard's event files
    #[arg(long, value_name = "DIR", help_heading = "Run directory")]
    pub tensorboard: Option<PathBuf>,

    /// Who may do what.
    #[command(flatten)]
    pub access: AccessOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

impl<O: Args> TrainOptions<O> {
    /// The run to go on with: that of --resume, or with --supervised the one that is there.
    #[must_use]
    pub fn earlier_run(&self) -> Option<&Path> {
        let there = |dir: &&PathBuf| self.supervised && dir.join("run.json").exists();
        self.resume.as_ref().or_else(|| self.run_dir.as_ref().filter(there)).map(PathBuf::as_path)
    }

    /// What each of `workers` local workers computes with.
    #[must_use]
    pub fn local_device(&self, workers: usize) -> DeviceOptions {
        DeviceOptions {
            backend: self.backend,
            device: 0,
            precision: self.precision,
            threads: Some(self.threads.unwrap_or_else(|| share_of_cores(workers) as u32)),
        }
    }
}

/// A share, from 0 to 1.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.0..=1.0).contains(rate));
    rate.ok_or_else(|| "a rate is a number from 0 to 1".into())
}
