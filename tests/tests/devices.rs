//! Several workers on one machine, started as one.

#![allow(missing_docs, clippy::unwrap_used)]

use rustix::process::{Pid, kill_process};
use serde_json::Value;
use tally_tools::cluster::{Coordinator, DEADLINE, Process, RunDir, Signal, Worker, binaries, events, run};

/// 200 steps of some tens of milliseconds.
const OPTIONS: [&str; 8] = [
    "--batch-size",
    "64",
    "--model",
    "synthetic:parameters=50000,us-per-sample=800",
    "--train-limit",
    "12800",
    "--test-limit",
    "12",
];

fn coordinator(run: &RunDir) -> Coordinator {
    let cluster = ["--epochs", "1", "--workers", "2", "--run-dir", run.arg()];
    Coordinator::start([&cluster[..], &OPTIONS[..]].concat())
}

/// The processes that a process has started and not yet waited for, in the order of their start.
fn children(of: &Worker) -> Vec<i32> {
    let pid = of.pid();
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Of workers whose names begin with `here-`.
fn one_is_killed_and_comes_back(dir: &RunDir, workers: &Worker) {
    let killed = children(workers)[0];
    let line = std::fs::read_to_string(format!("/proc/{killed}/cmdline")).unwrap();
    let name = line.split('\0').find(|argument| argument.starts_with("here-")).unwrap();
    kill_process(Pid::from_raw(killed).unwrap(), Signal::KILL).unwrap();
    workers.wait_for("starting it again", DEADLINE);
    let lost = |line: &Value| line["event"] == "lost" && line["worker"] == name && line["polite"] == false;
    let journal = dir.wait_for("the killed worker's loss", lost);
    let gone = journal.iter().find(|line| lost(line)).unwrap()["session"].as_u64();
    dir.wait_for("its return", |line| {
        line["event"] == "join" && line["worker"] == name && line["session"].as_u64() > gone
    });
    assert!(!children(workers).contains(&killed));
}

/// LIVE-1, and who starts what again: a process that is killed is, one that leaves is not.
#[test]
fn live_1_a_killed_worker_is_started_again_and_all_leave_together() {
    let dir = RunDir::new();
    let coordinator = coordinator(&dir);
    let workers = Worker::start(coordinator.grpc_port(), ["--devices", "0,1", "--name", "here"]);
    dir.wait_for_step(3);
    one_is_killed_and_comes_back(&dir, &workers);
    workers.signal(Signal::TERM);
    assert_eq!(workers.wait().code(), Some(75), "{}", workers.stderr());
}

#[test]
fn they_end_with_the_run_and_each_is_only_one_whoever_said_so() {
    let dir = RunDir::new();
    let coordinator = coordinator(&dir);
    let file = dir.path().with_extension("toml");
    std::fs::write(&file, "[worker]\ndevices = \"0,1\"\nname = \"here\"\n").unwrap();
    let workers = Worker::start(coordinator.grpc_port(), ["--config", file.to_str().unwrap()]);
    coordinator.succeed();
    workers.succeed();
    let journal = dir.journal();
    let mut joined: Vec<_> = events(&journal, "join").iter().map(|line| line["worker"].clone()).collect();
    joined.sort_by_key(Value::to_string);
    assert_eq!(joined, ["here-0", "here-1"]);
}

#[test]
fn a_device_is_named_once() {
    let zero = run("worker", ["--devices", "0,0"]);
    assert_eq!(zero.status.code(), Some(2), "{}", zero.stderr);
    assert!(zero.stderr.contains("device 0 is named twice"), "{}", zero.stderr);
}

/// As an upgrade of the package does it, while the old version runs.
#[test]
fn live_1_a_worker_is_started_again_from_the_version_that_runs_when_its_file_was_replaced() {
    let dir = RunDir::new();
    let coordinator = coordinator(&dir);
    // A name of its own for the same file, so that taking it away is felt by nobody else.
    let program = binaries().join(format!("worker-{}", std::process::id()));
    std::fs::hard_link(binaries().join("worker"), &program).unwrap();
    let address = format!("127.0.0.1:{}", coordinator.grpc_port());
    let options =
        ["--connect", &address, "--backend", "cpu", "--threads", "1", "--devices", "0,1", "--name", "here"];
    let workers = Worker::from(Process::start(&program, options));
    dir.wait_for_step(3);
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "another version").unwrap();
    one_is_killed_and_comes_back(&dir, &workers);
    std::fs::remove_file(&program).unwrap();
    workers.signal(Signal::TERM);
    assert_eq!(workers.wait().code(), Some(75), "{}", workers.stderr());
}
