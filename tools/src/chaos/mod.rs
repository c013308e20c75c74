//! The real binaries under chaos, and a scorecard of what the promises were worth.
//!
//! `plan` decides from a seed what happens when; `faults` does it to the `processes`, which
//! `network` may put into namespaces of their own; `watch` looks at the
//! journal meanwhile. Then the run is brought to its end in peace, and `checker` compares
//! it with one that nobody disturbed. `measure` and `scorecard` say what was seen.

mod checker;
mod faults;
mod measure;
mod network;
mod options;
mod plan;
mod processes;
mod scorecard;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use checker::Promise;
use faults::{Doings, timeline};
use measure::{Fact, Quantiles};
use network::Network;
use plan::{Fault, Settings};
use processes::Processes;
use watch::Watch;

use crate::cluster::{Process, Signal, binaries};
pub use options::Options;
pub use scorecard::Scorecard;

/// Becomes true when the user has had enough: what was begun is taken down then.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often processes are looked after between two moments.
const LOOK: Duration = Duration::from_millis(5);

/// Runs the whole of it. Everything is kept under `directory`: the run, the reference and
/// every process's log.
///
/// # Errors
/// If it could not be begun. What goes wrong in the cluster is a broken promise instead.
pub fn run(options: &Options, directory: &Path) -> anyhow::Result<Scorecard> {
    let (network, cables) = cables(options);
    let settings = options.settings(network.is_some());
    let actions = plan::plan(&settings);
    let mut processes = Processes::new(directory, &settings, network)?;
    let watch = Watch::start(&processes.run().join("journal.jsonl"));
    let mut storm = Storm {
        options,
        processes: &mut processes,
        watch: &watch,
        doings: Doings::default(),
        encored: Vec::new(),
        seconds: 0.0,
    };
    let ended = storm.whole(&settings, &actions);
    let (doings, encored, seconds) = (storm.doings, storm.encored, storm.seconds);
    if let Err(error) = &ended {
        processes.complain(format!("{error:#}"));
    }
    // What the end of all processes does to the journal is no part of it.
    let (facts, seen) = (doings.all(), watch.seen());
    processes.kill_all();
    let commits: Vec<f64> = seen.iter().filter(|s| s.is("step")).map(|s| s.at).collect();

    let journal = checker::journal(&processes.run())?;
    let summary = checker::summary(&processes.run());
    // A run that did not come to its end is compared as far as it came.
    let whole = summary["epochs"].as_u64().filter(|_| ended.is_ok());
    let epochs = whole.unwrap_or_else(|| options.epochs_of(commits.len() as u64));
    fs::write(directory.join("timeline.txt"), measure::timeline(&facts, &seen))?;
    eprintln!("the undisturbed run, {epochs} epochs …");
    let reference = reference(options, directory, epochs)?;
    let found = (&checker::journal(&reference)?[..], &checker::summary(&reference));
    let restarts = measure::restarts(&facts, &seen);
    let promises = vec![
        Promise {
            name: "LIVE-1",
            what: "steps go on while a worker lives, and the run comes to its end",
            kept: ended.is_ok(),
            found: ended.as_ref().map_or_else(first_line, |()| "it did".into()),
        },
        checker::each_step_once(&journal),
        checker::each_sample_once(&journal, &summary, options.samples as u64),
        checker::equal_bits((&journal, &summary), found),
        checker::no_drift(&journal),
        recomputed(options, &restarts),
        Promise {
            name: "CKPT-1, TRUST-1",
            what: "no checkpoint was damaged and no process ended but by what was done to it",
            kept: processes.complaints().len() == usize::from(ended.is_err()),
            found: format!("{} complaints", processes.complaints().len()),
        },
    ];
    Ok(Scorecard {
        command: options.command(),
        network: cables,
        seconds,
        steps: commits.len() as u64,
        step_ms: Quantiles::of(commits.windows(2).map(|pair| pair[1] - pair[0])),
        promises,
        rows: measure::rows(&facts, &seen),
        alone: measure::alone(&encored, &seen),
        restarts,
        lost: checker::reasons(&journal, "lost"),
        aborts: checker::reasons(&journal, "abort"),
        complaints: processes.complaints().to_vec(),
        facts,
    })
}

