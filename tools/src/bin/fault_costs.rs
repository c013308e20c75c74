//! Measures what faults, joins and audits cost the others: the figures of
//! `docs/reliability.md`. It takes about four minutes.
//!
//! The engine is the synthetic one with the reference network's size and a fixed time a leaf,
//! so that a step's time is known and what comes on top is what is measured.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::expect_used)]

use clap::Parser;
use tally_tools::cluster::{Coordinator, Relay, RunDir, Signal, Worker, events, free_port};
use tally_tools::statistics::median;

/// Measure what faults, joins and audits cost.
#[derive(Debug, Parser)]
struct Options {
    /// Times each fault is made
    #[arg(long, default_value_t = 7)]
    times: usize,

    /// Steps of each run with audits; 0 for none
    #[arg(long, default_value_t = 600)]
    steps: usize,

    /// Where gradients are added up: star or sharded
    #[arg(long, default_value = "star")]
    reduce: String,
}

/// Eight leaves of eight samples of 4 ms: four workers compute 64 ms a step.
const MODEL: &str = "synthetic:parameters=6402764,us-per-sample=4000";

fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

/// The seconds of the steps in the journal, from the first.
fn seconds(run: &RunDir) -> Vec<f64> {
    events(&run.journal(), "step").iter().filter_map(|step| step["seconds"].as_f64()).collect()
}

fn start(run: &RunDir, workers: usize, options: &[&str]) -> Coordinator {
    let workers = workers.to_string();
    let cluster = ["--workers", &workers, "--run-dir", run.arg(), "--batch-size", "64", "--test-limit", "1"];
    Coordinator::start([&cluster, options].concat())
}

/// How a step is hit.
#[derive(Clone, Copy, PartialEq)]
enum Hit {
    Killed,
    Frozen,
    Leaves,
    Joins,
    /// Its links to other workers break, and may come back.
    CutOff,
    /// Its links to other workers stay up, and carry nothing.
    Stalled,
}

impl Hit {
    fn is_of_links(self) -> bool {
        matches!(self, Self::CutOff | Self::Stalled)
    }
}

/// By how much steps took longer than the median step, all together, in median steps. Noise alone
/// makes it more than 0, since those that took less do not count.
fn excess(over: &[f64]) -> f64 {
    over.iter().map(|s| (s - 1.0).max(0.0)).sum()
}

/// Hits one of four workers (or has a fourth join three) again and again, and returns by how
/// many median steps the worst of the steps around each hit was longer, and all of them
/// together, less what as many steps before it were.
fn hit(how: Hit, Options { times, reduce, .. }: &Options) -> (f64, Vec<f64>, Vec<f64>) {
    let run = RunDir::new();
    let coordinator = start(&run, 4, &["--model", MODEL, "--epochs", "10", "--reduce", reduce]);
    let (port, times) = (coordinator.grpc_port(), *times);
    let listen = free_port();
    let relay = Relay::start(listen);
    let start_fourth = || {
        let (here, there) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{}", relay.port()));
        Worker::start(port, ["--name", "fourth", "--peer-listen", &here, "--advertise", &there])
    };
    // Later workers dial earlier ones, so links to the fourth lead through the relay if it is there first.
    let start_all = || {
        let fourth = start_fourth();
        fourth.wait_for_line("joined");
        (Worker::start_many(port, 3), fourth)
    };
    let (mut others, mut fourth) = start_all();
    run.wait_for_step(10);
    let (mut worst, mut sum, mut usual) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..times {
        // What the step takes with those who will be there: four, or three before a join.
        if how == Hit::Joins {
            fourth.signal(Signal::INT);
            fourth.wait();
            settle(&run, 8);
        }
        let before = seconds(&run).len();
        usual.extend_from_slice(&seconds(&run)[before - 6..]);
        match how {
            Hit::Killed => fourth.kill9(),
            Hit::Frozen => fourth.signal(Signal::STOP),
            Hit::Leaves => fourth.signal(Signal::INT),
            Hit::Joins => fourth = start_fourth(),
            Hit::CutOff => relay.cut(),
            Hit::Stalled => relay.hold(),
        }
        // The step that was hit, and for a join those in which its state is sent.
        let window = if how == Hit::Joins { 6 } else { 1 };
        run.wait_for_step((before + window) as u64);
        let step = median(usual.clone());
        let over: Vec<f64> = seconds(&run)[before..before + window].iter().map(|s| s / step).collect();
        worst.push(greatest(&over));
        let calm: Vec<f64> = seconds(&run)[before - window..before].iter().map(|s| s / step).collect();
        sum.push(excess(&over) - excess(&calm));
        match how {
            Hit::Joins => {}
            Hit::Frozen => fourth.signal(Signal::CONT),
            Hit::Killed | Hit::Leaves => fourth = start_fourth(),
            // Links that break again and again are opened after longer and longer pauses. Newcomers have no history.
            Hit::CutOff | Hit::Stalled => {
                relay.mend();
                for worker in others.iter().chain([&fourth]) {
                    worker.signal(Signal::INT);
                    worker.wait();
                }
                let after = seconds(&run).len() as u64;
                (others, fourth) = start_all();
                run.wait_for("a step of four owners", |line| {
                    line["owners"] == 4 && line["step"].as_u64() > Some(after)
                });
            }
        }
        settle(&run, 12);
    }
    coordinator.signal(Signal::INT);
    coordinator.succeed();
    drop(others);
    (median(usual), worst, sum)
}

