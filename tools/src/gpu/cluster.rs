//! A cluster whose workers share one device: this program again, as coordinator and as workers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tally_worker::device::Precision;

use super::Options;

/// A cluster's step, by the medians of its summary.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cluster {
    /// In what it was computed.
    pub precision: String,
    /// Worker processes on the device.
    pub workers: usize,
    /// The global batch, one leaf a worker.
    pub batch: usize,
    /// The coordinator's wall time a step.
    pub step_ms: f64,
    /// The slowest worker's gradient.
    pub compute_ms: f64,
    /// What of the step is not computing.
    pub rest_ms: f64,
    /// That as a part of the step.
    pub rest: f64,
    /// The largest resident memory of a worker.
    pub worker_mib: f64,
    /// Replicas that had other bits than the coordinator and were sent away (**REP-1**); must be 0.
    pub lost: u64,
}

/// A child that does not outlive its handle.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Trains some steps by the default recipe, and reads the summary. The run must end before the part's deadline. If it fails, its
/// logs stay.
///
/// # Errors
/// If a process cannot be started, or the run fails or does not end.
pub fn run(options: &Options, precision: Precision, workers: usize) -> anyhow::Result<Cluster> {
    let directory = tempfile::Builder::new().prefix("gpu-check-cluster-").tempdir()?;
    let logs = match &options.logs {
        Some(logs) => logs.join(format!("cluster-{precision}-{workers}")),
        None => directory.path().join("logs"),
    };
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    train(options, precision, workers, &directory.path().join("run"), &logs).map_err(|error| {
        if options.logs.is_none() {
            let _ = directory.keep();
        }
        error.context(format!("its logs are in {}", logs.display()))
    })
}

fn train(
    options: &Options,
    precision: Precision,
    workers: usize,
    run: &Path,
    logs: &Path,
) -> anyhow::Result<Cluster> {
    let deadline = Instant::now() + Duration::from_secs(options.deadline) * 9 / 10;
    let log = logs.join("coordinator");
    let log_of = |worker: usize| -> PathBuf { logs.join(format!("worker-{worker}")) };
    let this = std::env::current_exe().context("cannot find this program, to start it again")?;
    let (batch, microbatches) = (options.cluster_batch.to_string(), workers.next_power_of_two().to_string());
    let limit = (options.cluster_batch * options.steps).min(60_000).to_string();
    let count = workers.to_string();
    let mut coordinator = Command::new(&this);
    coordinator.args(["coordinator", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    coordinator.args([
        "--epochs",
        "1",
        "--workers",
        &count,
        "--batch-size",
        &batch,
        "--microbatches",
        &microbatches,
    ]);
    coordinator.args(["--train-limit", &limit, "--test-limit", "10"]).arg("--run-dir").arg(run);
    coordinator.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let mut coordinator = Kill(coordinator.spawn().context("cannot start a coordinator")?);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let address = address(&mut coordinator, &said, deadline)?;

    let device = options.device.to_string();
    let threads = thread::available_parallelism().map_or(1, |n| (n.get() / workers).max(1)).to_string();
    let backend = options.exactly().to_string();
    let mut processes = Vec::new();
    for number in 1..=workers {
        let mut worker = Command::new(&this);
        worker.args(["worker", "--connect", &address, "--backend", &backend, "--device", &device]);
        worker.args(["--threads", &threads, "--precision", &precision.to_string()]);
        worker.args(["--name", &format!("worker-{number}")]);
        worker.stdout(Stdio::null()).stderr(fs::File::create(log_of(number))?);
        processes.push(Kill(worker.spawn().context("cannot start a worker")?));
    }
    let mut worker_mib = 0f64;
    let status = loop {
        for worker in &mut processes {
            worker_mib = worker_mib.max(peak_mib(worker.0.id()));
        }
        if let Some(status) = coordinator.0.try_wait()? {
            break status;
        }
        if processes.iter_mut().all(|worker| matches!(worker.0.try_wait(), Ok(Some(_)))) {
            thread::sleep(Duration::from_secs(2));
            if coordinator.0.try_wait()?.is_none() {
                bail!("all workers ended: {}", last_line(&log_of(1)));
            }
        }
        ensure!(Instant::now() < deadline, "the run does not end: {}", last_line(&log));
        thread::sleep(Duration::from_millis(20));
    };
    ensure!(status.success(), "the run failed: {}", last_line(&log));
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json"))?)?;
    let ms = |part: &str| summary["median_seconds"][part].as_f64().map(|seconds| seconds * 1e3);
    let (step_ms, compute_ms) =
        ms("step").zip(ms("compute")).context("the summary has no medians of steps")?;
    let lost =
        summary["workers_lost"].as_u64().context("the summary says of no worker whether it was lost")?;
    let rest_ms = step_ms - compute_ms;
    Ok(Cluster {
        precision: precision.to_string(),
        workers,
        batch: options.cluster_batch,
        step_ms,
        compute_ms,
        rest_ms,
        rest: rest_ms / step_ms,
        worker_mib,
        lost,
    })
}

/// Where the coordinator listens.
fn address(coordinator: &mut Kill, said: &impl Fn() -> String, deadline: Instant) -> anyhow::Result<String> {
    while Instant::now() < deadline {
        let text = said();
        let address = text.lines().find_map(|line| line.strip_prefix("listening on ")?.split(';').next());
        if let Some(address) = address {
            return Ok(address.trim().to_owned());
        }
        ensure!(coordinator.0.try_wait()?.is_none(), "the coordinator ended: {text}");
        thread::sleep(Duration::from_millis(10));
    }
    bail!("the coordinator did not start: {}", said())
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}

fn peak_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
