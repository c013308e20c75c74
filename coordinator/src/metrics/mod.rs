//! The metrics that Prometheus scrapes: `tally_…` with base units, and the process's own. All are announced
//! before they have a value, in `announced`; those of each worker are apart, in [`mod@workers`].

mod announced;
pub mod workers;

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use crate::core::Core;
use crate::core::events::Committed;
use crate::core::members::State;
use crate::run::config::RunConfig;
use crate::view::spent::Seconds;
use tally_worker::scores::Scores;
use workers::WorkerSeries;

/// From a millisecond to a quarter of an hour, in steps of about 2.
const SECONDS: [f64; 20] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0,
    300.0, 600.0, 900.0,
];

/// How often what was recorded is folded in.
const UPKEEP: std::time::Duration = std::time::Duration::from_secs(5);

/// What `/metrics` answers.
#[derive(Clone, Debug)]
pub struct Exporter {
    handle: PrometheusHandle,
    process: Collector,
    workers: WorkerSeries,
}

impl Exporter {
    /// The series of each worker.
    #[must_use]
    pub fn workers(&self) -> WorkerSeries {
        self.workers.clone()
    }

    /// Everything, in Prometheus's text format; `spent` is where the run's seconds went.
    #[must_use]
    pub fn render(&self, spent: &Seconds) -> String {
        self.process.collect();
        self.handle.run_upkeep();
        let mut text = self.handle.render();
        self.workers.render(&mut text, Instant::now());
        text.push_str(
            "# HELP tally_run_seconds_total Where the wall time of this start went.\n# TYPE tally_run_seconds_total counter\n",
        );
        for (part, seconds) in spent.parts() {
            text.push_str(&format!("tally_run_seconds_total{{part=\"{part}\"}} {seconds}\n"));
        }
        text
    }

    /// Folds in what was recorded, every few seconds, whether or not anyone scrapes; else the
    /// samples of histograms would pile up. Looks how much room the run directory has left, too.
    pub async fn keep_up(self, run_dir: PathBuf) {
        loop {
            self.handle.run_upkeep();
            let run_dir = run_dir.clone();
            // A file system on a network may take its time.
            let asked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&run_dir));
            if let Ok(Ok(found)) = asked.await {
                let unit = found.f_frsize as f64;
                gauge!("tally_run_dir_free_bytes").set(found.f_bavail as f64 * unit);
                gauge!("tally_run_dir_size_bytes").set(found.f_blocks as f64 * unit);
            }
            tokio::time::sleep(UPKEEP).await;
        }
    }
}

/// Makes the process's recorder, and what renders it.
///
/// # Errors
/// If another recorder is there already.
pub fn install() -> Result<Exporter, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?;
    announced::announce();
    let process = Collector::default();
    process.describe();
    Ok(Exporter { handle, process, workers: WorkerSeries::default() })
}

/// What is known before the first step, of a run whose newest checkpoint, if there is one, is of `checkpoint`.
pub fn start(config: &RunConfig, incarnation: u64, core: &Core, checkpoint: Option<(u64, SystemTime)>) {
    gauge!("tally_run_info", "run" => config.run.clone(), "model" => config.model.to_string()).set(1.0);
    gauge!("tally_incarnation").set(incarnation as f64);
    gauge!("tally_workers_wanted").set(config.workers as f64);
    let (shape, (step, _)) = (core.shape(), core.committed());
    gauge!("tally_step").set(step as f64);
    gauge!("tally_steps").set(shape.steps() as f64);
    gauge!("tally_epoch").set(f64::from(shape.schedule.position(step.max(1)).0));
    let (step, written) = checkpoint.unwrap_or((0, SystemTime::now()));
    newest_checkpoint(step, written);
}

