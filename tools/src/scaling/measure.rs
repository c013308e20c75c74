//! One cluster of real processes, measured while it runs: a step, and what everybody's
//! processors and memory did for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tally_numerics::wire::WireDtype;

use super::network::Network;
use crate::cluster::{DEADLINE, Process, RunDir, Signal, binaries};
use crate::statistics::median;

/// A run of which a few seconds are measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Workers, each a process of its own up to [`PROCESSES`].
    pub workers: usize,
    /// The model, as `--model` takes it.
    pub model: String,
    /// Samples of a step.
    pub batch_size: usize,
    /// Microbatches.
    pub microbatches: u32,
    /// What gradients travel as.
    pub wire_dtype: WireDtype,
    /// Bits a second of the coordinator's link; none for sockets of one machine.
    pub link: Option<f64>,
}

/// More workers than these are threads of one process that does nothing else.
pub const PROCESSES: usize = 16;

/// Seconds of processors for a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// The coordinator, without its driver.
    pub coordinator: f64,
    /// Its driver.
    pub driver: f64,
    /// All workers, without their computing threads.
    pub workers: f64,
    /// Their computing threads.
    pub computing: f64,
}

impl Cpu {
    /// All of the coordinator's.
    #[must_use]
    pub fn coordinators(&self) -> f64 {
        self.coordinator + self.driver
    }
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The median step, in seconds.
    pub step: f64,
    /// The median of the slowest worker's computing.
    pub compute: f64,
    /// Steps that were measured.
    pub steps: u64,
    /// What they took of processors, each.
    pub cpu: Cpu,
    /// The most memory that the coordinator held, in bytes.
    pub memory: f64,
}

/// Steps and seconds: so many of both pass, or fewer steps if they are slow.
#[derive(Clone, Copy, Debug)]
struct Enough {
    steps: u64,
    seconds: f64,
    slow_steps: u64,
    slow_seconds: f64,
}

/// What passes before anything is measured.
const WARM: Enough = Enough { steps: 6, seconds: 0.7, slow_steps: 2, slow_seconds: 4.0 };
/// What is measured.
const LONG: Enough = Enough { steps: 12, seconds: 2.5, slow_steps: 4, slow_seconds: 8.0 };

