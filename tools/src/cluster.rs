//! Real clusters: the `coordinator` and `worker` binaries as child processes.
//!
//! Ports are always free ones that the system picks; a child lives no longer than its
//! handle, which kills it when dropped.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub use crate::process::{DEADLINE, Output, Process, without_options};
pub use crate::relay::{Relay, free_port};
pub use crate::run_dir::{RunDir, digests, events};
pub use rustix::process::Signal;

/// The directory of the `coordinator` and `worker` binaries, brought up to date once.
///
/// They are those of the profile that the current executable was built in, unless
/// `TALLY_BIN_DIR` names a directory, which is then taken as it is.
///
/// # Panics
/// If they cannot be built.
pub fn binaries() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| match env::var_os("TALLY_BIN_DIR") {
        Some(directory) => directory.into(),
        None => build(&["coordinator", "worker"]),
    })
}

/// A program of this package, brought up to date; in the same directory.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    env::var_os("TALLY_BIN_DIR").map_or_else(|| build(&[name]), PathBuf::from).join(name)
}

/// Has cargo build these programs beside the current executable, `target/PROFILE/[deps/]NAME`.
///
/// Nextest runs every test in a process of its own; the first of a run builds for all, and
/// leaves the run's number behind to say so.
fn build(programs: &[&str]) -> PathBuf {
    let this = env::current_exe().expect("the current executable has a path");
    let in_profile = |dir: &Path| dir.file_name().is_none_or(|n| n != "deps" && n != "examples");
    let directory = this.ancestors().skip(1).find(|dir| in_profile(dir)).expect("it lies in a directory");
    let run = env::var("NEXTEST_RUN_ID").unwrap_or_default();
    let built_by = directory.join(format!("tally-{}.run", programs.join("-")));
    if !run.is_empty() && fs::read_to_string(&built_by).is_ok_and(|last| last == run) {
        return directory.into();
    }
    let name = |path: &Path| path.file_name().map(OsStr::to_owned).expect("a directory has a name");
    let profile = match name(directory) {
        debug if debug == "debug" => "dev".into(),
        other => other,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    // What cargo tells this test of its package; ring's build script runs again when it differs.
    let of_this_package = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_")
    };
    for (name, _) in env::vars_os().filter(|(name, _)| of_this_package(name)) {
        command.env_remove(name);
    }
    let status = command
        .args(["build", "--quiet", "--workspace", "--profile"])
        .arg(profile)
        .args(programs.iter().flat_map(|program| ["--bin", program]))
        .arg("--target-dir")
        .arg(directory.parent().expect("a profile's directory lies in the target directory"))
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .status();
    let built = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    assert!(built, "cannot build the binaries ({status:?}); name their directory in TALLY_BIN_DIR");
    if !run.is_empty() {
        // Failing to say so costs time alone.
        let _ = fs::write(&built_by, run);
    }
    directory.into()
}

/// Runs a binary to its end: for the commands that print something, and for bad input.
///
/// # Panics
/// If it can't be started or does not end.
pub fn run(binary: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    run_with(binary, &[], args)
}

/// The same with variables in its environment.
///
/// # Panics
/// If it can't be started or does not end.
pub fn run_with(
    binary: &str,
    variables: &[(&str, &str)],
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Output {
    Process::start_with(&binaries().join(binary), variables, args).output()
}

/// Trains to the end with workers in the coordinator's process.
///
/// # Panics
/// If the run does not end well.
pub fn train_local(workers: usize, options: &[&str]) -> RunDir {
    let run = RunDir::new();
    let workers = workers.to_string();
    let cluster = ["--local", "--workers", &workers, "--run-dir", run.arg()];
    let defaults = [("--backend", "cpu"), ("--threads", "1")];
    Coordinator::start(with_defaults([&cluster[..], options].concat(), &defaults)).succeed();
    run
}

/// Trains to the end with workers in processes of their own, which must end well too.
///
/// # Panics
/// If a process does not end well.
pub fn train_apart(workers: usize, options: &[&str]) -> RunDir {
    let run = RunDir::new();
    let count = workers.to_string();
    let cluster = ["--workers", &count, "--run-dir", run.arg()];
    let coordinator = Coordinator::start([&cluster[..], options].concat());
    let workers = Worker::start_many(coordinator.grpc_port(), workers);
    coordinator.succeed();
    for worker in &workers {
        worker.succeed();
    }
    run
}

/// The arguments, and each default whose option is not among them.
fn with_defaults(
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    defaults: &[(&str, &str)],
) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
    for (option, value) in defaults {
        if !args.iter().any(|given| given == option) {
            args.extend([OsString::from(option), OsString::from(value)]);
        }
    }
    args
}