/// A step counts.
pub fn step(step: &Committed, gradient_norm: f64, core: &Core) {
    gauge!("tally_step").set(step.step as f64);
    gauge!("tally_epoch").set(f64::from(step.epoch));
    counter!("tally_steps_total").increment(1);
    counter!("tally_samples_total").increment(step.samples as u64);
    counter!("tally_samples_lost_total").absolute(core.ledger().lost());
    counter!("tally_samples_duplicated_total").absolute(core.ledger().duplicated());
    for (part, value) in [
        ("total", step.loss.total()),
        ("label", step.loss.label),
        ("sum", step.loss.sum),
        ("difference", step.loss.difference),
    ] {
        gauge!("tally_loss", "part" => part).set(value);
    }
    gauge!("tally_gradient_norm").set(gradient_norm);
    gauge!("tally_learning_rate").set(f64::from(step.learning_rate));
    histogram!("tally_step_seconds").record(step.seconds);
    histogram!("tally_step_compute_seconds").record(step.compute_seconds);
    histogram!("tally_step_transfer_seconds").record(step.transfer_seconds);
    histogram!("tally_step_waiting_seconds").record(step.waiting_seconds);
}

/// A worker has told how long its part of a step took.
pub fn worker_times(apply: f64, round: f64) {
    histogram!("tally_worker_apply_seconds").record(apply);
    if round > 0.0 {
        histogram!("tally_worker_round_seconds").record(round);
    }
}

/// A test pass is done.
pub fn test(scores: &Scores, seconds: f64) {
    gauge!("tally_test_loss").set(scores.loss);
    for (answer, share) in [
        ("digit", scores.digit_accuracy),
        ("sum", scores.sum_accuracy),
        ("difference", scores.difference_accuracy),
        ("all", scores.all_correct),
    ] {
        gauge!("tally_test_accuracy_ratio", "answer" => answer).set(share);
    }
    histogram!("tally_test_seconds").record(seconds);
}

/// The cluster has changed.
pub fn workers(core: &Core) {
    let count = |state: State| core.members().0.values().filter(|m| m.state == state).count() as f64;
    gauge!("tally_workers", "state" => "joining").set(count(State::Joining));
    gauge!("tally_workers", "state" => "loading").set(count(State::Loading));
    gauge!("tally_workers", "state" => "ready").set(count(State::Ready));
}

/// Gradient bytes were taken from a worker.
pub fn received(bytes: usize) {
    counter!("tally_gradient_received_bytes_total").increment(bytes as u64);
}

/// Summed gradient bytes were queued for workers.
pub fn sent(bytes: usize) {
    counter!("tally_gradient_sent_bytes_total").increment(bytes as u64);
}

/// A worker is ready.
pub fn joined() {
    counter!("tally_workers_joined_total").increment(1);
}

/// A worker is gone.
pub fn lost(polite: bool) {
    counter!("tally_workers_lost_total", "polite" => polite.to_string()).increment(1);
}

/// A worker has come and gone, and nothing came of it.
pub fn in_vain() {
    counter!("tally_workers_in_vain_total").increment(1);
}

/// A worker was sent away.
pub fn evicted(drifted: bool) {
    counter!("tally_evictions_total", "drifted" => drifted.to_string()).increment(1);
}

/// An attempt was void.
pub fn aborted() {
    counter!("tally_aborted_attempts_total").increment(1);
}

/// Micro-shards of a lost worker were dealt again.
pub fn taken_over(leaves: u32) {
    counter!("tally_shards_taken_over_total").increment(u64::from(leaves));
}

/// A worker was past its deadline.
pub fn late(leaves: u32) {
    counter!("tally_shards_late_total").increment(u64::from(leaves));
}

/// When the last share of a step was due.
pub fn deadline(deadline: Option<std::time::Duration>) {
    gauge!("tally_step_deadline_seconds").set(deadline.unwrap_or_default().as_secs_f64());
}

/// Two workers have computed the same.
pub fn audited(equal: bool) {
    counter!("tally_audits_total", "equal" => equal.to_string()).increment(1);
}

/// A step was computed again after a resume.
pub fn recomputed() {
    counter!("tally_steps_recomputed_total").increment(1);
}

/// A checkpoint was written, or could not be.
pub fn checkpoint(written: bool, step: u64) {
    counter!("tally_checkpoints_total", "result" => if written { "written" } else { "failed" }).increment(1);
    if written {
        newest_checkpoint(step, SystemTime::now());
    }
}

/// The newest checkpoint is of this step, and was written then.
fn newest_checkpoint(step: u64, written: SystemTime) {
    gauge!("tally_checkpoint_step").set(step as f64);
    let unix = written.duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!("tally_checkpoint_time_seconds").set(unix.as_secs_f64());
}
