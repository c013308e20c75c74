//! The messages to the page: the whole state once, then updates.

use std::path::Path;

use serde::Serialize;
use tally_numerics::schema::{Evaluation, Named, Schema};
use tally_run::config::RunConfig;

use super::lanes::Lane;
use super::log::Entry;
use super::series::Columns;
use super::time_breakdown::Seconds;

/// The part of the state that stays the same while the coordinator runs.
#[derive(Clone, Debug, Serialize)]
pub struct RunInfo {
    /// This build's version.
    pub version: String,
    /// The run's identity.
    pub run: String,
    /// Its directory.
    pub run_dir: String,
    /// How often its coordinator has been started.
    pub incarnation: u64,
    /// The program that is trained.
    pub program: String,
    /// Which of its models.
    pub model: String,
    /// The model's parameters.
    pub parameters: usize,
    /// The losses and metrics that the run measures.
    pub schema: Schema,
    /// Microbatches of a step.
    pub microbatches: u32,
    /// Samples of a step.
    pub batch_size: usize,
    /// Workers the run waits for at its start.
    pub workers_wanted: usize,
    /// Epochs of the run.
    pub epochs: u32,
    /// Steps of the run.
    pub steps: u64,
    /// When this start was, in seconds since 1970.
    pub started: f64,
    /// `run.json`.
    pub config: serde_json::Value,
}

impl RunInfo {
    /// A run of `steps` steps in `directory`, whose coordinator was started at `started` for the `incarnation`th
    /// time.
    ///
    /// # Errors
    /// If the configuration is no JSON.
    pub fn of(
        config: &RunConfig,
        directory: &Path,
        incarnation: u64,
        steps: u64,
        started: f64,
    ) -> serde_json::Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            run: config.run.clone(),
            run_dir: directory.display().to_string(),
            incarnation,
            program: config.program.name.clone(),
            model: config.program.variant.clone(),
            parameters: config.tensors.len(),
            schema: config.schema.clone(),
            microbatches: config.microbatches,
            batch_size: config.batch_size,
            workers_wanted: config.workers,
            epochs: config.epochs,
            steps,
            started,
            config: serde_json::to_value(config)?,
        })
    }
}

/// A checkpoint on disk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CheckpointAt {
    /// Its step.
    pub step: u64,
    /// When it was written, in seconds since 1970, if in this start.
    pub unix: Option<f64>,
}

/// The progress of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// waiting, recovering, training, testing, stopping or finished.
    pub phase: &'static str,
    /// How it ended, once it has: done, stopped, diverged or failed.
    pub outcome: Option<String>,
    /// The newest committed step.
    pub step: u64,
    /// Its epoch, or the one that is to begin.
    pub epoch: u32,
    /// Training samples committed.
    pub samples: u64,
    /// Of the last steps, smoothed.
    pub samples_per_second: f64,
    /// Until the last step's commit, if it goes on like this.
    pub seconds_left: Option<f64>,
    /// The last step's.
    pub learning_rate: f64,
    /// The last gradient's norm before clipping.
    pub gradient_norm: f64,
    /// The newest.
    pub checkpoint: Option<CheckpointAt>,
    /// The last step's means: `total`, then each part.
    pub loss: Option<Named>,
}

/// A test pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Test {
    /// The step whose state was tested.
    pub step: u64,
    /// The epoch it ended.
    pub epoch: u32,
    /// The mean loss, all parts together.
    pub loss: f64,
    /// The metrics that are one number.
    pub metrics: Named,
}

impl Test {
    /// What the page shows of a test pass.
    #[must_use]
    pub fn of(step: u64, epoch: u32, evaluation: &Evaluation) -> Self {
        Self {
            step,
            epoch,
            loss: evaluation.total_loss(),
            metrics: evaluation.ratios().map(|(n, x)| (n.to_owned(), x)).collect(),
        }
    }
}

/// A worker, present or gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Worker {
    /// Its session, hexadecimal.
    pub session: String,
    /// Its name.
    pub name: String,
    /// Its device in words.
    pub device: String,
    /// Threads it computes with.
    pub threads: u32,
    /// joining, loading, ready, working, spare or gone.
    pub state: &'static str,
    /// The newest step it has confirmed.
    pub step: u64,
    /// Microbatches of the step in flight.
    pub microbatches: u32,
    /// Its measured speed.
    pub seconds_per_sample: Option<f64>,
    /// Samples it has contributed.
    pub samples: u64,
    /// When it became ready.
    pub joined_unix: Option<f64>,
    /// When it was lost or left.
    pub left_unix: Option<f64>,
    /// Why.
    pub reason: Option<String>,
    /// Computing in a step, smoothed.
    pub compute_seconds: Option<f64>,
    /// Sending beyond that.
    pub send_seconds: Option<f64>,
    /// Waiting for the sum.
    pub wait_seconds: Option<f64>,
    /// Applying it.
    pub apply_seconds: Option<f64>,
    /// Microbatches it computed in place of others.
    pub takeovers: u64,
    /// How often it was late.
    pub late: u64,
}

/// A worker that the others waited for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WaitedFor {
    /// The worker.
    pub name: String,
    /// How long the mean worker waited for it, over all steps in which it was the slowest.
    pub seconds: f64,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct State {
    /// The part that stays the same.
    #[serde(flatten)]
    pub info: RunInfo,
    /// The part that every update has.
    #[serde(flatten)]
    pub live: LiveState,
    /// The curves.
    pub series: Columns,
    /// All test passes.
    pub tests: Vec<Test>,
    /// The table.
    pub workers: Vec<Worker>,
    /// The newest steps of each worker.
    pub lanes: Vec<Lane>,
    /// The newest entries.
    pub log: Vec<Entry>,
}

/// The part of the state that every update has.
#[derive(Clone, Debug, Serialize)]
pub struct LiveState {
    /// The clock of the coordinator's machine, in seconds since 1970. All times but those of lanes are by it.
    pub now: f64,
    /// The clock of the lanes, which runs evenly, even if the machine's clock is set.
    pub lanes_now: f64,
    /// The progress of the run.
    #[serde(flatten)]
    pub progress: Progress,
    /// Where the seconds went.
    pub seconds: Seconds,
    /// The workers that the others waited for, the slowest first.
    pub waited_for: Vec<WaitedFor>,
}

/// The news since an earlier state.
#[derive(Clone, Debug, Serialize)]
pub struct Update {
    /// The part that every update has.
    #[serde(flatten)]
    pub live: LiveState,
    /// Points to append.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub points: Option<Columns>,
    /// Curves that replace those before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<Columns>,
    /// The table, if it has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Vec<Worker>>,
    /// Lanes to append.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<Lane>,
    /// Tests to append.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<Test>,
    /// Entries to append.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<Entry>,
}
