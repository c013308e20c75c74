//! Several workers on one machine, a process for each device: `worker --devices all`.
//!
//! This process computes nothing. It starts its own program again for every device, forwards a signal to leave
//! to all of these workers, and waits for them. A worker that exits is not started again, whether its run is over
//! or it failed: it has printed the reason. A worker that was killed by a signal is started again after a
//! moment, and joins the run as a new worker. If this process is killed, its workers leave.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::device::{BackendChoice, DeviceOptions};
use crate::program::WorkerProgram;
use crate::session::WorkOutcome;
use crate::signals::STOPPED_EARLY;

/// This variable marks a worker that a parent process started as one of several. Such a worker leaves when its
/// parent is gone.
const ONE_OF_SEVERAL: &str = "TALLY_ONE_OF_SEVERAL";

/// The variable with which CUDA limits the GPUs that a process sees.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// How often the parent checks its workers.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Waits before a worker is started again grow from this …
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// … to this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The most devices that `--devices` may name.
const MAX_DEVICES: usize = 64;

/// The devices of `--devices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All CUDA devices.
    All,
    /// The devices of these numbers.
    These(Vec<usize>),
}

impl FromStr for Devices {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let bad = |part: &str| format!("{part:?} is not a device; write numbers such as 0,1,3, or all");
        let numbers: Result<Vec<usize>, String> =
            text.split(',').map(|part| part.parse().map_err(|_| bad(part))).collect();
        let numbers = numbers?;
        if numbers.len() > MAX_DEVICES {
            return Err(format!("no machine has {} devices; the most is {MAX_DEVICES}", numbers.len()));
        }
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("device {} is named twice", pair[0])),
            None => Ok(Self::These(numbers)),
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::These(numbers) => {
                let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
                f.write_str(&words.join(","))
            }
        }
    }
}

impl Devices {
    /// The devices' numbers.
    ///
    /// # Errors
    /// If all are asked for and the program cannot count them, or if there are none.
    pub fn numbers(&self, program: &dyn WorkerProgram) -> anyhow::Result<Vec<usize>> {
        let numbers = match self {
            Self::These(numbers) => numbers.clone(),
            Self::All => (0..program.cuda_devices()?).collect(),
        };
        ensure!(!numbers.is_empty(), "there are no devices for --devices {self}");
        Ok(numbers)
    }
}

/// Whether this process is a worker that a parent process started for one device. Such a worker ignores
/// `--devices`, which may still be set in its environment or file.
#[must_use]
pub fn is_one_of_several() -> bool {
    std::env::var_os(ONE_OF_SEVERAL).is_some()
}

/// Makes this process leave when its parent is gone, if the parent started it as one of several workers.
pub fn follow_parent() {
    #[cfg(target_os = "linux")]
    if is_one_of_several() {
        let followed = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
        if let Err(error) = followed {
            tracing::warn!("this worker will outlive the process that started it: {error}");
        }
    }
}

/// A worker process.
struct Worker {
    device: usize,
    child: Option<Child>,
    /// When to start it again, if it was killed.
    due: Option<Instant>,
    wait: Duration,
    ended: Ended,
}

/// How a worker ended that is not started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    RunOver,
    LeftEarly,
    Failed,
}

/// Starts a worker for each device, and waits until all have exited; once `leave` is ready, they are asked to leave.
/// `name` is the beginning of the workers' names. The run is over if one of them has seen its end.
///
/// # Errors
/// If a worker cannot be started, or one failed.
pub async fn run(
    numbers: &[usize],
    name: &str,
    options: &DeviceOptions,
    leave: impl Future<Output = ()>,
) -> anyhow::Result<WorkOutcome> {
    let threads = threads_of_each(options, numbers.len());
    let start = |device: usize| start(device, name, threads);
    let mut workers = Vec::with_capacity(numbers.len());
    for &device in numbers {
        let child = Some(start(device)?);
        workers.push(Worker { device, child, due: None, wait: FIRST_WAIT, ended: Ended::LeftEarly });
    }
    let mut leaving = false;
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    tokio::pin!(leave);
    while workers.iter().any(|worker| worker.child.is_some() || worker.due.is_some()) {
        tokio::select! {
            _ = check.tick() => {}
            () = &mut leave, if !leaving => {
                leaving = true;
                workers.iter().for_each(Worker::terminate);
            }
        }
        for worker in &mut workers {
            worker.check(leaving)?;
            if worker.due.is_some_and(|due| due <= Instant::now()) {
                worker.again(start(worker.device));
            }
        }
    }
    let failed: Vec<String> =
        workers.iter().filter(|w| w.ended == Ended::Failed).map(|worker| worker.device.to_string()).collect();
    ensure!(failed.is_empty(), "the worker on device {} failed; it printed the reason", failed.join(", "));
    let over = workers.iter().any(|worker| worker.ended == Ended::RunOver);
    Ok(if over { WorkOutcome::RunOver } else { WorkOutcome::LeftEarly })
}