fn settle(run: &RunDir, steps: usize) {
    run.wait_for_step((seconds(run).len() + steps) as u64);
}

/// The mean seconds of a step at this audit rate, with two workers.
fn audited(rate: &str, Options { steps, reduce, .. }: &Options) -> f64 {
    let run = RunDir::new();
    let limit = (64 * steps).to_string();
    let options = ["--model", "synthetic:parameters=200000,us-per-sample=500", "--epochs", "1"];
    let more = ["--train-limit", &limit, "--audit-rate", rate, "--reduce", reduce];
    let coordinator = start(&run, 2, &[&options[..], &more].concat());
    let _workers = Worker::start_many(coordinator.grpc_port(), 2);
    coordinator.succeed();
    let seconds = seconds(&run);
    seconds.iter().sum::<f64>() / seconds.len() as f64
}

fn main() {
    let options = Options::parse();
    println!("{:32} {:>12} {:>22} {:>22}", "", "median step", "worst step, in steps", "in all, in steps");
    println!("{:32} {:>12} {:>22} {:>22}", "", "", "median, greatest", "median, greatest");
    for (what, how) in [
        ("one of four is killed", Hit::Killed),
        ("one of four is frozen", Hit::Frozen),
        ("one of four leaves", Hit::Leaves),
        ("a fourth joins three", Hit::Joins),
        ("the links of one of four break", Hit::CutOff),
        ("the links of one of four stall", Hit::Stalled),
    ] {
        if how.is_of_links() && options.reduce == "star" {
            continue;
        }
        let (step, worst, sum) = hit(how, &options);
        println!(
            "{what:32} {:>9.1} ms {:>14.2}, {:>6.2} {:>14.2}, {:>6.2}",
            step * 1e3,
            median(worst.clone()),
            greatest(&worst),
            median(sum.clone()),
            greatest(&sum)
        );
    }
    if options.steps == 0 {
        return;
    }
    let rates = ["0", "0.01", "0.1", "1"];
    let mut means = vec![Vec::new(); rates.len()];
    for _ in 0..3 {
        for (means, rate) in means.iter_mut().zip(rates) {
            means.push(audited(rate, &options));
        }
    }
    let none = median(means[0].clone());
    for (rate, means) in rates.iter().zip(means) {
        let mean = median(means);
        println!(
            "--audit-rate {rate:5} {:>9.2} ms a step, {:+.1} %",
            mean * 1e3,
            100.0 * (mean / none - 1.0)
        );
    }
}
