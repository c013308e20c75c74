//! Several workers on one machine, a process for each device: `worker --devices all`.
//!
//! This process computes nothing. It starts itself again for every device, hands a signal to leave
//! on to all, and waits for them. A worker that ends by itself is not started again, whether its run was
//! over or it could not go on: it said why. One that is killed, by the system or by its own
//! fault, is started again after a moment, and joins as a newcomer. If this process is killed, its
//! workers leave.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::WorkOptions;
use crate::engine::backend::BackendChoice;

/// Set for a worker that another process started, one of several: it leaves when that one is gone.
const ONE_OF_SEVERAL: &str = "TALLY_ONE_OF_SEVERAL";

/// Which GPUs a process sees, to CUDA.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// How often the workers are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Waits before a worker is started again grow from this …
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// … to this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Most devices a machine may be said to have.
const MOST: usize = 64;

/// The devices of `--devices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All CUDA devices.
    All,
    /// Those of these numbers.
    These(Vec<usize>),
}

impl FromStr for Devices {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let bad = |part: &str| format!("{part:?} is no device; write numbers such as 0,1,3, or all");
        let numbers: Result<Vec<usize>, String> =
            text.split(',').map(|part| part.parse().map_err(|_| bad(part))).collect();
        let numbers = numbers?;
        if numbers.len() > MOST {
            return Err(format!("no machine has {} devices; the most is {MOST}", numbers.len()));
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
    fn numbers(&self) -> anyhow::Result<Vec<usize>> {
        match self {
            Self::These(numbers) => Ok(numbers.clone()),
            #[cfg(feature = "cuda-kernels")]
            Self::All => Ok((0..crate::engine::gpu::look::count()?).collect()),
            #[cfg(not(feature = "cuda-kernels"))]
            Self::All => anyhow::bail!(
                "the CUDA backend is not in this binary, so that it can't count devices: build it with \
                 `--features cuda`, or name the devices, as in --devices 0,1"
            ),
        }
    }
}

/// Whether this process is a worker that another one started for one of its devices. Its `--devices`, which the
/// environment or a file may still say, are then done with.
#[must_use]
pub fn is_one_of_several() -> bool {
    std::env::var_os(ONE_OF_SEVERAL).is_some()
}

/// Has this process leave when the one that started it is gone, if that is one that said so.
pub fn follow_parent() {
    #[cfg(target_os = "linux")]
    if is_one_of_several() {
        let followed = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
        if let Err(error) = followed {
            tracing::warn!("this worker will outlive the process that started it: {error}");
        }
    }
}

/// A worker of ours.
struct Worker {
    device: usize,
    child: Option<Child>,
    /// When to start it again, if it is to be.
    due: Option<Instant>,
    wait: Duration,
    failed: bool,
}

/// Starts a worker for each device, and waits until all have ended; `leave` is handed on.
///
/// # Errors
/// If none can be started, or one could not go on.
pub async fn run(
    devices: &Devices,
    options: &WorkOptions,
    leave: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let numbers = devices.numbers()?;
    ensure!(!numbers.is_empty(), "there are no devices for --devices {devices}");
    let name = options.session().name;
    let threads = share_of_threads(options, numbers.len());
    let start = |device: usize| start(device, &name, threads);
    let mut workers = Vec::with_capacity(numbers.len());
    for device in numbers {
        let child = Some(start(device)?);
        workers.push(Worker { device, child, due: None, wait: FIRST_WAIT, failed: false });
    }
    let mut leaving = false;
    let mut look = tokio::time::interval(LOOK);
    tokio::pin!(leave);
    while workers.iter().any(|worker| worker.child.is_some() || worker.due.is_some()) {
        tokio::select! {
            _ = look.tick() => {}
            () = &mut leave, if !leaving => {
                leaving = true;
                workers.iter().for_each(Worker::terminate);
            }
        }
        for worker in &mut workers {
            worker.look(leaving)?;
            if worker.due.is_some_and(|due| due <= Instant::now()) {
                worker.again(start(worker.device));
            }
        }
    }
    let failed: Vec<String> =
        workers.iter().filter(|w| w.failed).map(|worker| worker.device.to_string()).collect();
    ensure!(failed.is_empty(), "the worker on device {} could not go on; it said why", failed.join(", "));
    Ok(())
}

impl Worker {
    /// Sees whether it has ended, and what is to follow.
    fn look(&mut self, leaving: bool) -> anyhow::Result<()> {
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
            self.failed |= !status.success();
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

    /// Asks it to leave. It has not been waited for, so that its number is still its own.
    fn terminate(&self) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?));
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {
            tracing::warn!(device = self.device, "a worker can't be told to leave: {error}");
        }
    }
}

fn was_killed(status: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status).is_some()
}

/// Threads of each, where they compute on the CPU and nothing else was said.
fn share_of_threads(options: &WorkOptions, workers: usize) -> Option<usize> {
    let shared = options.device.backend != BackendChoice::Cuda && options.device.threads.is_none();
    shared.then(|| (options.device.threads() / workers).max(1))
}

/// This program again, for one device.
fn start(device: usize, name: &str, threads: Option<usize>) -> anyhow::Result<Child> {
    let mut command = Command::new(this_program()?);
    command.args(arguments(std::env::args_os().skip(1)));
    // A worker sees its own GPU alone, as number 0, which is the default: what is kept of a GPU is kept by its
    // number, and equal GPUs are to choose equal kernels.
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

/// CUDA's name for device `device` of those that this process sees, if it sees some by name.
#[must_use]
pub fn visible(device: usize, seen: Option<&str>) -> String {
    let seen = seen.and_then(|seen| seen.split(',').nth(device)).map(str::trim);
    seen.map_or_else(|| device.to_string(), str::to_owned)
}

/// A command line without the options that every worker has its own of.
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
        let many = (0..=MOST).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
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