impl Worker {
    /// Notes its exit, and when to start it again.
    fn check(&mut self, leaving: bool) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else {
            if leaving {
                self.due = None;
            }
            return Ok(());
        };
        let ended = child.try_wait().with_context(|| format!("cannot wait for worker {}", child.id()))?;
        let Some(status) = ended else { return Ok(()) };
        self.child = None;
        if !was_killed(status) {
            self.ended = match status.code() {
                Some(0) => Ended::RunOver,
                Some(code) if code == i32::from(STOPPED_EARLY) => Ended::LeftEarly,
                _ => Ended::Failed,
            };
        } else if !leaving {
            tracing::warn!(device = self.device, wait = ?self.wait, "a worker was killed ({status}); starting it again");
            self.later();
        }
        Ok(())
    }

    /// To be started again after a moment, longer each time.
    fn later(&mut self) {
        self.due = Some(Instant::now() + self.wait);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    /// Takes what came of starting it again. Where the system refuses that for now, the others go on.
    fn again(&mut self, started: anyhow::Result<Child>) {
        match started {
            Ok(child) => (self.due, self.child) = (None, Some(child)),
            Err(error) => {
                tracing::warn!(device = self.device, wait = ?self.wait, "{error:#}; trying again");
                self.later();
            }
        }
    }

    /// Asks it to leave. It has not been waited for, so its process number cannot belong to another process.
    fn terminate(&self) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?));
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {
            tracing::warn!(device = self.device, "cannot ask a worker to leave: {error}");
        }
    }
}

fn was_killed(status: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status).is_some()
}

/// Threads of each worker, where several may compute on this machine's CPU and `--threads` was not given.
fn threads_of_each(options: &DeviceOptions, workers: usize) -> Option<usize> {
    let shared = options.backend != BackendChoice::Cuda && options.threads.is_none();
    shared.then(|| (options.threads() / workers).max(1))
}

/// Starts this program again for one device.
fn start(device: usize, name: &str, threads: Option<usize>) -> anyhow::Result<Child> {
    let mut command = Command::new(this_program()?);
    command.args(arguments(std::env::args_os().skip(1)));
    // A worker sees only its own GPU, as number 0, which is the default: tuning results are cached by a GPU's
    // number, and equal GPUs must choose equal kernels.
    command.args(["--name", &format!("{name}-{device}")]);
    command.env(VISIBLE, visible(device, std::env::var(VISIBLE).ok().as_deref()));
    if let Some(threads) = threads {
        command.args(["--threads", &threads.to_string()]);
    }
    command.env(ONE_OF_SEVERAL, "1");
    command.spawn().with_context(|| format!("cannot start a worker for device {device}"))
}

/// This program's file. After an upgrade its name leads to another version, or nowhere; the kernel still has this one,
/// which knows the options that this process was started with.
fn this_program() -> anyhow::Result<PathBuf> {
    let named = std::env::current_exe().context("cannot find this program, to start it again")?;
    let kept = PathBuf::from("/proc/self/exe");
    Ok(if !named.exists() && kept.exists() { kept } else { named })
}

/// CUDA's name for device `device` of this process, where the variable `CUDA_VISIBLE_DEVICES` has `seen`.
#[must_use]
pub fn visible(device: usize, seen: Option<&str>) -> String {
    let seen = seen.and_then(|seen| seen.split(',').nth(device)).map(str::trim);
    seen.map_or_else(|| device.to_string(), str::to_owned)
}

/// A command line without the options that differ from worker to worker.
fn arguments(all: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in all {
        let text = argument.to_string_lossy();
        let own = |option: &str| text == option || text.starts_with(&format!("{option}="));
        if std::mem::take(&mut skip) {
        } else if own("--devices") || own("--name") {
            skip = !text.contains('=');
        } else {
            kept.push(argument);
        }
    }
    kept
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_as_they_print() {
        for text in ["all", "0", "3,0,12"] {
            assert_eq!(text.parse::<Devices>().unwrap().to_string(), text);
        }
        let many = (0..=MAX_DEVICES).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        for (text, said) in [
            ("", "\"\""),
            ("0,x", "\"x\""),
            ("-1", "-1"),
            ("1,2,1", "device 1 is named twice"),
            (&many, "65"),
        ] {
            let error = text.parse::<Devices>().unwrap_err();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_worker_sees_one_of_the_devices_that_its_parent_sees() {
        assert_eq!(visible(2, None), "2");
        assert_eq!(
            (visible(0, Some("5, GPU-1f")), visible(1, Some("5, GPU-1f"))),
            ("5".into(), "GPU-1f".into())
        );
    }

    #[test]
    fn a_worker_has_all_options_but_those_of_its_own() {
        let line = "--connect a:1 --devices all --name=x --stay --name y --devices=0,1 --log json";
        let kept = arguments(line.split(' ').map(OsString::from));
        assert_eq!(kept, ["--connect", "a:1", "--stay", "--log", "json"].map(OsString::from));
    }
}
