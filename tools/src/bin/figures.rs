//! Measures whole runs and prints one table and one JSON object: the figures of
//! `docs/performance.md`.
//!
//! `cargo run --release -p tally-tools --bin figures` takes some minutes. With
//! `--python PATH` (a Python that has PyTorch) it times PyTorch's all-reduce and step in
//! the same rounds, so that both see the same machine.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::Value;
use tally_tools::cluster::{binaries, without_options};
use tally_tools::statistics::median;

/// Measure whole runs: a step's parts, the all-reduce alone, memory.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds; the medians over all of them are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// Steps of the reference network in each round
    #[arg(long, default_value_t = 8)]
    steps: usize,

    /// A Python with PyTorch, to time the same there in the same rounds
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,

    /// Samples of a step of the reference network; each of them is measured
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [16, 64])]
    batches: Vec<usize>,

    /// Leave out the reference network
    #[arg(long)]
    allreduce_only: bool,

    /// Leave out the all-reduce alone
    #[arg(long, conflicts_with = "allreduce_only")]
    steps_only: bool,
}

/// One measurement of one cluster.
#[derive(Clone, Debug, Default, Serialize)]
struct Measured {
    workers: usize,
    threads: usize,
    step_ms: f64,
    compute_ms: f64,
    transfer_ms: f64,
    waiting_ms: f64,
    round_ms: f64,
    apply_ms: f64,
    cpu_seconds_a_step: f64,
    coordinator_mib: f64,
    coordinator_shared_mib: f64,
    worker_mib: f64,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// Peak resident memory in MiB, all of it.
    peak: f64,
    /// Peak memory in MiB that other processes have too; part of the former.
    shared: f64,
    /// CPU seconds.
    seconds: f64,
}

/// What a process that still runs has used.
fn usage(pid: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mib = |name: &str| -> Option<f64> {
        let value = status.lines().find_map(|l| l.strip_prefix(name))?;
        Some(value.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()? / 1024.0)
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the command's closing bracket: state, …; user and system time are the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(Usage { peak: mib("VmHWM:")?, shared: mib("RssShmem:")?, seconds: ticks / 100.0 })
}

struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn port_of(log: &Path) -> anyhow::Result<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        let text = fs::read_to_string(log).unwrap_or_default();
        let port = text.lines().find_map(|l| l.strip_prefix("listening on 127.0.0.1:")?.split(';').next());
        if let Some(port) = port {
            return Ok(port.into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("the coordinator did not start: {}", fs::read_to_string(log).unwrap_or_default())
}

/// How gradients reach the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Sockets,
    SharedMemory,
    OneProcess,
}

impl Way {
    const ALL: [Self; 3] = [Self::Sockets, Self::SharedMemory, Self::OneProcess];

    fn what(self) -> &'static str {
        match self {
            Self::Sockets => "all-reduce, sockets",
            Self::SharedMemory => "all-reduce, shared memory",
            Self::OneProcess => "all-reduce, one process",
        }
    }
}

