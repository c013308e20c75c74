//! Several workers on one machine, started as one.

#![allow(missing_docs, clippy::unwrap_used)]

use rustix::process::{Pid, kill_process};
use serde_json::Value;
use tally_tools::cluster::{Coordinator, DEADLINE, RunDir, Signal, Worker, events, run};

/// 200 steps of some tens of milliseconds.
const OPTIONS: [&str; 6] = [
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

/// LIVE-1, and who starts what again: a process that is killed is, one that leaves is not.
#[test]
fn live_1_a_killed_worker_is_started_again_and_all_leave_together() {
    let dir = RunDir::new();
    let coordinator = coordinator(&dir);
    let workers = Worker::start(coordinator.grpc_port(), ["--devices", "0,1", "--name", "here"]);
    dir.wait_for_step(3);
    let killed = children(&workers)[0];
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
    assert!(!children(&workers).contains(&killed));
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