impl Enough {
    /// Waits until this has passed since step `first`.
    fn wait(self, run: &RunDir, first: usize, coordinator: &Process) {
        let began = Instant::now();
        loop {
            let (seen, seconds) = ((steps(run).len() - first) as u64, began.elapsed().as_secs_f64());
            if (seen >= self.steps && seconds >= self.seconds)
                || (seen >= self.slow_steps && seconds >= self.slow_seconds)
            {
                return;
            }
            assert!(began.elapsed() < DEADLINE, "it stands still:\n{}", coordinator.stderr());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Runs it and measures.
///
/// # Errors
/// If links were asked for that can't be had.
///
/// # Panics
/// If a process does not do what it should.
pub fn measure(case: &Case) -> anyhow::Result<Measured> {
    let network = case.link.map(Network::new).transpose()?;
    let run = RunDir::new();
    let (coordinator, workers) = start(case, network.as_ref(), &run);
    run.wait_for_step(1);
    WARM.wait(&run, 0, &coordinator);
    let pids: Vec<u32> = workers.iter().map(Process::pid).collect();
    let (first, before) = (steps(&run).len(), cpu(coordinator.pid(), &pids));
    LONG.wait(&run, first, &coordinator);
    let (all, after) = (steps(&run), cpu(coordinator.pid(), &pids));
    let memory = peak(coordinator.pid());
    coordinator.signal(Signal::INT);
    coordinator.succeed();
    let measured = &all[first..];
    let of = |part: &str| median(measured.iter().filter_map(|step| step[part].as_f64()));
    let count = measured.len() as f64;
    let a_step = |part: fn(&Cpu) -> f64| (part(&after) - part(&before)) / count;
    Ok(Measured {
        step: of("seconds"),
        compute: of("compute_seconds"),
        steps: measured.len() as u64,
        cpu: Cpu {
            coordinator: a_step(|cpu| cpu.coordinator),
            driver: a_step(|cpu| cpu.driver),
            workers: a_step(|cpu| cpu.workers),
            computing: a_step(|cpu| cpu.computing),
        },
        memory,
    })
}

/// The coordinator, and the workers' processes.
fn start(case: &Case, network: Option<&Network>, run: &RunDir) -> (Process, Vec<Process>) {
    let host = network.map_or("127.0.0.1".into(), |network| network.host().to_string());
    let address = format!("{host}:0");
    let (workers, batch) = (case.workers.to_string(), case.batch_size.to_string());
    let (microbatches, dtype) = (case.microbatches.to_string(), case.wire_dtype.to_string());
    let options = [
        ["--listen", &address],
        ["--http-listen", "127.0.0.1:0"],
        ["--workers", &workers],
        ["--model", &case.model],
        ["--batch-size", &batch],
        ["--microbatches", &microbatches],
        ["--wire-dtype", &dtype],
        ["--epochs", "100000"],
        ["--lr-schedule", "constant"],
        ["--test-limit", "1"],
        ["--run-dir", run.arg()],
    ];
    let coordinator = program(network.map(Network::coordinators), "coordinator", options.as_flattened());
    let line = coordinator.wait_for_line("listening on ");
    let port = line.split(';').next().and_then(|start| start.rsplit(':').next()).expect("it tells its port");
    let connect = format!("{host}:{port}");
    let inside = network.map(Network::workers);
    let processes = if case.workers > PROCESSES {
        vec![swarm(inside, &connect, case.workers)]
    } else {
        let start = |at: usize| {
            let name = format!("w{at}");
            let options = ["--connect", &connect, "--name", &name, "--backend", "cpu", "--threads", "1"];
            program(inside, "worker", &[&options[..], &["--no-shared-memory"]].concat())
        };
        (0..case.workers).map(start).collect()
    };
    (coordinator, processes)
}

/// Many workers in one process: this program's other half.
fn swarm(inside: Option<&str>, connect: &str, workers: usize) -> Process {
    let this = std::env::current_exe().expect("the current executable has a path");
    let workers = workers.to_string();
    run_in(inside, &this, &["swarm", "--connect", connect, "--workers", &workers])
}

fn program(inside: Option<&str>, name: &str, options: &[&str]) -> Process {
    run_in(inside, &binaries().join(name), options)
}

/// Starts a program, in a namespace if one is named.
fn run_in(inside: Option<&str>, program: &Path, options: &[&str]) -> Process {
    let Some(namespace) = inside else { return Process::start(program, options) };
    let program = program.to_str().expect("a path is Unicode");
    let words = [&["netns", "exec", namespace, program], options].concat();
    Process::start(Path::new("ip"), words)
}

/// The journal's steps.
fn steps(run: &RunDir) -> Vec<Value> {
    run.journal().into_iter().filter(|line| line["event"] == "step").collect()
}

/// Seconds that the threads of a process have run, by their names.
fn threads(pid: u32) -> BTreeMap<String, f64> {
    let mut seconds = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let ran = read("schedstat").split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok());
        *seconds.entry(read("comm").trim().to_owned()).or_insert(0.0) += ran.unwrap_or(0.0) * 1e-9;
    }
    seconds
}

fn cpu(coordinator: u32, workers: &[u32]) -> Cpu {
    let parted = |pid: u32, name: &str| {
        let threads = threads(pid);
        let own = threads.get(name).copied().unwrap_or(0.0);
        (threads.values().sum::<f64>() - own, own)
    };
    let (rest, driver) = parted(coordinator, "driver");
    let workers = workers.iter().map(|&pid| parted(pid, "compute"));
    let (others, computing) = workers.fold((0.0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
    Cpu { coordinator: rest, driver, workers: others, computing }
}

/// The most memory that a process has held, in bytes.
fn peak(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0
}
