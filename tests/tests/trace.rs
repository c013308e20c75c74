//! What `--trace` writes: one clock, one track for each thing at a time, and who took over.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::Value;
use tally_tests::baseline_run::{coordinator_with, equals_baseline};
use tally_tools::cluster::{DEADLINE, RunDir, Worker, events};

/// A span of a trace, in microseconds.
#[derive(Clone, Debug)]
struct Span {
    name: String,
    pid: u64,
    tid: u64,
    start: f64,
    end: f64,
    args: Value,
}

impl Span {
    fn step(&self) -> u64 {
        self.args["step"].as_u64().unwrap()
    }

    /// Whether it lies in another, as far as clocks can tell; times are whole nanoseconds.
    fn lies_in(&self, outer: &Self) -> bool {
        let error = self.args["clock_error_us"].as_f64().unwrap_or(0.0) + 0.01;
        outer.start - error <= self.start && self.end <= outer.end + error
    }
}

fn spans(trace: &[Value]) -> Vec<Span> {
    let complete = trace.iter().filter(|event| event["ph"] == "X");
    complete
        .map(|event| {
            let number = |key: &str| event[key].as_f64().unwrap_or_else(|| panic!("no {key} in {event}"));
            let (start, length) = (number("ts"), number("dur"));
            assert!(start >= 0.0 && length >= 0.0, "{event}");
            Span {
                name: event["name"].as_str().unwrap().into(),
                pid: event["pid"].as_u64().unwrap(),
                tid: event["tid"].as_u64().unwrap(),
                start,
                end: start + length,
                args: event["args"].clone(),
            }
        })
        .collect()
}

/// The processes by name.
fn processes(trace: &[Value]) -> BTreeMap<String, u64> {
    let named = trace.iter().filter(|event| event["name"] == "process_name");
    named.map(|e| (e["args"]["name"].as_str().unwrap().into(), e["pid"].as_u64().unwrap())).collect()
}

#[test]
fn a_trace_shows_each_worker_on_one_clock_and_who_took_over() {
    let (run, directory) = (RunDir::new(), tempfile::tempdir().unwrap());
    let file = directory.path().join("trace.json");
    let trace = ["--trace", file.to_str().unwrap()];
    let coordinator = coordinator_with(&run, "2", 10_000, 2, &trace);
    let workers = Worker::start_many(coordinator.grpc_port(), 2);
    run.wait_for_step(3);
    workers[0].kill9();
    coordinator.succeed();
    equals_baseline(&run);

    let trace: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let (spans, processes, journal) = (spans(&trace), processes(&trace), run.journal());
    let (killed, survivor) = (processes["worker worker-1"], processes["worker worker-2"]);
    let of = |pid: u64| spans.iter().filter(move |span| span.pid == pid);

    // The coordinator's steps are the journal's.
    let coordinators: Vec<&Span> = of(processes["coordinator"]).collect();
    let steps: BTreeMap<u64, &Span> =
        coordinators.iter().filter(|s| s.name == "step").map(|s| (s.step(), *s)).collect();
    assert_eq!(steps.keys().copied().collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    for line in events(&journal, "step") {
        let step = steps[&line["step"].as_u64().unwrap()];
        let seconds = line["seconds"].as_f64().unwrap();
        // The trace's span ends a little later, with the journal's line and the word to workers. It may begin later, by
        // as long as the driver's thread waits for a processor.
        assert!((step.end - step.start) * 1e-6 >= seconds - 0.1, "{step:?} took {seconds} s");
    }
    for part in coordinators.iter().filter(|s| ["reduce", "update", "commit"].contains(&s.name.as_str())) {
        assert!(part.lies_in(steps[&part.step()]), "{part:?}");
    }
    for name in ["test pass", "checkpoint"] {
        assert!(coordinators.iter().any(|span| span.name == name), "no {name}");
    }

    // A worker does one thing after the other, and sends meanwhile.
    let mut tracks: BTreeMap<(u64, u64), Vec<&Span>> = BTreeMap::new();
    for span in of(killed).chain(of(survivor)) {
        tracks.entry((span.pid, span.tid)).or_default().push(span);
    }
    assert_eq!(tracks.len(), 4);
    for track in tracks.values_mut() {
        track.sort_by(|a, b| a.start.total_cmp(&b.start));
        for pair in track.windows(2) {
            assert!(pair[0].end <= pair[1].start + 0.01, "{:?} and {:?}", pair[0], pair[1]);
        }
    }
    let kinds: BTreeSet<&str> = of(survivor).map(|span| span.name.as_str()).collect();
    assert!(kinds.is_superset(&["compute", "send", "wait", "apply", "takeover", "test"].into()), "{kinds:?}");

    // Gradients are computed within their step, by the coordinator's clock; only one that was given
    // to others too, as it was late, may be done after it.
    let late: BTreeSet<u64> =
        events(&journal, "straggler").iter().map(|h| h["step"].as_u64().unwrap()).collect();
    let gradients = spans.iter().filter(|span| ["compute", "takeover"].contains(&span.name.as_str()));
    for span in gradients {
        let step = steps[&span.step()];
        let whole =
            Span { end: if late.contains(&span.step()) { f64::MAX } else { step.end }, ..step.clone() };
        assert!(span.lies_in(&whole), "{span:?} is not in {step:?}");
        let error = span.args["clock_error_us"].as_f64().unwrap();
        assert!(error > 0.0, "{span:?}");
    }

    // The killed worker's microbatches were taken over, by the other one.
    let takeover =
        events(&journal, "takeover").into_iter().find(|t| !late.contains(&t["step"].as_u64().unwrap()));
    let takeover = takeover.unwrap_or_else(|| panic!("nothing was taken over: {journal:?}"));
    let taken = of(survivor).filter(|span| span.name == "takeover" && takeover["step"] == span.step());
    let leaves: u64 = taken.map(|span| span.args["microbatches"].as_u64().unwrap()).sum();
    assert_eq!(takeover["leaves"], leaves);
    let gone = |event: &&Value| event["name"] == "gone" && event["pid"] == killed;
    assert_eq!(trace.iter().filter(gone).count(), 1);
}

/// A crash of the coordinator leaves a trace that only lacks its bracket.
#[test]
fn a_trace_that_is_cut_can_be_opened() {
    let (run, directory) = (RunDir::new(), tempfile::tempdir().unwrap());
    let file = directory.path().join("trace.json");
    let options = ["--local", "--backend", "cpu", "--trace", file.to_str().unwrap()];
    let coordinator = coordinator_with(&run, "2", 1000, 100, &options);
    let end = Instant::now() + DEADLINE;
    while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("\"commit\"")) {
        assert!(Instant::now() < end && coordinator.is_running(), "{}", coordinator.stderr());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    coordinator.kill9();
    let text = std::fs::read_to_string(&file).unwrap() + "]";
    let trace: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(processes(&trace).len(), 3, "a coordinator and its two workers");
}

#[test]
fn a_trace_that_cannot_be_begun_is_told_before_anything_is_made() {
    let run = RunDir::new();
    let coordinator = coordinator_with(&run, "1", 0, 1, &["--trace", "/no/such/directory/trace.json"]);
    coordinator.output().is_refused(&["/no/such/directory/trace.json", "--trace"]);
    assert!(!run.path().exists());
}
