//! Measures what metrics, traces and the page cost a step: the figures of `docs/observability.md`. It takes
//! about a minute.
//!
//! The engine is the synthetic one and computes nothing, so that a step is short and what comes on
//! top is not hidden in it.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::expect_used)]

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::thread::JoinHandle;
use std::time::Instant;

use clap::Parser;
use tally_coordinator::timeline::clock::Offset;
use tally_coordinator::timeline::{Lane, WorkerTime};
use tally_monitor::metrics::{self, workers::WorkerSeries};
use tally_monitor::trace::Trace;
use tally_monitor::view::View;
use tally_monitor::view::publisher::ViewPublisher;
use tally_monitor::view::state::RunInfo;
use tally_monitor::view::time_breakdown::TimeBreakdown;
use tally_proto::span::{Clock, Span, SpanKind};
use tally_tools::cluster::{Coordinator, RunDir, Worker, events};
use tally_tools::statistics::median;

/// Measure what spans, the trace and metrics cost.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds; each runs every way once
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Steps of each run, of 16 of the 60 000 samples each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=3750))]
    steps: u32,

    /// Workers of each run
    #[arg(long, default_value_t = 2)]
    workers: usize,

    /// Workers with series, where metrics are rendered
    #[arg(long, default_value_t = 256)]
    series: u64,
}

/// Pages that follow a run.
const PAGES: usize = 8;
/// Floats of a gradient, so that a step takes a few milliseconds.
const MODEL: &str = "synthetic:parameters=200000,us-per-sample=0";

/// The median seconds of a step, and the bytes of the trace, if there is one.
fn run(workers: usize, steps: u32, way: &Way) -> (f64, u64) {
    let run = RunDir::new();
    let trace = run.path().with_extension("trace.json");
    let trace = trace.to_str().expect("a temporary path is Unicode");
    let (workers, limit) = (workers.to_string(), (16 * steps).to_string());
    let cluster = ["--workers", &workers, "--run-dir", run.arg(), "--model", MODEL];
    let data = ["--epochs", "1", "--train-limit", &limit, "--test-limit", "1", "--batch-size", "16"];
    let pages = if matches!(way, Way::Pages) { PAGES } else { 0 };
    let way: &[&str] = match way {
        Way::Nothing => &["--no-timeline"],
        Way::Spans => &[],
        Way::Pages => &[],
        Way::Trace => &["--trace", trace],
    };
    let coordinator = Coordinator::start([&cluster[..], &data, way].concat());
    let _workers = Worker::start_many(coordinator.grpc_port(), workers.parse().unwrap_or(1));
    let pages: Vec<_> = (0..pages).map(|_| follow(coordinator.http_port())).collect();
    coordinator.succeed();
    for page in pages {
        assert!(page.join().is_ok_and(|bytes| bytes > 0), "a page was sent nothing");
    }
    let journal = run.journal();
    let seconds = events(&journal, "step").into_iter().filter_map(|step| step["seconds"].as_f64());
    (median(seconds), std::fs::metadata(trace).map_or(0, |file| file.len()))
}

/// Follows the run as a page does, and returns the bytes that came.
fn follow(port: u16) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the coordinator listens");
        let request = "GET /api/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("it listens on");
        // It ends with the run.
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap_or(0)
    })
}

/// What is told.
enum Way {
    Nothing,
    Spans,
    Pages,
    Trace,
}

/// What a worker of an unclipped step with a few nodes tells.
fn told(at: f64) -> Vec<Span> {
    use SpanKind::{Apply, Compute, Send, Wait};
    let kinds = [Wait, Compute, Compute, Wait, Apply, Wait, Apply, Send, Send, Send];
    let mut now = at;
    let span = |kind| {
        let start = if kind == Send { now - 0.05 } else { now };
        now += 0.01;
        Span { kind, leaves: 1, start, end: start + 0.01 }
    };
    kinds.into_iter().map(span).collect()
}

/// A run of which nothing else is asked.
fn info(clock: Clock) -> RunInfo {
    RunInfo {
        version: String::new(),
        run: String::new(),
        run_dir: String::new(),
        incarnation: 1,
        program: String::new(),
        model: String::new(),
        parameters: 0,
        schema: tally_mnist::schema(),
        microbatches: 8,
        batch_size: 64,
        workers_wanted: 1,
        epochs: 1,
        steps: 1,
        started: clock.origin(),
        config: serde_json::Value::Null,
    }
}

