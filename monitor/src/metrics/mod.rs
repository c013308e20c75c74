//! The metrics that Prometheus scrapes: `tally_…` with base units, and the process's own. The `catalog` announces every
//! series before it has a value; each worker's series are apart, in [`mod@workers`].

mod catalog;
pub mod workers;

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use tally_coordinator::observer::{Context, Observer, RunEvent};
use tally_core::Core;
use tally_core::cluster::{Session, State};
use tally_core::events::{AuditResult, ClusterEvent, Committed};
use tally_numerics::schema::Evaluation;
use tally_run::journal::StepLine;

use crate::Run;
use crate::view::time_breakdown::Seconds;
use workers::WorkerSeries;

/// From a millisecond to a quarter of an hour, in steps of about 2.
const SECONDS: [f64; 20] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0,
    300.0, 600.0, 900.0,
];

/// How often recorded samples are folded in.
const UPKEEP: std::time::Duration = std::time::Duration::from_secs(5);

/// Renders the answer to `/metrics`.
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

    /// Everything, in Prometheus's text format, with how the run's wall time divides.
    #[must_use]
    pub fn render(&self, seconds: &Seconds) -> String {
        self.process.collect();
        self.handle.run_upkeep();
        let mut text = self.handle.render();
        self.workers.render(&mut text, Instant::now());
        text.push_str(
            "# HELP tally_run_seconds_total Where the wall time of this start went.\n# TYPE tally_run_seconds_total counter\n",
        );
        for (part, seconds) in seconds.parts() {
            text.push_str(&format!("tally_run_seconds_total{{part=\"{part}\"}} {seconds}\n"));
        }
        text
    }

    /// Folds in recorded samples every few seconds, scraped or not, since the samples of histograms would pile up.
    /// Measures the room that the run directory has left, too.
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

/// Makes the process's recorder, and its exporter.
///
/// # Errors
/// If another recorder is there already.
pub fn install() -> Result<Exporter, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?;
    let process = Collector::default();
    process.describe();
    Ok(Exporter { handle, process, workers: WorkerSeries::default() })
}

/// Announces every series of the run, and sets what is known before the first step.
pub fn start(run: &Run<'_>) {
    let config = run.config;
    catalog::announce(&config.schema);
    let (program, model) = (config.program.name.clone(), config.program.variant.clone());
    gauge!("tally_run_info", "run" => config.run.clone(), "program" => program, "model" => model).set(1.0);
    gauge!("tally_incarnation").set(run.incarnation as f64);
    gauge!("tally_workers_wanted").set(config.workers as f64);
    gauge!("tally_step").set(run.step as f64);
    gauge!("tally_steps").set(run.steps as f64);
    gauge!("tally_epoch").set(f64::from(run.epoch));
    let (step, written) = run.checkpoint.unwrap_or((0, SystemTime::now()));
    newest_checkpoint(step, written);
}

