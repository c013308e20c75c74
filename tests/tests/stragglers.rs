//! Workers that freeze, are slow, or compute wrong bits: **LIVE-1**, **SUM-1**.

#![allow(clippy::unwrap_used, clippy::panic)]

use tally_tests::baseline_run::{coordinator, coordinator_with, equals_baseline, stop};
use tally_tools::cluster::{RunDir, Signal, Worker, events};

fn steps(run: &RunDir) -> u64 {
    events(&run.journal(), "step").len() as u64
}

#[test]
fn live_1_a_frozen_worker_holds_up_no_step_and_comes_back_after_forty() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "3", 500, 200);
    let workers = Worker::start_many(coordinator.grpc_port(), 3);
    run.wait_for_step(8);
    workers[1].signal(Signal::STOP);
    let frozen_at = steps(&run);
    run.wait_for_step(frozen_at + 40);
    let journal = run.journal();
    let hedges = events(&journal, "straggler");
    assert!(hedges.iter().any(|hedge| hedge["worker"] == "worker-2"), "{hedges:?}");
    workers[1].signal(Signal::CONT);
    // It has followed the forty steps, or was given the state of the newest, and works again.
    let awake_at = steps(&run);
    run.wait_for("a step of three workers", |line| {
        line["event"] == "step" && line["workers"] == 3 && line["step"].as_u64().unwrap() > awake_at
    });
    stop(&coordinator);
    equals_baseline(&run);
    assert!(!coordinator.stderr().contains("drifted"), "{}", coordinator.stderr());
    workers.iter().for_each(|worker| worker.succeed());
}

#[test]
fn live_1_work_goes_out_in_proportion_to_speed() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "2", 500, 200);
    let fast = Worker::start(coordinator.grpc_port(), ["--name", "fast"]);
    let slow = Worker::start_quirky(coordinator.grpc_port(), "slower=3", ["--name", "slow"]);
    run.wait_for_step(30);
    let address = format!("127.0.0.1:{}", coordinator.grpc_port());
    let status = tally_tools::cluster::run("coordinator", ["status", "--connect", &address, "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let samples = |name: &str| {
        let workers = status["workers"].as_array().unwrap();
        workers.iter().find(|w| w["name"] == name).unwrap()["samples"].as_f64().unwrap()
    };
    // Three to one, in eighths: six leaves to two.
    let ratio = samples("fast") / samples("slow");
    assert!(ratio > 1.8, "the fast one computed {ratio:.2} times as many samples");
    stop(&coordinator);
    fast.succeed();
    slow.succeed();
    equals_baseline(&run);
}

#[test]
fn sum_1_an_audit_finds_a_worker_that_computes_wrong_bits() {
    let run = RunDir::new();
    let coordinator = coordinator_with(&run, "3", 200, 200, &["--audit-rate", "1"]);
    let port = coordinator.grpc_port();
    let honest = [Worker::start(port, ["--name", "a"]), Worker::start(port, ["--name", "b"])];
    let _bad = Worker::start_quirky(port, "flip=1", ["--name", "bad"]);
    let journal = run.wait_for("an audit", |line| line["event"] == "audit" && line["alone"] == "bad");
    let lost = events(&journal, "lost");
    assert!(lost.iter().all(|line| line["worker"] == "bad"), "{lost:?}");
    stop(&coordinator);
    honest.iter().for_each(|worker| worker.succeed());
    assert!(run.summary()["audits_differed"].as_u64().unwrap() >= 1);
}

#[test]
fn sum_1_audits_of_honest_workers_change_nothing() {
    let run = RunDir::new();
    let coordinator = coordinator_with(&run, "3", 100, 10, &["--audit-rate", "0.5"]);
    let workers = Worker::start_many(coordinator.grpc_port(), 3);
    coordinator.succeed();
    workers.iter().for_each(|worker| worker.succeed());
    equals_baseline(&run);
    let summary = run.summary();
    let (audits, differed) =
        (summary["audits"].as_u64().unwrap(), summary["audits_differed"].as_u64().unwrap());
    assert!((8..=32).contains(&audits) && differed == 0, "{audits} audits of 40 steps, {differed} differed");
}
