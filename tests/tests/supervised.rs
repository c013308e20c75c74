//! Under a supervisor that starts the same two commands again and again, as Kubernetes, systemd
//! and Slurm do: `coordinator --supervised --linger` and `worker --stay`.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use tally_tests::free_port;
use tally_tools::cluster::{Coordinator, DEADLINE, RunDir, Signal, Worker, train_local};

/// 32 steps of some tens of milliseconds.
const OPTIONS: [&str; 10] = [
    "--batch-size",
    "64",
    "--model",
    "synthetic:parameters=50000,us-per-sample=800",
    "--train-limit",
    "500",
    "--test-limit",
    "12",
    "--epochs",
    "4",
];

/// The same command for every start. The coordinator is told the port, so that its successor can have it too.
fn start(run: &RunDir, port: u16) -> Coordinator {
    let address = format!("127.0.0.1:{port}");
    let cluster = ["--supervised", "--linger", "--run-dir", run.arg(), "--listen", &address];
    Coordinator::start([&cluster[..], &OPTIONS[..]].concat())
}

fn is_well(http_port: u16) -> bool {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, http_port)).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.starts_with("HTTP/1.1 200")
}

/// RESUME-1 without anyone's help.
#[test]
fn resume_1_the_same_command_goes_on_with_the_run_until_it_is_done() {
    let (run, port) = (RunDir::new(), free_port());
    let first = start(&run, port);
    let worker = Worker::start(port, ["--stay"]);
    run.wait_for_step(5);
    first.signal(Signal::TERM);
    let stopped = first.output();
    assert_eq!(
        stopped.status.code(),
        Some(75),
        "a job that isn't done must not look done:\n{}",
        stopped.stderr
    );
    worker.wait_for("waiting for the next coordinator", DEADLINE);

    let second = start(&run, port);
    second.wait_for("resuming at step", DEADLINE);
    second.wait_for("until a signal comes", DEADLINE);
    assert!(is_well(second.http_port()), "a run that is done can still be looked at");
    assert!(second.is_running() && worker.is_running());
    second.signal(Signal::TERM);
    second.succeed();
    // Done is done, however often it is started.
    let third = start(&run, port);
    third.wait_for("until a signal comes", DEADLINE);
    third.signal(Signal::TERM);
    third.succeed();

    worker.signal(Signal::TERM);
    worker.succeed();
    assert_eq!(run.summary()["outcome"], "done");
    assert_eq!(run.sha256(), train_local(1, &OPTIONS).sha256());
}