/// A step counts.
pub fn step(step: &Committed, line: &StepLine, core: &Core) {
    gauge!("tally_step").set(step.step as f64);
    gauge!("tally_epoch").set(f64::from(step.epoch));
    counter!("tally_steps_total").increment(1);
    counter!("tally_samples_total").increment(step.samples as u64);
    counter!("tally_samples_lost_total").absolute(core.ledger().lost());
    counter!("tally_samples_duplicated_total").absolute(core.ledger().duplicated());
    for (part, mean) in &line.loss {
        gauge!("tally_loss", "part" => part.clone()).set(*mean);
    }
    gauge!("tally_gradient_norm").set(line.gradient_norm);
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
pub fn test(evaluation: &Evaluation, seconds: f64) {
    gauge!("tally_test_loss").set(evaluation.total_loss());
    for (metric, value) in evaluation.ratios() {
        gauge!("tally_test_metric_ratio", "metric" => metric.to_owned()).set(value);
    }
    histogram!("tally_test_seconds").record(seconds);
}

/// The workers by state.
pub fn workers(core: &Core) {
    let count = |state: State| core.members().0.values().filter(|m| m.state == state).count() as f64;
    gauge!("tally_workers", "state" => "joining").set(count(State::Joining));
    gauge!("tally_workers", "state" => "loading").set(count(State::Loading));
    gauge!("tally_workers", "state" => "ready").set(count(State::Ready));
}

/// How many workers added up a step, and how many links there are.
pub fn reduction(owners: usize, links: usize) {
    gauge!("tally_reduction_owners").set(owners as f64);
    gauge!("tally_links").set(links as f64);
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

/// A worker was lost before it had done a step, or because its link is too slow.
pub fn unproductive_session() {
    counter!("tally_unproductive_sessions_total").increment(1);
}

/// A worker was sent away.
pub fn evicted(drifted: bool) {
    counter!("tally_evictions_total", "drifted" => drifted.to_string()).increment(1);
}

/// An attempt was void.
pub fn aborted() {
    counter!("tally_aborted_attempts_total").increment(1);
}

/// Microbatches of a lost worker were assigned again.
pub fn taken_over(microbatches: u32) {
    counter!("tally_microbatches_taken_over_total").increment(u64::from(microbatches));
}

/// A worker was past its deadline, and others compute its microbatches too.
pub fn late(microbatches: u32) {
    counter!("tally_microbatches_speculative_total").increment(u64::from(microbatches));
}

/// The coordinator adds up chunks that workers were to add up.
pub fn taken_back(chunks: usize) {
    counter!("tally_chunks_taken_back_total").increment(chunks as u64);
}

/// When the last assignment of a step was due.
pub fn deadline(deadline: Option<std::time::Duration>) {
    gauge!("tally_step_deadline_seconds").set(deadline.unwrap_or_default().as_secs_f64());
}

/// Two workers have computed the same node.
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

/// Counts what happens in a run.
#[derive(Debug)]
pub struct MetricsObserver {
    series: WorkerSeries,
}

impl MetricsObserver {
    /// Counts this run in the recorder and in the series of each worker. From here on every series of the run is there,
    /// so this comes before the first scrape.
    #[must_use]
    pub fn new(run: &Run<'_>, series: WorkerSeries) -> Self {
        start(run);
        Self { series }
    }

    fn cluster(&self, event: &ClusterEvent, core: &Core) {
        match event {
            ClusterEvent::Ready { .. } => joined(),
            ClusterEvent::Lost { session, polite, was_ready, .. } => {
                self.series.gone(*session, Instant::now());
                if *was_ready {
                    lost(*polite);
                }
            }
            ClusterEvent::Late { session, leaves, .. } => {
                self.series.late(*session);
                late(*leaves);
            }
            ClusterEvent::TakenOver { leaves, by, .. } => {
                by.iter().for_each(|&(session, leaves)| self.series.takes_over(session, leaves));
                taken_over(*leaves);
            }
            ClusterEvent::Audited { result, .. } => audited(*result == AuditResult::Equal),
            ClusterEvent::TakenBack { chunks, .. } => taken_back(*chunks),
            ClusterEvent::Adopted { .. } | ClusterEvent::Reduction { .. } => {}
        }
        workers(core);
    }

    fn confirmed(&self, session: Session, number: u64, core: &Core) {
        let member = core.members().0.get(&session);
        self.series.confirmed(session, number, member.map_or(0, |member| member.samples));
        self.series.speed(session, member.and_then(|member| member.per_sample));
    }
}

impl Observer for MetricsObserver {
    fn observe(&mut self, context: &Context<'_>, event: &RunEvent<'_>) {
        let core = context.core;
        match *event {
            RunEvent::Started { .. } => workers(core),
            RunEvent::Connected { session, name, device } => {
                self.series.joined(session, name, device, Instant::now());
            }
            RunEvent::Cluster(event) => self.cluster(event, core),
            RunEvent::AttemptVoid { .. } => aborted(),
            RunEvent::Committed { step: committed, line, recomputed: again } => {
                reduction(committed.owners, core.links().count());
                if again {
                    recomputed();
                }
                step(committed, line, core);
                if let Some(slowest) = committed.slowest {
                    self.series.waited_for(slowest, committed.waiting_seconds);
                }
            }
            RunEvent::Tested { evaluation, seconds, .. } => test(evaluation, seconds),
            RunEvent::Checkpoint { step, result, .. } => checkpoint(result.is_ok(), step),
            RunEvent::Confirmed { session, step, apply, round } => {
                worker_times(apply, round);
                self.confirmed(session, step, core);
            }
            RunEvent::Clock { session, offset } => self.series.clock(session, offset),
            RunEvent::Lane(lane) => self.series.lane(lane),
            RunEvent::Received { bytes } => received(bytes),
            RunEvent::Sent { bytes } => sent(bytes),
            RunEvent::Deadline(due) => deadline(due),
            RunEvent::Evicted { drifted } => evicted(drifted),
            RunEvent::UnproductiveSession => unproductive_session(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support;

    #[test]
    fn losses_and_metrics_have_series_by_their_names() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let (core, line) = (test_support::core(), test_support::step_line(3, 2.0));
        ::metrics::with_local_recorder(&recorder, || {
            step(&test_support::committed(&line), &line, &core);
            test(&test_support::evaluation(6.0), 0.5);
        });
        let text = recorder.handle().render();
        for series in [
            "tally_step 3",
            "tally_loss{part=\"total\"} 2",
            "tally_loss{part=\"a\"} 0.5",
            "tally_loss{part=\"b\"} 1.5",
            "tally_test_loss 1.5",
            "tally_test_metric_ratio{metric=\"right\"} 0.75",
        ] {
            assert!(text.lines().any(|line| line == series), "no {series} in {text}");
        }
    }
}