/// Trains `steps` steps and reads the medians of its summary.
fn cluster(
    workers: usize,
    threads: usize,
    steps: usize,
    batch: usize,
    way: Way,
    extra: &[&str],
) -> anyhow::Result<Measured> {
    let directory = tempfile::tempdir()?;
    let run = directory.path().join("run");
    let log = directory.path().join("log");
    let mut command = Command::new(binaries().join("coordinator"));
    without_options(&mut command).args([
        "--listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
        "--epochs",
        "1",
    ]);
    command.args(["--workers", &workers.to_string(), "--batch-size", &batch.to_string()]);
    command.args(["--train-limit", &(steps * batch).to_string(), "--test-limit", "1"]);
    command.arg("--run-dir").arg(&run).args(extra);
    if way == Way::OneProcess {
        command.args(["--local", "--backend", "cpu", "--threads", &threads.to_string()]);
    }
    command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let mut coordinator = Kill(command.spawn().context("cannot start the coordinator")?);
    let mut processes = Vec::new();
    let local = way == Way::OneProcess;
    let port = if local { String::new() } else { port_of(&log)? };
    for _ in 0..if local { 0 } else { workers } {
        let mut worker = Command::new(binaries().join("worker"));
        without_options(&mut worker).args(["--connect", &format!("127.0.0.1:{port}"), "--backend", "cpu"]);
        if way == Way::Sockets {
            worker.arg("--no-shared-memory");
        }
        worker.args(["--threads", &threads.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        processes.push(Kill(worker.spawn().context("cannot start a worker")?));
    }
    let mut last = vec![Usage::default(); processes.len() + 1];
    let status = loop {
        let pids = std::iter::once(coordinator.0.id()).chain(processes.iter().map(|p| p.0.id()));
        for (last, pid) in last.iter_mut().zip(pids) {
            let shared = last.shared;
            *last = usage(pid).unwrap_or(*last);
            // It is given back before the end.
            last.shared = last.shared.max(shared);
        }
        if let Some(status) = coordinator.0.try_wait()? {
            break status;
        }
        thread::sleep(Duration::from_millis(20));
    };
    ensure!(status.success(), "the run failed: {}", fs::read_to_string(&log)?);
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json"))?)?;
    let ms = |part: &str| summary["median_seconds"][part].as_f64().unwrap_or(0.0) * 1e3;
    Ok(Measured {
        workers,
        threads,
        step_ms: ms("step"),
        compute_ms: ms("compute"),
        transfer_ms: ms("transfer"),
        waiting_ms: ms("waiting"),
        round_ms: ms("round"),
        apply_ms: ms("apply"),
        cpu_seconds_a_step: last.iter().map(|l| l.seconds).sum::<f64>() / steps as f64,
        coordinator_mib: last[0].peak - last[0].shared,
        coordinator_shared_mib: last[0].shared,
        worker_mib: last[1..].iter().map(|l| l.peak).fold(0.0, f64::max),
    })
}

/// The median step in ms and the peak memory in MiB of one process.
fn peer(python: &Path, args: &[&str]) -> anyhow::Result<(f64, f64)> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/pytorch/torch_peer.py");
    let output = Command::new(python).arg(script).args(args).stderr(Stdio::null()).output()?;
    ensure!(output.status.success(), "{} {script} {args:?} failed; has it PyTorch?", python.display());
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().context("the PyTorch script printed nothing")?;
    let line: Value = serde_json::from_str(line)?;
    let number =
        |name: &str| line[name].as_f64().with_context(|| format!("the PyTorch script printed no {name}"));
    Ok((number("median_ms")?, number("peak_mib")?))
}

/// The medians over rounds, field by field.
fn medians(rounds: &[Measured]) -> Measured {
    let of = |field: fn(&Measured) -> f64| median(rounds.iter().map(field));
    Measured {
        workers: rounds.first().map_or(0, |m| m.workers),
        threads: rounds.first().map_or(0, |m| m.threads),
        step_ms: of(|m| m.step_ms),
        compute_ms: of(|m| m.compute_ms),
        transfer_ms: of(|m| m.transfer_ms),
        waiting_ms: of(|m| m.waiting_ms),
        round_ms: of(|m| m.round_ms),
        apply_ms: of(|m| m.apply_ms),
        cpu_seconds_a_step: of(|m| m.cpu_seconds_a_step),
        coordinator_mib: of(|m| m.coordinator_mib),
        coordinator_shared_mib: of(|m| m.coordinator_shared_mib),
        worker_mib: of(|m| m.worker_mib),
    }
}

#[derive(Serialize)]
struct Row {
    what: String,
    #[serde(flatten)]
    tally: Measured,
    pytorch_ms: Option<f64>,
    pytorch_mib: Option<f64>,
    ratio: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    // As many leaves as workers and a clip factor that waits for the whole sum: what a
    // worker's round then holds is the making of one gradient and the all-reduce.
    let synthetic = |workers: usize, way: Way| -> anyhow::Result<Measured> {
        let microbatches = workers.to_string();
        let model = "synthetic:parameters=6402764";
        let extra = ["--model", model, "--microbatches", &microbatches, "--clip-norm", "1e30"];
        cluster(workers, 1, 60, workers, way, &extra)
    };
    let (mut reduce, mut reduce_peer) = (vec![vec![Vec::new(); 3]; 3], vec![Vec::new(); 3]);
    let batches = options.batches.iter();
    let trainings: Vec<(usize, usize, usize)> = batches
        .flat_map(|&batch| [(1, 1), (1, 2), (2, 1)].map(|(workers, threads)| (batch, workers, threads)))
        .collect();
    let (mut train, mut train_peer) = (vec![Vec::new(); trainings.len()], vec![Vec::new(); trainings.len()]);
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (at, workers) in [2, 4, 8].into_iter().enumerate().filter(|_| !options.steps_only) {
            for (way, measured) in Way::ALL.into_iter().zip(&mut reduce) {
                measured[at].push(synthetic(workers, way)?);
            }
            if let Some(python) = &options.python {
                reduce_peer[at].push(peer(python, &["allreduce", "--procs", &workers.to_string()])?);
            }
        }
        if options.allreduce_only {
            continue;
        }
        for (at, &(batch, workers, threads)) in trainings.iter().enumerate() {
            train[at].push(cluster(workers, threads, options.steps, batch, Way::SharedMemory, &[])?);
            if let Some(python) = &options.python {
                let (batch, steps) = (batch.to_string(), options.steps.to_string());
                let (threads, procs) = (threads.to_string(), workers.to_string());
                let which = if workers == 1 { &["step"][..] } else { &["ddp", "--procs", &procs] };
                let sizes = ["--threads", &threads, "--steps", &steps, "--batch", &batch];
                train_peer[at].push(peer(python, &[which, &sizes].concat())?);
            }
        }
    }
    let row = |what: String, tally: Measured, pytorch: &[(f64, f64)], ours: fn(&Measured) -> f64| {
        let of =
            |part: fn(&(f64, f64)) -> f64| (!pytorch.is_empty()).then(|| median(pytorch.iter().map(part)));
        let (pytorch_ms, pytorch_mib) = (of(|p| p.0), of(|p| p.1));
        let ratio = pytorch_ms.map(|theirs| ours(&tally) / theirs);
        Row { what, tally, pytorch_ms, pytorch_mib, ratio }
    };
    let mut rows = Vec::new();
    for (way, measured) in Way::ALL.into_iter().zip(&reduce) {
        for (measured, peer) in measured.iter().zip(&reduce_peer).filter(|(m, _)| !m.is_empty()) {
            rows.push(row(way.what().into(), medians(measured), peer, |m| m.round_ms));
        }
    }
    let trained = train.iter().zip(&train_peer).filter(|(m, _)| !m.is_empty());
    for ((measured, peer), (batch, ..)) in trained.zip(&trainings) {
        rows.push(row(format!("step, batch {batch}, 8 microbatches"), medians(measured), peer, |m| {
            m.step_ms
        }));
    }
    println!(
        "{:30} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}",
        "",
        "workers",
        "threads",
        "step",
        "compute",
        "transfer",
        "waiting",
        "round",
        "apply",
        "CPU s",
        "coord.",
        "shared",
        "worker",
        "PyTorch",
        "PyTorch",
        "ratio"
    );
    for r in &rows {
        let m = &r.tally;
        let shown = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        println!(
            "{:30} {:>7} {:>7} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.2} {:>5.0} MiB {:>5.0} MiB {:>5.0} MiB {:>5} MiB {:>9} {:>6}",
            r.what,
            m.workers,
            m.threads,
            m.step_ms,
            m.compute_ms,
            m.transfer_ms,
            m.waiting_ms,
            m.round_ms,
            m.apply_ms,
            m.cpu_seconds_a_step,
            m.coordinator_mib,
            m.coordinator_shared_mib,
            m.worker_mib,
            shown(r.pytorch_mib, 0),
            shown(r.pytorch_ms, 1),
            shown(r.ratio, 2)
        );
    }
    println!(
        "(times in ms, medians of {} rounds; an all-reduce has 25.6 MB, and its \"round\" the making of the gradient in it)",
        options.rounds
    );
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}
