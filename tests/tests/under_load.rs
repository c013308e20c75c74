//! **TRUST-1** while a run goes on: thousands of connections that mean no good, half-open handshakes, garbage, drips,
//! guessed tokens, sessions that are replayed and forged. The run ends in the bits of the one that was left
//! alone, its workers are never dropped, and one that comes in the middle of it is let in.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::Ordering;
use std::time::Duration;

use tally_coordinator::access::serve::room;
use tally_tests::baseline_run::{coordinator_with, equals_baseline, stop};
use tally_tests::load::member::Impostor;
use tally_tests::load::recorder::Recorder;
use tally_tools::cluster::{RunDir, Worker, events};
use tally_tools::load::{Flood, Target, Visit};
use tally_tools::secrets::Secrets;
use tally_transport::client::ClientAccess;

/// Connections at one time, and those that are opened before it is enough.
const AT_ONCE: usize = 600;
const IN_ALL: u64 = 2000;
/// Long enough for a few steps to be made meanwhile.
const STAY: Duration = Duration::from_millis(500);
/// Steps that are made in the meantime.
const STEPS: u64 = 20;

/// Trains while everything is tried with a coordinator that has these options.
fn besieged(secrets: &Secrets, options: &[&str], access: &ClientAccess) {
    // This process has as many files open as there are connections.
    assert_eq!(room(2 * AT_ONCE as u32), 2 * AT_ONCE, "the system allows too few open files (ulimit -n)");
    let run = RunDir::new();
    let token = secrets.arg("train");
    let coordinator = coordinator_with(&run, "2", 2000, 200, &[&["--token-file", &token], options].concat());
    let port = coordinator.grpc_port();
    let mut show = vec!["--token-file", &token];
    let ca = access.tls_ca.as_ref().map(|path| path.to_str().unwrap());
    show.extend(ca.iter().flat_map(|ca| ["--tls-ca", ca]));
    let worker = |port: u16, name: &str| Worker::start(port, [&show[..], &["--name", name]].concat());
    let recorder = Recorder::start(port);
    let workers = [worker(recorder.port(), "recorded"), worker(port, "other")];
    run.wait_for_step(5);

    let guessed = ClientAccess { token_file: Some(secrets.path("wrong")), ..access.clone() };
    let flood = Flood::start(&Target { port, access: guessed }, Visit::ALL, AT_ONCE, STAY);
    flood.wait_until(|counts| counts.opened.load(Ordering::Relaxed) >= AT_ONCE as u64);
    let late = worker(port, "late");
    let joined = |line: &serde_json::Value| line["event"] == "join" && line["worker"] == "late";
    let journal = run.wait_for("worker that came in the middle", joined);
    let stolen = ClientAccess { token_file: Some(secrets.path("train")), ..access.clone() };
    let impostor = Impostor::new(Target { port, access: stolen });
    for _ in 0..3 {
        assert!(impostor.pretend() >= 2, "the workers are there");
        recorder.say_again(10);
    }
    flood.wait_until(|counts| {
        counts.opened.load(Ordering::Relaxed) >= IN_ALL && counts.denied.load(Ordering::Relaxed) >= 50
    });
    run.wait_for_step(events(&journal, "step").len() as u64 + STEPS);
    stop(&coordinator);
    workers.iter().chain([&late]).for_each(|worker| worker.succeed());

    let counts = flood.counts();
    assert_eq!(counts.let_in.load(Ordering::Relaxed), 0);
    assert!(counts.ended.load(Ordering::Relaxed) > 0, "{counts:?}");
    equals_baseline(&run);
    let (journal, summary) = (run.journal(), run.summary());
    let lost: Vec<_> = events(&journal, "lost").into_iter().filter(|line| line["polite"] == false).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!((&summary["workers_joined"], &summary["workers_lost"]), (&3.into(), &0.into()));
    assert!(!coordinator.stderr().contains("panicked"), "{}", coordinator.stderr());
}

#[test]
fn trust_1_a_run_with_tokens_does_not_notice_thousands_who_have_none() {
    besieged(&Secrets::new(), &[], &ClientAccess::default());
}

#[test]
fn trust_1_a_run_with_tls_does_not_notice_them_either() {
    let secrets = Secrets::new();
    secrets.certificates("ours");
    let [certificate, key] = ["ours-server", "ours-server-key"].map(|name| secrets.arg(name));
    let access = ClientAccess { tls_ca: Some(secrets.path("ours-ca")), ..ClientAccess::default() };
    besieged(&secrets, &["--tls-cert", &certificate, "--tls-key", &key], &access);
}