/// A table has one line a row; the whole of it is among the complaints.
fn first_line(error: &anyhow::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The namespaces, where they are wanted and possible, and words about them.
fn cables(options: &Options) -> (Option<Network>, String) {
    let slots: Vec<usize> = (0..options.workers).filter(|slot| slot % 2 == 1).collect();
    if options.no_namespaces {
        return (None, "not asked for".into());
    }
    match Network::new(slots) {
        Ok(network) => (Some(network), "every second worker in a network namespace of its own".into()),
        Err(error) => (None, format!("none, this machine does not allow network namespaces ({error:#})")),
    }
}

/// RESUME-1: what restarts that a worker lived through computed again.
fn recomputed(options: &Options, restarts: &[measure::Restart]) -> Promise {
    let of: Vec<u64> = restarts.iter().filter(|r| r.survived).map(|r| r.recomputed).collect();
    let worst = of.iter().copied().max().unwrap_or(0);
    let limit = options.recomputed_at_most;
    let asked = limit.map_or("not checked".into(), |most| format!("at most {most} allowed"));
    Promise {
        name: "RESUME-1",
        what: "steps computed again by a restart that a worker lived through",
        kept: limit.is_none_or(|most| worst <= most),
        found: format!("{} in {} restarts, {worst} in the worst ({asked})", of.iter().sum::<u64>(), of.len()),
    }
}

/// The run while faults happen, and its end in peace.
struct Storm<'a> {
    options: &'a Options,
    processes: &'a mut Processes,
    watch: &'a Watch,
    doings: Doings,
    /// What was done in peace.
    encored: Vec<Fact>,
    /// How long faults happened.
    seconds: f64,
}

