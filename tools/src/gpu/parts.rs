//! The parts. Each runs in a process of its own, which must end in time.

use std::fmt::Display;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{
    Pid, Signal, getpid, kill_process, kill_process_group, set_parent_process_death_signal,
};
use tally_mnist::network::gpu::layers::Variant;
use tally_worker::device::Precision;

use super::report::Findings;
use super::{Options, Part, speed};

/// The exit code of a process that has no device.
const UNAVAILABLE: i32 = 3;

/// The work of one process: a part in a precision, with a variant of the kernels.
struct Job {
    part: Part,
    precisions: Vec<Precision>,
    variant: String,
    workers: Option<usize>,
}

impl Job {
    fn words(&self) -> String {
        let precisions = self.precisions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let workers = self.workers.map(|workers| format!(" of {workers}")).unwrap_or_default();
        let variant = if self.variant == "default" { String::new() } else { format!(", {}", self.variant) };
        format!("{precisions}, {}{workers}{variant}", self.part.name())
    }
}

/// The jobs for these options, in their order.
fn jobs(options: &Options) -> Vec<Job> {
    let mut jobs = Vec::new();
    for precision in options.precisions() {
        for &part in &options.only {
            let variants = match part {
                Part::Golden | Part::Repetition | Part::Steps | Part::Profile => options.variants.clone(),
                // One process does all precisions, because PyTorch takes long to start.
                Part::Pytorch => continue,
                Part::Update | Part::Cluster => vec![options.variants[0].clone()],
            };
            for variant in variants {
                let one =
                    |workers| Job { part, precisions: vec![precision], variant: variant.clone(), workers };
                match part {
                    Part::Cluster => jobs.extend(options.workers.iter().map(|&workers| one(Some(workers)))),
                    _ => jobs.push(one(None)),
                }
            }
        }
    }
    if options.only.contains(&Part::Pytorch) && options.peer.is_some() {
        let (part, precisions) = (Part::Pytorch, options.precisions());
        jobs.push(Job { part, precisions, variant: "default".into(), workers: None });
    }
    jobs
}

/// Does all jobs, and prints the findings.
pub(super) fn run(options: &Options) -> ExitCode {
    let mut findings = Findings::default();
    let end = options.within.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    for job in jobs(options) {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()).as_secs());
        let deadline = left.map_or(options.deadline, |left| left.min(options.deadline));
        if deadline == 0 {
            findings.fail(&job.words(), "its time was over before it began");
            continue;
        }
        let options = Options { deadline, ..options.clone() };
        match start(&options, &job).map(|child| watch(child, &job, deadline, &mut findings)) {
            Ok(Some(UNAVAILABLE)) => return ExitCode::from(3),
            Ok(_) => (),
            Err(error) => findings.fail(&job.words(), &format!("{error:#}")),
        }
    }
    findings.compare();
    findings.end(speed::gpu())
}

/// Compares findings that were kept before, and prints what follows from them.
pub(super) fn compare(file: &Path) -> ExitCode {
    let mut findings = Findings::default();
    let kept = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()));
    match kept.map(|lines| lines.lines().for_each(|line| findings.add_kept(line))) {
        Ok(()) => {
            findings.compare();
            findings.end(speed::gpu())
        }
        Err(error) => exit_code(Err(error)),
    }
}

fn start(options: &Options, job: &Job) -> anyhow::Result<Child> {
    let this = std::env::current_exe().context("cannot find this program, to start it again")?;
    let list = |numbers: &[usize]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let precisions: Vec<String> = job.precisions.iter().map(ToString::to_string).collect();
    let mut part = Command::new(this);
    part.args(["--here", "--end-with-parent", "--backend", &options.backend.to_string()]);
    part.args(["--device", &options.device.to_string(), "--only", &job.part.name()]);
    part.args(["--precisions", &precisions.join(","), "--deadline", &options.deadline.to_string()]);
    part.args(["--batches", &list(&options.batches), "--steps", &options.steps.to_string()]);
    part.args(["--repeats", &options.repeats.to_string(), "--ways", &options.ways.join(",")]);
    part.args(["--workers", &list(&job.workers.map_or(options.workers.clone(), |workers| vec![workers]))]);
    part.args(["--cluster-batch", &options.cluster_batch.to_string()]).arg("--python").arg(&options.python);
    for (name, path) in [("--peer", &options.peer), ("--logs", &options.logs)] {
        if let Some(path) = path {
            part.arg(name).arg(path);
        }
    }
    part.env(Variant::VARIABLE, &job.variant).stdin(Stdio::null()).stdout(Stdio::piped());
    // Its group has all processes that it starts, so that they can be ended with it.
    part.process_group(0).spawn().context("cannot start this program again")
}

/// Takes the findings of a process until it ends or its time is over. Returns its exit code, if it has one.
#[allow(clippy::print_stderr)]
fn watch(mut child: Child, job: &Job, seconds: u64, findings: &mut Findings) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let (sender, lines) = channel();
    if let Some(output) = child.stdout.take() {
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
    }
    let failures = findings.failures();
    let mut begun = false;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                // The first finding is the device. Without one the only message is what is missing.
                if !std::mem::replace(&mut begun, true) {
                    eprintln!("{}", job.words());
                }
                findings.pass_on(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                findings.fail(&job.words(), &format!("it was not done within {seconds} s"));
                break;
            }
        }
    }
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let mut ended = child.try_wait().ok().flatten();
    while ended.is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
        ended = child.try_wait().ok().flatten();
    }
    if ended.is_none() {
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        ended = child.wait().ok();
    }
    let status = ended?;
    if !status.success() && status.code() != Some(UNAVAILABLE) && findings.failures() == failures {
        findings.fail(&job.words(), &format!("its process ended with {status}"));
    }
    status.code()
}

/// Has the kernel kill this process when its parent ends.
pub fn end_with_parent() {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

/// Kills this process after so many seconds. A kernel that never ends would keep it even from exiting by itself, and a profiler
/// starts it where no one else would end it.
#[allow(clippy::print_stderr)]
pub(super) fn end_after(seconds: u64) {
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(seconds));
        eprintln!("error: this was not done within {seconds} s");
        kill_process(getpid(), Signal::KILL)
    });
}

/// Prints why there is no device.
#[allow(clippy::print_stderr)]
pub(super) fn unavailable(error: &dyn Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(3)
}

/// The exit code of an outcome, whose error is printed.
#[allow(clippy::print_stderr)]
pub(super) fn exit_code(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
