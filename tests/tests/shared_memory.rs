//! Workers on the coordinator's machine hand their gradients over in shared memory: **SUM-1**,
//! **REP-1**, **TRUST-1**.

#![allow(clippy::unwrap_used)]

use tally_tests::baseline_run::{coordinator, equals_baseline};
use tally_tools::cluster::{RunDir, Signal, Worker, events};

/// Three who share, one who does not: the same bits as without any of it.
#[test]
fn sum_1_rep_1_chunks_in_shared_memory_have_the_bits_of_those_sent() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "4", 500, 10);
    let workers = Worker::start_many(coordinator.grpc_port(), 4);
    coordinator.succeed();
    equals_baseline(&run);
    for (number, worker) in (1..).zip(&workers) {
        worker.succeed();
        let shares = worker.stderr().contains("gradients through shared memory");
        assert_eq!(shares, cfg!(target_os = "linux") && number % 2 == 1, "{}", worker.stderr());
    }
    assert!(events(&run.journal(), "lost").iter().all(|line| line["polite"] == true));
}

/// One that stops reading keeps what it was pointed to: the others' sums are written elsewhere,
/// and when it goes on it finds the numbers that it was promised.
#[test]
#[cfg(target_os = "linux")]
fn rep_1_a_frozen_reader_finds_what_it_was_pointed_to() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "3", 2000, 25);
    let port = coordinator.grpc_port();
    let workers: Vec<Worker> =
        ["a", "b", "c"].iter().map(|name| Worker::start(port, ["--name", name])).collect();
    for round in 1..=5 {
        run.wait_for_step(16 * round - 8);
        workers[1].signal(Signal::STOP);
        run.wait_for_step(16 * round);
        workers[1].signal(Signal::CONT);
    }
    coordinator.succeed();
    equals_baseline(&run);
    let told = coordinator.stderr();
    assert!(!told.contains("drifted") && !told.contains("digest"), "{told}");
    workers.iter().for_each(|worker| worker.succeed());
}
