//! The coordinator dies and comes back: **RESUME-1**.
//!
//! While a worker that holds the newest committed step lives, nothing is computed again.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;

use serde_json::Value;
use tally_tests::baseline_run::{coordinator, equals_baseline, stop};
use tally_tools::cluster::{Coordinator, Relay, RunDir, Signal, Worker, digests};

/// No checkpoint before the end of the first epoch, after four steps; a step takes 50 ms.
const US_PER_SAMPLE: u32 = 1500;

fn last_step(run: &RunDir) -> u64 {
    digests(&run.journal()).len() as u64
}

fn restart(run: &RunDir, relay: &Relay) -> Coordinator {
    let coordinator = Coordinator::start(["--workers", "2", "--resume", run.arg()]);
    relay.retarget(coordinator.grpc_port());
    coordinator
}

/// The step from which the run went on after its newest start.
fn went_on_from(journal: &[Value]) -> (u64, bool) {
    let start = journal.iter().rposition(|l| l["event"] == "start").unwrap();
    let adopted = journal[start..].iter().find(|l| l["event"] == "adopt");
    (adopted.unwrap_or(&journal[start])["step"].as_u64().unwrap(), adopted.is_some())
}

#[test]
fn resume_1_a_killed_coordinator_goes_on_from_what_its_workers_hold() {
    let run = RunDir::new();
    let mut coordinator = coordinator(&run, "2", US_PER_SAMPLE, 200);
    let relay = Relay::start(coordinator.grpc_port());
    let workers = Worker::start_many(relay.port(), 2);
    for step in [6, 15, 25] {
        run.wait_for_step(step);
        coordinator.kill9();
        let last = last_step(&run);
        coordinator = restart(&run, &relay);
        run.wait_for_step(last + 1);
        let (from, adopted) = went_on_from(&run.journal());
        // A step of which only the journal knows is computed again; no other is. (Every fourth has a checkpoint.)
        let known = adopted || from.is_multiple_of(4);
        assert!(known && from + 1 >= last, "went on from {from} of {last}, adopted: {adopted}");
    }
    stop(&coordinator);
    for worker in &workers {
        worker.succeed();
        assert_eq!(worker.stderr().matches("lost the coordinator").count(), 3, "{}", worker.stderr());
    }
    equals_baseline(&run);
}

#[test]
fn resume_1_without_workers_it_goes_on_from_the_checkpoint() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "2", US_PER_SAMPLE, 200);
    let relay = Relay::start(coordinator.grpc_port());
    let workers = Worker::start_many(relay.port(), 2);
    run.wait_for_step(6);
    coordinator.kill9();
    let last = last_step(&run);
    workers.iter().for_each(|worker| worker.kill9());
    let coordinator = restart(&run, &relay);
    let _workers = Worker::start_many(relay.port(), 2);
    run.wait_for_step(last + 1);
    let (from, adopted) = went_on_from(&run.journal());
    assert!(!adopted && from.is_multiple_of(4) && from <= last, "went on from {from} of {last}");
    stop(&coordinator);
    equals_baseline(&run);
}

/// The workers' run is another one's, or their journal has lost its end: what they hold is not
/// taken, and they are given the right state.
#[test]
fn resume_1_a_state_that_the_journal_does_not_confirm_is_not_adopted() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "1", US_PER_SAMPLE, 200);
    let relay = Relay::start(coordinator.grpc_port());
    let _worker = Worker::start(relay.port(), ["--name", "worker-1"]);
    run.wait_for_step(7);
    coordinator.kill9();
    // As after a loss of power: nothing after the synced checkpoint of step 4.
    let path = run.path().join("journal.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text.lines().take_while(|line| !line.contains(r#""step":5,"#)).collect();
    fs::write(&path, kept.join("\n") + "\n").unwrap();
    assert_eq!(last_step(&run), 4);
    // A checkpoint never outlives its journal's lines, so a newer one would not be there.
    for newer in run.checkpoints().into_iter().filter(|path| !path.ends_with("step-00000004")) {
        fs::remove_dir_all(newer).unwrap();
    }
    let coordinator = restart(&run, &relay);
    run.wait_for_step(8);
    assert_eq!(went_on_from(&run.journal()), (4, false));
    stop(&coordinator);
    equals_baseline(&run);
}

#[test]
fn resume_1_two_coordinators_cannot_share_a_run_directory() {
    let run = RunDir::new();
    let coordinator = coordinator(&run, "1", US_PER_SAMPLE, 200);
    let worker = Worker::start(coordinator.grpc_port(), [""; 0]);
    run.wait_for_step(2);
    let ports = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let second = tally_tools::cluster::run("coordinator", [&ports[..], &["--resume", run.arg()]].concat());
    second.is_refused(&["is in use"]);
    stop(&coordinator);
    worker.succeed();
    equals_baseline(&run);
}

/// A coordinator that was thought dead, and replaced, wakes up: its workers do not come back
/// to it, and it cannot write to the run.
#[test]
fn resume_1_a_worker_refuses_a_coordinator_that_was_replaced() {
    let run = RunDir::new();
    let old = coordinator(&run, "1", US_PER_SAMPLE, 200);
    let relay = Relay::start(old.grpc_port());
    let worker = Worker::start(relay.port(), ["--log-level", "info"]);
    run.wait_for_step(6);
    // A copy of the directory stands for a directory whose lock was lost.
    let copy = RunDir::new();
    old.signal(Signal::STOP);
    copy_all(run.path(), copy.path());
    let new = restart(&copy, &relay);
    relay.cut();
    relay.mend();
    copy.wait_for_step(8);
    old.signal(Signal::CONT);
    relay.retarget(old.grpc_port());
    new.kill9();
    worker.wait_for("has taken over", tally_tools::cluster::DEADLINE);
    let new = restart(&copy, &relay);
    copy.wait_for_step(12);
    stop(&new);
    equals_baseline(&copy);
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_all(&entry.path(), &target);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