/// A coordinator's process.
#[derive(Debug)]
pub struct Coordinator(Process);

impl Coordinator {
    /// Starts one on free ports of the loopback interface, unless `args` say otherwise. Its
    /// working directory is a temporary one.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let defaults = [("--listen", "127.0.0.1:0"), ("--http-listen", "127.0.0.1:0")];
        Self(Process::start(&binaries().join("coordinator"), with_defaults(args, &defaults)))
    }

    /// The port that workers connect to. A coordinator with `--local` does not tell it.
    ///
    /// # Panics
    /// If the coordinator ends without saying it.
    pub fn grpc_port(&self) -> u16 {
        self.port_after("listening on ")
    }

    /// The port of the dashboard and `/metrics`.
    ///
    /// # Panics
    /// If the coordinator ends without saying it.
    pub fn http_port(&self) -> u16 {
        self.port_after("dashboard and metrics on ")
    }

    /// The port of the address behind `words`.
    fn port_after(&self, words: &str) -> u16 {
        let line = self.wait_for_line(words);
        let address = line.split_once(words).expect("the line has the words").1;
        let address = address.split_once("://").map_or(address, |(_, address)| address);
        // With --log-format json a quotation mark ends it.
        let end = address.find([';', '/', '"']).unwrap_or(address.len());
        address[..end]
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .expect("an address has a port")
    }
}

/// One that was started in another way.
impl From<Process> for Coordinator {
    fn from(process: Process) -> Self {
        Self(process)
    }
}

impl Deref for Coordinator {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.0
    }
}

/// A worker's process.
#[derive(Debug)]
pub struct Worker(Process);

impl Worker {
    /// Starts one that connects to `port` of the loopback interface and computes with one
    /// thread of the CPU, unless `args` say otherwise.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(port: u16, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::start_with(port, &[], args)
    }

    /// The same with variables in its environment.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start_with(
        port: u16,
        variables: &[(&str, &str)],
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Self {
        let address = format!("127.0.0.1:{port}");
        let defaults = [("--connect", address.as_str()), ("--backend", "cpu"), ("--threads", "1")];
        Self(Process::start_with(&binaries().join("worker"), variables, with_defaults(args, &defaults)))
    }

    /// Starts one whose synthetic engine departs from the others', such as `slower=3`.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start_quirky(port: u16, quirks: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::start_with(port, &[("TALLY_SYNTHETIC", quirks)], args)
    }

    /// Starts `n` of them, named `worker-1` and so on. Those with an even number share no
    /// memory with the coordinator, as if they were on other machines.
    ///
    /// # Panics
    /// If one can't be started.
    pub fn start_many(port: u16, n: usize) -> Vec<Self> {
        let start = |i: usize| {
            let name = format!("worker-{i}");
            let apart: &[&str] = if i.is_multiple_of(2) { &["--no-shared-memory"] } else { &[] };
            Self::start(port, [&["--name", &name], apart].concat())
        };
        (1..=n).map(start).collect()
    }
}

/// One that was started in another way.
impl From<Process> for Worker {
    fn from(process: Process) -> Self {
        Self(process)
    }
}

impl Deref for Worker {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.0
    }
}
