//! What the page is sent: the whole state once, then what is new.

use std::path::Path;

use serde::Serialize;

use super::lanes::Lane;
use super::log::Entry;
use super::series::Columns;
use super::spent::Seconds;
use crate::run::config::RunConfig;
use crate::run::journal::LossLine;

/// What does not change while the coordinator runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct About {
    /// This build's version.
    pub version: String,
    /// The run's identity.
    pub run: String,
    /// Its directory.
    pub run_dir: String,
    /// How often its coordinator has been started.
    pub incarnation: u64,
    /// The network.
    pub model: String,
    /// Its parameters.
    pub parameters: usize,
    /// Leaves of a step.
    pub shards: u32,
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

impl About {
    /// A run in `directory`, whose coordinator was started at `started` for the `incarnation`th
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
            model: config.model.to_string(),
            parameters: config.tensors.len(),
            shards: config.shards,
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

/// How far the run is.
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
    pub images_per_second: f64,
    /// Until the last step's commit, if it goes on like this.
    pub seconds_left: Option<f64>,
    /// The last step's.
    pub learning_rate: f64,
    /// The last gradient's norm before clipping.
    pub gradient_norm: f64,
    /// The newest.
    pub checkpoint: Option<CheckpointAt>,
    /// The last step's means.
    pub loss: Option<LossLine>,
}

/// A test pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Test {
    /// The step whose state was tested.
    pub step: u64,
    /// The epoch it ended.
    pub epoch: u32,
    /// Mean loss, and shares of right answers from 0 to 1.
    #[serde(flatten)]
    pub scores: crate::run::summary::TestSummary,
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
    /// Leaves of the step in flight.
    pub leaves: u32,
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
    /// Leaves it computed in place of others.
    pub takeovers: u64,
    /// How often it was late.
    pub late: u64,
}

/// For whom the others waited.
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
    /// What stays.
    #[serde(flatten)]
    pub about: About,
    /// What changes a little.
    #[serde(flatten)]
    pub moving: Moving,
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

/// What is sent with every update.
#[derive(Clone, Debug, Serialize)]
pub struct Moving {
    /// The clock of the coordinator's machine, in seconds since 1970, as all times but those of lanes.
    pub now: f64,
    /// The clock that lanes are by: it goes on evenly, whatever becomes of the machine's.
    pub lanes_now: f64,
    /// How far the run is.
    #[serde(flatten)]
    pub progress: Progress,
    /// Where the seconds went.
    pub seconds: Seconds,
    /// Whom they waited for, the slowest first.
    pub waited_for: Vec<WaitedFor>,
}

/// What is new.
#[derive(Clone, Debug, Serialize)]
pub struct Update {
    /// What changes a little.
    #[serde(flatten)]
    pub moving: Moving,
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