impl Storm<'_> {
    fn whole(&mut self, settings: &Settings, actions: &[plan::Action]) -> anyhow::Result<()> {
        self.begin()?;
        eprintln!("{} actions in {:.0} s …", actions.len(), settings.length.as_secs_f64());
        let start = Instant::now();
        let (mut told, mut late) = (start, Duration::ZERO);
        for (at, moment) in timeline(actions) {
            self.wait_until(|_| start.elapsed() >= at + late, true)?;
            self.doings.perform(self.processes, actions, moment, self.watch.now())?;
            // What took long, as a coordinator's stop may, delays the rest, which would
            // otherwise come all at once.
            late = late.max(start.elapsed().saturating_sub(at));
            self.seconds = start.elapsed().as_secs_f64();
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                eprintln!("{:.0} s, step {}", self.seconds, self.watch.last_step().0);
            }
        }
        eprintln!("peace …");
        self.encores(settings)?;
        self.end()
    }

    /// The first start, to the first step.
    fn begin(&mut self) -> anyhow::Result<()> {
        let run = self.processes.run().display().to_string();
        let training = self.options.training(&self.options.model, options::ENDLESS);
        let workers = self.options.workers.to_string();
        let mut args = vec!["--workers", &workers, "--run-dir", &run];
        args.extend(training.iter().map(String::as_str));
        self.processes.start_coordinator(&args);
        self.processes.start_lasting();
        self.wait_until(|watch| watch.last_step().0 > 0, true)
    }

    /// Kills workers one at a time, each when all are there. What nobody takes over now, no
    /// restart of anything takes over either, so the run would stand still (**LIVE-1**).
    fn encores(&mut self, settings: &Settings) -> anyhow::Result<()> {
        for number in 0..self.options.encores {
            let slot = number % settings.workers;
            let (names, since) = (self.processes.lasting_names(), self.watch.last_step().0);
            let whole = |watch: &Watch| {
                let all = watch.look(|seen| {
                    let members = measure::members(seen.iter());
                    names.iter().all(|name| members.contains(name.as_str()))
                });
                all && watch.last_step().0 >= since + 5
            };
            self.wait_until(whole, true)?;
            // At another moment of a step each time.
            std::thread::sleep(settings.step * number as u32 / self.options.encores as u32);
            let (at, step) = (self.watch.now(), self.watch.last_step().0);
            self.processes.kill_worker(slot, Signal::KILL);
            // A worker that is alone has nobody who could take over.
            if settings.workers > 1 {
                self.wait_until(|watch| watch.last_step().0 >= step + 3, true)?;
            }
            self.processes.start_worker(slot);
            let worker = Some(self.processes.name(slot));
            self.encored.push(Fact { fault: Fault::Kill, worker, at, until: self.watch.now() });
        }
        Ok(())
    }

    /// Stops the run, and lets it go on undisturbed to the end of its epoch.
    fn end(&mut self) -> anyhow::Result<()> {
        // So that all are there when the word goes round.
        let calm = Instant::now();
        self.wait_until(|_| calm.elapsed() >= Duration::from_secs(2), true)?;
        self.processes.stop_coordinator();
        self.processes.gather_coordinator()?;
        let epochs = self.options.epochs_of(self.watch.last_step().0).to_string();
        let run = self.processes.run().display().to_string();
        // Those that heard the farewell end; those that did not go on trying.
        let farewell = Instant::now();
        while !self.processes.manned().is_empty() && farewell.elapsed() < Duration::from_secs(3) {
            self.processes.look_after(false);
            std::thread::sleep(LOOK);
        }
        self.processes.start_lasting();
        self.processes.start_coordinator(&["--resume", &run, "--epochs", &epochs]);
        self.processes.expect_end();
        let done = |watch: &Watch| {
            watch.look(|seen| seen.last().is_some_and(|s| s.is("end") && s.line["outcome"] == "done"))
        };
        self.wait_until(done, false)?;
        self.processes.gather_coordinator()?;
        let goodbye = Instant::now();
        while !self.processes.manned().is_empty() {
            self.processes.look_after(false);
            let late = goodbye.elapsed() > Duration::from_secs(30);
            ensure!(!late, "workers {:?} do not end though the run is done", self.processes.manned());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits, and looks after the processes and for a hang meanwhile.
    fn wait_until(&mut self, done: impl Fn(&Watch) -> bool, again: bool) -> anyhow::Result<()> {
        let since = self.watch.now();
        while !done(self.watch) {
            ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
            self.processes.look_after(again);
            let down = self.doings.all().iter().any(|f| f.fault.hits_coordinator() && f.until.is_infinite());
            ensure!(down || self.processes.has_coordinator() || done(self.watch), "the coordinator is gone");
            let (step, at) = self.watch.last_step();
            let silent = self.watch.now() - at;
            if silent > self.options.patience as f64 && (step > 0 || self.watch.now() - since > silent) {
                bail!("no step after step {step} for {silent:.0} s; status:\n{}", self.processes.status());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Trains the same without any disturbance, and returns its directory.
fn reference(options: &Options, directory: &Path, epochs: u64) -> anyhow::Result<PathBuf> {
    let run = directory.join("reference");
    let path = run.display().to_string();
    let training = options.training(&options.undisturbed_model(), epochs);
    let mut args =
        vec!["--local", "--workers", "1", "--backend", "cpu", "--threads", "1", "--run-dir", &path];
    args.extend(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    args.extend(training.iter().map(String::as_str));
    let process = Process::start(&binaries().join("coordinator"), args);
    let watch = Watch::start(&run.join("journal.jsonl"));
    while process.is_running() {
        ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        let silent = watch.now() - watch.last_step().1;
        ensure!(silent < options.patience as f64, "the undisturbed run makes no step for {silent:.0} s");
        std::thread::sleep(10 * LOOK);
    }
    let output = process.output();
    ensure!(output.status.success(), "the undisturbed run failed: {}", output.stderr);
    Ok(run)
}
