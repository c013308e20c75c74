//! The command line: options, and the small commands beside training.

pub mod health;
pub mod options;
pub mod plan;
pub mod report;
pub mod samples;
pub mod schedule;
pub mod status;
pub mod verify;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use tally_worker::engine::backend::BackendChoice;
use tally_worker::engine::burn::Precision;
use tally_worker::logging::LogOptions;

use crate::access::options::AccessOptions;
use options::Training;

/// Trains one network on many machines, with the same bits however many there are.
///
/// Waits for workers, deals them samples, sums their gradients every step and hands the
/// sum back. `coordinator --workers 4` needs four times `worker --connect HOST:50051`;
/// with --local it needs nothing else.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Train (the default), or one of these
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What `coordinator` alone does: train.
    #[command(flatten)]
    pub train: TrainOptions,
}

/// The commands beside training.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say whether the coordinator on this machine is well, by the exit code: for container engines
    Health(health::HealthOptions),
    /// Say what a cluster would do, before there is one: a step's time, its parts, what limits it
    Plan(Box<plan::PlanOptions>),
    /// Write what became of a run as a page, or compare two
    Report(report::ReportOptions),
    /// Draw samples of the data, with a network's answers if there is one
    Samples(samples::SamplesOptions),
    /// Print an epoch's order and random numbers, a line of JSON a step
    Schedule(schedule::ScheduleOptions),
    /// Show what a running cluster is doing
    Status(status::StatusOptions),
    /// Compute steps of a run again, and compare them with its journal
    Verify(verify::VerifyOptions),
}

/// Options of a training run.
#[derive(Debug, Args)]
pub struct TrainOptions {
    /// Workers to wait for before a new run starts; later ones may join at any time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Cluster")]
    pub workers: u32,

    /// Run the workers in this process, dividing the cores among them
    #[arg(long, help_heading = "Cluster")]
    pub local: bool,

    /// What local workers compute with
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto, requires = "local", help_heading = "Cluster")]
    pub backend: BackendChoice,

    /// What local workers on a GPU compute the network in
    #[arg(long, value_enum, default_value_t = Precision::default(), requires = "local", help_heading = "Cluster")]
    pub precision: Precision,

    /// Threads of each local worker [default: its share of the cores]
    #[arg(long, value_name = "N", requires = "local", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Cluster")]
    pub threads: Option<u32>,

    /// Where workers connect to; port 0 takes a free one [default: 0.0.0.0:50051, with --local
    /// 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESS", help_heading = "Cluster")]
    pub listen: Option<SocketAddr>,

    /// Where metrics are served; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000", help_heading = "Cluster")]
    pub http_listen: SocketAddr,

    /// Write what the coordinator and each worker do when to this file, for Perfetto or
    /// chrome://tracing; what is in it is replaced
    #[arg(long, value_name = "FILE", conflicts_with = "no_timeline", help_heading = "Run directory")]
    pub trace: Option<PathBuf>,

    /// When the run is done, keep serving its page and metrics until a signal comes
    #[arg(long, help_heading = "Cluster")]
    pub linger: bool,

    /// Don't have workers tell what they do when: lanes, and what metrics make of them, stay empty
    #[arg(long, help_heading = "Cluster")]
    pub no_timeline: bool,

    /// Options that decide what is trained.
    #[command(flatten)]
    pub training: Training,

    /// A new directory for the run [default: the next runs/run-NNNN]
    #[arg(long, value_name = "DIR", conflicts_with = "resume", help_heading = "Run directory")]
    pub run_dir: Option<PathBuf>,

    /// Go on with a stopped run. --workers, --local, --backend, --threads, the addresses,
    /// --checkpoint-every, --keep-checkpoints, --audit-rate and --tensorboard may change, and --epochs under
    /// --lr-schedule constant; what else is given must be as it was
    #[arg(long, value_name = "RUN_DIR", help_heading = "Run directory")]
    pub resume: Option<PathBuf>,

    /// For a supervisor that starts the same command again and again (Kubernetes, systemd, Slurm):
    /// go on with the run in --run-dir, if there is one already; and when stopped before the
    /// run's end, exit with code 75 instead of 0
    #[arg(long, requires = "run_dir", help_heading = "Run directory")]
    pub supervised: bool,

    /// In this share of the steps, 0 to 1, a second worker computes what another contributes,
    /// and the bits are compared [default: 0]
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = "Cluster")]
    pub audit_rate: Option<f64>,

    /// Checkpoint after every so many steps, beside those at the ends of epochs and at a stop
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Run directory")]
    pub checkpoint_every: Option<u64>,

    /// Newest checkpoints to keep, beside the best [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Run directory")]
    pub keep_checkpoints: Option<u32>,

    /// Also write losses, rates, times and accuracies as TensorBoard's event files
    #[arg(long, value_name = "DIR", help_heading = "Run directory")]
    pub tensorboard: Option<PathBuf>,

    /// Who may do what.
    #[command(flatten)]
    pub access: AccessOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,
}

impl TrainOptions {
    /// The run to go on with: that of --resume, or with --supervised the one that is there.
    #[must_use]
    pub fn earlier_run(&self) -> Option<&Path> {
        let there = |dir: &&PathBuf| self.supervised && dir.join("run.json").exists();
        self.resume.as_ref().or_else(|| self.run_dir.as_ref().filter(there)).map(PathBuf::as_path)
    }
}

/// A share, from 0 to 1.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.0..=1.0).contains(rate));
    rate.ok_or_else(|| "a rate is a number from 0 to 1".into())
}
