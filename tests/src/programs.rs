//! Burn programs as clusters of processes: the examples, and the program with faults.

use std::path::PathBuf;

use tally_tools::cluster::{Coordinator, Output, Process, RunDir, Worker, tool};

/// A program's binary.
#[derive(Debug)]
pub struct Program {
    binary: PathBuf,
    /// Options of the program and of the run.
    options: Vec<String>,
}

impl Program {
    /// The binary of this name, brought up to date, with these options for its coordinator.
    #[must_use]
    pub fn new(name: &str, options: &[&str]) -> Self {
        Self { binary: tool(name), options: options.iter().map(|&option| option.to_owned()).collect() }
    }

    /// Starts a coordinator on free ports.
    #[must_use]
    pub fn coordinator(&self, args: &[&str]) -> Coordinator {
        let own = ["coordinator", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        let options = self.options.iter().map(String::as_str);
        let all: Vec<&str> = own.into_iter().chain(options).chain(args.iter().copied()).collect();
        Process::start(&self.binary, all).into()
    }

    /// Starts a worker with one thread.
    #[must_use]
    pub fn worker(&self, port: u16, args: &[&str]) -> Worker {
        let address = format!("127.0.0.1:{port}");
        let own = ["worker", "--connect", &address, "--backend", "cpu", "--threads", "1"];
        Process::start(&self.binary, [&own[..], args].concat()).into()
    }

    /// Trains to the end with so many workers in processes of their own.
    #[must_use]
    pub fn train(&self, workers: usize, args: &[&str]) -> RunDir {
        let run = RunDir::new();
        let count = workers.to_string();
        let coordinator = self.coordinator(&[&["--workers", &count, "--run-dir", run.arg()], args].concat());
        let port = coordinator.grpc_port();
        let workers: Vec<Worker> = (0..workers).map(|_| self.worker(port, &[])).collect();
        coordinator.succeed();
        workers.iter().for_each(|worker| {
            worker.succeed();
        });
        run
    }

    /// Trains to the end in one process with so many workers.
    #[must_use]
    pub fn train_local(&self, workers: usize) -> RunDir {
        let run = RunDir::new();
        let count = workers.to_string();
        let own = ["local", "--workers", &count, "--backend", "cpu", "--run-dir", run.arg()];
        let ports = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        let options = self.options.iter().map(String::as_str);
        let all: Vec<&str> = own.into_iter().chain(ports).chain(options).collect();
        Coordinator::from(Process::start(&self.binary, all)).succeed();
        run
    }

    /// Runs one of its commands to the end, with the program's options.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        let options = self.options.iter().map(String::as_str);
        Process::start(&self.binary, args.iter().copied().chain(options)).output()
    }
}
