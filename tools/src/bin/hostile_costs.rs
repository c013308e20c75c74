//! Measures what hostile connections cost a run: the figures of `docs/security.md`. It
//! takes about three minutes.
//!
//! The engine is the synthetic one and computes nothing, so that a step is short and what comes on top is not
//! hidden in it. Everything is on one machine, so that in a flood both sides' work is on its cores.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::expect_used)]

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use tally_coordinator::access::serve::room;
use tally_tools::cluster::{Coordinator, RunDir, Worker, events};
use tally_tools::load::{Flood, Target, Visit};
use tally_tools::secrets::Secrets;
use tally_tools::statistics::median;
use tally_transport::client::ClientAccess;

/// Measure what hostile connections cost.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds; each runs every way once
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Steps of each run, of 16 of the 60 000 samples each
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(100..=3750))]
    steps: u32,

    /// Connections at one time
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=3000))]
    connections: u32,
}

/// Floats of a gradient, so that a step takes a few milliseconds.
const MODEL: &str = "synthetic:parameters=200000,us-per-sample=0";
const WORKERS: usize = 2;

/// Who is there beside the workers.
#[derive(Clone, Copy, PartialEq)]
enum Others {
    Nobody,
    /// They say nothing, or leave a handshake at its half.
    Idle,
    /// They do everything they can, and come back at once.
    Flood,
}

/// What a run showed.
#[derive(Clone, Copy, Default)]
struct Shown {
    step: f64,
    /// Seconds of the processor a second, of the coordinator alone.
    cpu: f64,
    /// Its resident memory in MiB, and its open files.
    memory: f64,
    files: f64,
    /// Connections a second that were opened.
    opened: f64,
}

impl Shown {
    fn all(&self) -> [f64; 5] {
        [self.step * 1e3, self.cpu * 100.0, self.memory, self.files, self.opened]
    }
}

/// What Linux says of a process: seconds of the processor, resident MiB, and open files.
fn process(number: u32) -> (f64, f64, f64) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{number}/{file}")).expect("it still runs");
    // The name, in brackets, may have spaces; times are in hundredths of a second.
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("proc(5) says that it is a number");
    let status = read("status");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    let memory = kib.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0;
    let files = fs::read_dir(format!("/proc/{number}/fd")).expect("it still runs").count();
    ((ticks(11) + ticks(12)) / 100.0, memory, files as f64)
}

fn run(options: &Options, others: Others) -> Shown {
    let (run, secrets) = (RunDir::new(), Secrets::new());
    let (workers, limit, token) =
        (WORKERS.to_string(), (16 * options.steps).to_string(), secrets.arg("train"));
    let cluster = ["--workers", &workers, "--run-dir", run.arg(), "--model", MODEL, "--token-file", &token];
    let data = ["--epochs", "1", "--train-limit", &limit, "--test-limit", "1", "--batch-size", "16"];
    let coordinator = Coordinator::start([&cluster[..], &data].concat());
    let port = coordinator.grpc_port();
    let (visits, stay, at_once) = match others {
        Others::Nobody => (Visit::IDLE, Duration::ZERO, 0),
        Others::Idle => (Visit::IDLE, Duration::from_secs(60), options.connections as usize),
        Others::Flood => (Visit::ALL, Duration::from_millis(500), options.connections as usize),
    };
    let target = Target { port, access: ClientAccess::default() };
    let flood = Flood::start(&target, visits, at_once, stay);
    let opened = || flood.counts().opened.load(Ordering::Relaxed);
    flood.wait_until(|_| opened() >= at_once as u64);
    let _workers: Vec<_> =
        (0..WORKERS).map(|_| Worker::start(port, ["--token-file", &token, "--no-shared-memory"])).collect();
    let look = |step: u32| {
        run.wait_for_step(step.into());
        (Instant::now(), process(coordinator.pid()), opened())
    };
    let (first, last) = (look(options.steps / 4), look(options.steps * 3 / 4));
    coordinator.succeed();
    let seconds = (last.0 - first.0).as_secs_f64();
    let journal = run.journal();
    let steps = events(&journal, "step").into_iter().filter_map(|step| step["seconds"].as_f64());
    Shown {
        step: median(steps),
        cpu: (last.1.0 - first.1.0) / seconds,
        memory: last.1.1,
        files: last.1.2,
        opened: (last.2 - first.2) as f64 / seconds,
    }
}

fn main() {
    let options = Options::parse();
    let connections = options.connections;
    let files = room(2 * connections);
    assert!(files >= 2 * connections as usize, "the system allows too few open files; raise ulimit -n");
    let ways = [
        ("nobody else".to_owned(), Others::Nobody),
        (format!("{connections} idle connections"), Others::Idle),
        (format!("{connections} that do all they can"), Others::Flood),
    ];
    let mut shown = vec![Vec::new(); ways.len()];
    for _ in 0..options.rounds {
        for ((_, others), shown) in ways.iter().zip(&mut shown) {
            shown.push(run(&options, *others));
        }
    }
    println!("{WORKERS} workers, {} steps, {} rounds; medians:", options.steps, options.rounds);
    println!(
        "{:28} {:>10} {:>8} {:>21} {:>12} {:>12} {:>12}",
        "", "step", "ratio", "coordinator", "memory", "open files", "opened"
    );
    let nobody = median(shown[0].iter().map(|shown| shown.step));
    for ((what, _), shown) in ways.iter().zip(&shown) {
        let of = |column: usize| median(shown.iter().map(|shown| shown.all()[column]));
        println!(
            "{what:28} {:>7.3} ms {:>8.3} {:>9.1} % of a core {:>8.1} MiB {:>12.0} {:>10.0}/s",
            of(0),
            of(0) / (nobody * 1e3),
            of(1),
            of(2),
            of(3),
            of(4)
        );
    }
}
