//! Workers that are lost again and again before they have done a step: they connect ever more seldom, and both sides say why.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use tally_tools::cluster::{Coordinator, DEADLINE, Relay, RunDir, Worker};

fn unproductive_sessions(http_port: u16) -> f64 {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, http_port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix("tally_unproductive_sessions_total "));
    line.expect("it is there from the start").parse().unwrap()
}

/// As over a tunnel with a smaller MTU than the machines at its ends believe: a hello gets through, a state does not.
#[test]
fn a_worker_whose_large_packets_vanish_connects_ever_more_seldom_and_both_sides_say_why() {
    let run = RunDir::new();
    let model = ["--model", "synthetic:parameters=200000,us-per-sample=500", "--train-limit", "640"];
    let cluster = ["--run-dir", run.arg(), "--test-limit", "5", "--epochs", "400"];
    let coordinator = Coordinator::start([&cluster[..], &model].concat());
    assert_eq!(unproductive_sessions(coordinator.http_port()), 0.0);
    let relay = Relay::start(coordinator.grpc_port());
    relay.narrow(8000);
    let begun = Instant::now();
    let worker = Worker::start(relay.port(), ["--stay", "--name", "far", "--no-shared-memory"]);
    worker.wait_for("3 sessions in a row ended before a step was done", DEADLINE);
    assert!(begun.elapsed() >= Duration::from_secs(1), "the third session began too soon");
    let told = worker.wait_for_line("2 sessions in a row");
    assert!(
        told.contains("MTU") && told.contains("1.6 MB") && told.contains("trying again in 1 s"),
        "{told}"
    );
    let told = coordinator.wait_for_line("was lost 2 times");
    assert!(told.contains("worker far") && told.contains("MTU") && told.starts_with("warning: "), "{told}");
    // The worker may notice the end of its third session before the coordinator does.
    let waiting = Instant::now();
    while unproductive_sessions(coordinator.http_port()) < 3.0 {
        assert!(waiting.elapsed() < DEADLINE, "the third session was never counted");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(unproductive_sessions(coordinator.http_port()) <= 4.0, "a session was counted twice");
    // When the path is mended all is well again.
    relay.mend();
    run.wait_for_step(5);
}
