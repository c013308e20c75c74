//! Workers die, come late, leave and come back: **LIVE-1**, **DATA-1**, **REP-1**.
//!
//! Each run's journal has the digest of parameters and momentum after every step. They are
//! compared with those of a run of the same seed that nobody disturbed, so a test may stop
//! its run once it has seen enough.

#![allow(clippy::unwrap_used, clippy::panic)]

use tally_tests::baseline_run::{coordinator, equals_baseline, options, stop};
use tally_tools::cluster::{Coordinator, RunDir, Signal, Worker, events};

#[test]
fn live_1_data_1_a_killed_worker_changes_no_bit_and_loses_no_sample() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "3", 2000, 20);
    let workers = Worker::start_many(coordinator.grpc_port(), 3);
    run.wait_for_step(9);
    workers[1].kill9();
    coordinator.succeed();

    equals_baseline(&run);
    let (summary, journal) = (run.summary(), run.journal());
    assert_eq!((&summary["outcome"], &summary["steps"]), (&"done".into(), &80.into()));
    assert_eq!((&summary["workers_joined"], &summary["workers_lost"]), (&3.into(), &1.into()));
    let lost = events(&journal, "lost");
    assert_eq!((&lost[0]["worker"], &lost[0]["polite"]), (&"worker-2".into(), &false.into()));
    // No step was skipped or started again: others computed its microbatches.
    assert!(events(&journal, "abort").is_empty(), "{journal:?}");
    // REP-1: those that were left stayed replicas to the end.
    workers[0].succeed();
    workers[2].succeed();
    assert!(!coordinator.stderr().contains("drifted"), "{}", coordinator.stderr());
}

/// The step in flight goes on with the survivor: the death is noticed, and the work
/// dealt again, within a step that takes seconds.
#[test]
fn live_1_the_step_in_flight_survives_its_worker() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "2", 30_000, 1);
    let workers = Worker::start_many(coordinator.grpc_port(), 2);
    run.wait_for_step(1);
    // Half of 64 samples take it about a second; it is now at the first of them.
    workers[0].kill9();
    let journal = run.wait_for("takeover", |line| line["event"] == "takeover");
    let step = events(&journal, "takeover")[0]["step"].as_u64().unwrap();
    run.wait_for_step(step);
    stop(&coordinator);
    equals_baseline(&run);
    let journal = run.journal();
    assert!(events(&journal, "abort").is_empty(), "{journal:?}");
    let taken = events(&journal, "step")[step as usize - 1];
    assert_eq!(
        taken["samples"],
        if step.is_multiple_of(4) { 250 - 3 * 64 } else { 64 },
        "the batch did not shrink"
    );
}

#[test]
fn rep_1_a_worker_that_joins_late_takes_part() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "1", 1000, 100);
    let port = coordinator.grpc_port();
    let first = Worker::start(port, ["--name", "early"]);
    run.wait_for_step(2);
    let late = Worker::start(port, ["--name", "late"]);
    let journal = run.wait_for("join of the late one", |l| l["event"] == "join" && l["worker"] == "late");
    let joined = events(&journal, "join")[1]["step"].as_u64().unwrap();
    assert!(joined >= 2, "it joined at step {joined}");
    run.wait_for("step of two workers", |line| line["event"] == "step" && line["workers"] == 2);
    run.wait_for_step(joined + 4);
    stop(&coordinator);
    equals_baseline(&run);
    assert_eq!((&run.summary()["workers_joined"], &run.summary()["workers_lost"]), (&2.into(), &0.into()));
    for worker in [first, late] {
        worker.succeed();
    }
}

#[test]
fn live_1_a_worker_may_leave_politely() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "2", 1000, 100);
    let workers = Worker::start_many(coordinator.grpc_port(), 2);
    run.wait_for_step(3);
    workers[0].signal(Signal::INT);
    // To a supervisor it must not look as if its run were done.
    assert_eq!(workers[0].wait().code(), Some(75));
    assert!(workers[0].stderr().contains("left the cluster"), "{}", workers[0].stderr());
    let journal = run.wait_for("loss", |line| line["event"] == "lost");
    let left = events(&journal, "lost")[0];
    assert_eq!((&left["worker"], &left["polite"]), (&"worker-1".into(), &true.into()));
    run.wait_for_step(left["step"].as_u64().unwrap() + 5);
    stop(&coordinator);
    equals_baseline(&run);
    assert_eq!(run.summary()["workers_lost"], 0, "a polite leave is no loss");
}

#[test]
fn live_1_the_only_worker_may_be_replaced() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "1", 1500, 5);
    let port = coordinator.grpc_port();
    let first = Worker::start(port, ["--name", "first"]);
    run.wait_for_step(3);
    first.kill9();
    coordinator.wait_for_line("worker first is gone");
    let second = Worker::start(port, ["--name", "second"]);
    coordinator.succeed();
    second.succeed();
    equals_baseline(&run);
    let summary = run.summary();
    assert_eq!((&summary["outcome"], &summary["steps"]), (&"done".into(), &20.into()));
    assert_eq!((&summary["workers_joined"], &summary["workers_lost"]), (&2.into(), &1.into()));
}

/// More workers than microbatches: the last ones are told that they are spares, compute
/// nothing, follow every step, and take over when they are needed.
#[test]
fn live_1_a_spare_takes_over() {
    let run = RunDir::new();
    let cluster = ["--workers", "3", "--microbatches", "2", "--run-dir", run.arg()].map(String::from);
    let coordinator = Coordinator::start(cluster.into_iter().chain(options(2000, 100)));
    let workers = Worker::start_many(coordinator.grpc_port(), 3);
    run.wait_for_step(3);
    let journal = run.journal();
    let most = events(&journal, "step").iter().filter_map(|step| step["workers"].as_u64()).max();
    assert_eq!(most, Some(2), "two leaves are two workers' work");
    workers[0].kill9();
    let journal = run.wait_for("loss", |line| line["event"] == "lost");
    let lost = events(&journal, "lost")[0]["step"].as_u64().unwrap();
    // One of three is dead, and two still compute.
    run.wait_for("step", |l| {
        l["event"] == "step" && l["step"].as_u64() > Some(lost + 1) && l["workers"] == 2
    });
    stop(&coordinator);
    let summary = run.summary();
    assert_eq!((&summary["samples_lost"], &summary["samples_duplicated"]), (&0.into(), &0.into()));
}