/// What it costs the driver to take the lane of one of so many workers.
fn lanes(workers: u64) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let clock = Clock::start();
    let mut trace =
        Trace::create(&directory.path().join("trace.json"), clock.origin()).expect("it can be written");
    let view = ViewPublisher::new(View::new(info(clock)), clock);
    let series = WorkerSeries::default();
    let mut times = Vec::new();
    for session in 0..workers {
        let mut time = WorkerTime::new(clock.origin());
        let number = time.clock.ask(clock.origin());
        time.clock.answered(number, clock.origin(), clock.origin(), clock.origin());
        series.joined(session, &format!("w{session}"), "CPU", Instant::now());
        trace.joined(session, &format!("w{session}"), clock.origin());
        times.push(time);
    }
    const STEPS: u64 = 50;
    let mut seconds = [0.0; 2];
    for step in 0..STEPS {
        let at = clock.origin() + step as f64;
        let mut taken = Vec::new();
        let started = Instant::now();
        for (session, time) in (0..).zip(&mut times) {
            let lane = time.lane(session, step, &told(at), at + 1.0).expect("its clock is known");
            series.lane(&lane);
            view.change(|view| view.push_lane(session, (&lane).into()));
            taken.push(lane);
        }
        let taken_at = Instant::now();
        taken.iter().for_each(|lane| trace.lane(lane));
        seconds[0] += (taken_at - started).as_secs_f64();
        seconds[1] += taken_at.elapsed().as_secs_f64();
    }
    let [lane, traced] = seconds.map(|seconds| seconds / (STEPS * workers) as f64 * 1e6);
    println!(
        "a lane of one of {workers} workers costs the driver {lane:.1} µs, and {traced:.1} µs more for the trace"
    );
}

/// Renders the metrics of a run with so many workers.
fn render(workers: u64) {
    let exporter = metrics::install().expect("there is no other recorder");
    let series = exporter.workers();
    for session in 0..workers {
        series.joined(
            session,
            &format!("host-{session}.example.org-12345"),
            "CPU, 2 threads",
            Instant::now(),
        );
        let kinds = SpanKind::ALL.into_iter().enumerate();
        let spans = kinds.map(|(at, kind)| {
            let start = 0.1 * at as f64;
            Span { kind, leaves: 1, start, end: start + 0.098_765_432_1 }
        });
        series.lane(&Lane { session, step: 7, error: 0.0, spans: spans.collect() });
        series.confirmed(session, 7, 448);
        series.clock(session, Offset { seconds: 1.5e-5, error: 2.5e-4, round_trip: 5e-4 });
    }
    let mut bytes = 0;
    let times = (0..200).map(|_| {
        let started = Instant::now();
        bytes = exporter.render(&TimeBreakdown::default().snapshot()).len();
        started.elapsed().as_secs_f64()
    });
    let seconds = median(times);
    println!(
        "/metrics with {workers} workers: {:.2} ms, {:.0} KiB; all of it is off the driver, which waits at most for \
         the table",
        seconds * 1e3,
        bytes as f64 / 1024.0
    );
}

fn main() {
    let options = Options::parse();
    render(options.series);
    lanes(options.series);
    let ways = [
        ("nothing is told", Way::Nothing),
        ("spans, metrics and lanes", Way::Spans),
        ("the same, to 8 pages", Way::Pages),
        ("the same, and a trace", Way::Trace),
    ];
    let mut steps = vec![Vec::new(); ways.len()];
    let mut trace = 0;
    for _ in 0..options.rounds {
        for ((_, way), steps) in ways.iter().zip(&mut steps) {
            let (seconds, bytes) = run(options.workers, options.steps, way);
            steps.push(seconds);
            trace = trace.max(bytes);
        }
    }
    println!(
        "{} workers, {} steps, {} rounds; median of the medians:",
        options.workers, options.steps, options.rounds
    );
    let none = median(steps[0].clone());
    for ((what, _), steps) in ways.iter().zip(&steps) {
        let least = steps.iter().copied().fold(f64::INFINITY, f64::min);
        let step = median(steps.clone());
        println!(
            "{what:26} {:.3} ms a step ({:+.0} µs; least {:.3} ms)",
            step * 1e3,
            (step - none) * 1e6,
            least * 1e3
        );
    }
    println!("the trace has {:.0} bytes a step", trace as f64 / f64::from(options.steps));
}
