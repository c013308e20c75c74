//! The processes: one coordinator, and a worker for every slot that has one now.
//!
//! [`Processes`] knows which end of a process is expected. Any other is written down as a
//! complaint, with the last words of the process.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tally_worker::signals::STOPPED_EARLY;

use super::network::Network;
use super::plan::Settings;
use crate::cluster::{Output, Process, Relay, Signal, binaries, without_options};

/// How long a process may take to end once it was told to.
const END: Duration = Duration::from_secs(60);

/// How a worker reaches the coordinator.
#[derive(Debug)]
pub enum Road {
    /// Through a relay of this process; other workers reach this one through a second relay.
    Relay(Relay, Option<Links>),
    /// From a network namespace.
    Cable,
}

/// How other workers reach a worker.
#[derive(Debug)]
pub struct Links {
    /// The port that it listens on.
    port: u16,
    relay: Relay,
}

/// A place for a worker.
#[derive(Debug)]
struct Slot {
    name: String,
    road: Road,
    process: Option<Process>,
    /// It has been told to go.
    leaving: bool,
    starts: u32,
}

/// The processes and what is around them.
#[derive(Debug)]
pub struct Processes {
    directory: PathBuf,
    address: SocketAddr,
    coordinator: Option<Process>,
    starts: u32,
    /// The coordinator has said farewell since it was last started, or has been asked to:
    /// workers that heard it end by themselves.
    farewell: bool,
    slots: Vec<Slot>,
    /// How many of the slots have a worker all the time, but for its faults.
    lasting: usize,
    network: Option<Network>,
    /// How gradients are added up, for every start of the coordinator.
    reduce: &'static str,
    complaints: Vec<String>,
}

/// A free port below those that systems choose for outgoing connections: a port of those
/// might be taken between two coordinators, by a worker that tries to reach it. `number` others are free too.
fn free_port(host: IpAddr, number: usize) -> anyhow::Result<u16> {
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let free = |port: &u16| TcpListener::bind((host, *port)).is_ok();
    (first..32_000).filter(free).nth(number).context("there is no free port from 20000 to 32000")
}

impl Processes {
    /// No process yet. All that it leaves behind is under `directory`.
    ///
    /// # Errors
    /// If there is no port or no place for the logs.
    pub fn new(directory: &Path, settings: &Settings, network: Option<Network>) -> anyhow::Result<Self> {
        fs::create_dir_all(directory.join("logs"))?;
        let host = network.as_ref().map_or(Ipv4Addr::LOCALHOST, Network::host).into();
        let address = SocketAddr::new(host, free_port(host, 0)?);
        let links = |slot| {
            let port = free_port(Ipv4Addr::LOCALHOST.into(), 1 + slot)?;
            anyhow::Ok(Links { port, relay: Relay::start(port) })
        };
        let slot = |slot| {
            let relay = || {
                anyhow::Ok(Road::Relay(Relay::to(address), settings.links.then(|| links(slot)).transpose()?))
            };
            let road = if settings.has_cable(slot) { Road::Cable } else { relay()? };
            anyhow::Ok(Slot { name: format!("w{slot}"), road, process: None, leaving: false, starts: 0 })
        };
        let slots = (0..settings.workers + settings.guests).map(slot).collect::<anyhow::Result<_>>()?;
        Ok(Self {
            directory: directory.into(),
            address,
            coordinator: None,
            starts: 0,
            farewell: false,
            slots,
            lasting: settings.workers,
            network,
            reduce: if settings.links { "sharded" } else { "star" },
            complaints: Vec::new(),
        })
    }

    /// The run directory.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// A slot's name, which is its worker's.
    #[must_use]
    pub fn name(&self, slot: usize) -> String {
        self.slots[slot].name.clone()
    }

    /// The names of those that are there all the time, but for their faults.
    #[must_use]
    pub fn lasting_names(&self) -> Vec<String> {
        (0..self.lasting).map(|slot| self.name(slot)).collect()
    }

    /// What went wrong that nobody did on purpose.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Writes down what should not have happened.
    pub fn complain(&mut self, what: String) {
        eprintln!("! {what}");
        self.complaints.push(what);
    }

    // ---- The coordinator ----

    /// Starts a coordinator; its address is always the same.
    pub fn start_coordinator(&mut self, args: &[&str]) {
        let address = self.address.to_string();
        let own = ["--listen", &address, "--http-listen", "127.0.0.1:0", "--reduce", self.reduce];
        self.starts += 1;
        self.farewell = false;
        self.coordinator = Some(Process::start(&binaries().join("coordinator"), own.iter().chain(args)));
    }

    /// Starts a coordinator that goes on with the run.
    pub fn resume(&mut self) {
        let run = self.run().display().to_string();
        self.start_coordinator(&["--resume", &run]);
    }

    /// Kills the coordinator. With `torn`, its journal ends in half a line.
    ///
    /// # Errors
    /// If the journal cannot be written to.
    pub fn kill_coordinator(&mut self, torn: bool) -> anyhow::Result<()> {
        let Some(process) = self.coordinator.take() else { return Ok(()) };
        process.signal(Signal::KILL);
        let wrong = process.output().status.code().is_some();
        self.bury("coordinator", self.starts, &process, wrong);
        if torn {
            let journal = self.run().join("journal.jsonl");
            let mut journal = fs::OpenOptions::new().append(true).open(journal)?;
            journal.write_all(br#"{"event":"step","step":99,"lo"#)?;
        }
        Ok(())
    }

    /// Tells the coordinator to stop, without waiting for it.
    pub fn stop_coordinator(&mut self) {
        self.farewell = true;
        if let Some(process) = &self.coordinator {
            process.signal(Signal::TERM);
        }
    }

    /// From now on the coordinator and its workers may end by themselves, well.
    pub fn expect_end(&mut self) {
        self.farewell = true;
    }

    /// Waits until the coordinator has ended, which should be well.
    ///
    /// # Errors
    /// If it does not end; it is killed then.
    pub fn gather_coordinator(&mut self) -> anyhow::Result<()> {
        let Some(process) = self.coordinator.take() else { return Ok(()) };
        let ended = wait_for_end(&process);
        if !ended {
            process.kill9();
        }
        let wrong = !stopped_well(process.output().status);
        self.bury("coordinator", self.starts, &process, wrong);
        ensure!(ended, "the coordinator did not end within {} s", END.as_secs());
        Ok(())
    }

    /// Whether there is a coordinator that has not ended.
    #[must_use]
    pub fn has_coordinator(&self) -> bool {
        self.coordinator.as_ref().is_some_and(Process::is_running)
    }

    // ---- Workers ----

    /// Starts a worker in each slot that has one all the time and has none now.
    pub fn start_lasting(&mut self) {
        for slot in 0..self.lasting {
            if self.slots[slot].process.is_none() {
                self.start_worker(slot);
            }
        }
    }

    /// Starts a worker in a slot; one that is still leaving it goes first.
    pub fn start_worker(&mut self, slot: usize) {
        self.gather_worker(slot);
        let worker = binaries().join("worker");
        let network = self.network.as_ref();
        let Slot { name, road, process, leaving, starts } = &mut self.slots[slot];
        *starts += 1;
        *leaving = false;
        let common = ["--backend", "cpu", "--threads", "1", "--connect-timeout", "600", "--name", name];
        *process = Some(match (road, network) {
            (Road::Cable, Some(network)) => {
                let (address, namespace) = (self.address.to_string(), network.namespace(slot));
                let worker = worker.display().to_string();
                let within = ["netns", "exec", &namespace, &worker, "--connect", &address];
                Process::start(Path::new("ip"), within.iter().chain(&common))
            }
            (Road::Relay(relay, links), _) => {
                let address = format!("127.0.0.1:{}", relay.port());
                // Gradients of every second one pass the relay; the others' lie in shared memory.
                let apart: &[&str] = if slot % 4 == 1 { &["--no-shared-memory"] } else { &[] };
                let ports = links.as_ref().map(|links| [links.port, links.relay.port()]);
                let reached = ports.map(|ports| ports.map(|port| format!("127.0.0.1:{port}")));
                // Every second one is said to be on another machine, so that there is something to combine.
                let machine = if slot.is_multiple_of(2) { "left" } else { "right" };
                let peers = reached
                    .as_ref()
                    .map(|[at, by]| ["--peer-listen", at, "--advertise", by, "--machine", machine]);
                let peers = peers.iter().flatten();
                Process::start(
                    &worker,
                    ["--connect", &address].iter().chain(&common).chain(apart).chain(peers),
                )
            }
            (Road::Cable, None) => unreachable!("a slot has a cable only where there is a network"),
        });
    }

    /// Kills a worker by a signal that ends it at once.
    pub fn kill_worker(&mut self, slot: usize, signal: Signal) {
        let Some(process) = self.slots[slot].process.take() else { return };
        process.signal(signal);
        let output = process.output();
        // It may have come to its own end a moment before.
        let wrong = output.status.code().is_some() && !self.ended_well(slot, &output);
        self.bury_worker(slot, &process, wrong);
    }

    /// After a farewell a worker ends by itself, and when it was told to leave.
    fn ended_well(&self, slot: usize, output: &Output) -> bool {
        let left = self.slots[slot].leaving && left_early(output.status);
        left || (output.status.success() && output.stderr.contains("finished: the run "))
    }

    /// Sends a worker a signal that does not end it at once.
    pub fn signal_worker(&mut self, slot: usize, signal: Signal) {
        self.slots[slot].leaving |= signal == Signal::INT;
        if let Some(process) = &self.slots[slot].process {
            process.signal(signal);
        }
    }

    /// Waits until a worker that was told to leave has gone.
    pub fn gather_worker(&mut self, slot: usize) {
        let Some(process) = self.slots[slot].process.take() else { return };
        if !wait_for_end(&process) {
            let name = self.name(slot);
            self.complain(format!("{name} did not leave within {} s", END.as_secs()));
            process.kill9();
        }
        let status = process.output().status;
        let failed = !status.success() && !left_early(status);
        self.bury_worker(slot, &process, failed);
    }

    /// The slot's relay, where it has one.
    #[must_use]
    pub fn relay(&self, slot: usize) -> Option<&Relay> {
        match &self.slots[slot].road {
            Road::Relay(relay, _) => Some(relay),
            Road::Cable => None,
        }
    }

    /// The relay through which other workers reach the slot's, where it has one.
    #[must_use]
    pub fn links(&self, slot: usize) -> Option<&Relay> {
        match &self.slots[slot].road {
            Road::Relay(_, Some(links)) => Some(&links.relay),
            _ => None,
        }
    }

    /// Pulls the slot's cable out or puts it in again.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn cable(&self, slot: usize, plugged: bool) -> anyhow::Result<()> {
        self.network.as_ref().map_or(Ok(()), |network| network.cable(slot, plugged))
    }

    /// The slots that have a worker.
    #[must_use]
    pub fn manned(&self) -> Vec<usize> {
        (0..self.slots.len()).filter(|slot| self.slots[*slot].process.is_some()).collect()
    }

    /// Looks after processes that have ended by themselves: after a coordinator's farewell
    /// workers do, and are started again where `again` says so. Anything else is a complaint.
    pub fn look_after(&mut self, again: bool) {
        for slot in self.manned() {
            let place = &mut self.slots[slot];
            let Some(process) = place.process.take_if(|p| !p.is_running()) else { continue };
            let leaving = place.leaving;
            let wrong = !self.ended_well(slot, &process.output());
            self.bury_worker(slot, &process, wrong);
            if again && !leaving {
                self.start_worker(slot);
            }
        }
        if let Some(process) = self.coordinator.take_if(|p| !p.is_running()) {
            let well = self.farewell && stopped_well(process.output().status);
            self.bury("coordinator", self.starts, &process, !well);
        }
    }

    /// What the coordinator says of itself, for the report of a hang.
    #[must_use]
    pub fn status(&self) -> String {
        let asked = without_options(&mut std::process::Command::new(binaries().join("coordinator")))
            .args(["status", "--connect", &self.address.to_string()])
            .output();
        asked.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    }

    /// Kills whatever still runs, and keeps its logs.
    pub fn kill_all(&mut self) {
        for slot in self.manned() {
            self.kill_worker(slot, Signal::KILL);
        }
        let _ = self.kill_coordinator(false);
    }

    fn bury_worker(&mut self, slot: usize, process: &Process, wrong: bool) {
        let (name, starts) = (self.name(slot), self.slots[slot].starts);
        self.bury(&name, starts, process, wrong);
    }

    /// Keeps what a process that has ended has printed, and complains if its end was wrong.
    fn bury(&mut self, name: &str, number: u32, process: &Process, wrong: bool) {
        let output = process.output();
        let log = self.directory.join(format!("logs/{name}-{number}.log"));
        let text = format!("{}{}\n{}\n", output.stderr, output.stdout, output.status);
        if let Err(error) = fs::write(&log, text) {
            self.complain(format!("{}: {error}", log.display()));
        }
        let words =
            |word: &str| output.stderr.lines().rev().find(|line| line.contains(word)).map(str::to_owned);
        let panicked = words("panicked");
        if wrong || panicked.is_some() {
            let last =
                panicked.or_else(|| output.stderr.lines().last().map(str::to_owned)).unwrap_or_default();
            self.complain(format!("{name} (start {number}) ended by itself: {}: {last}", output.status));
        }
        for warning in ["damaged", "please report"] {
            if let Some(line) = words(warning) {
                self.complain(format!("{name} (start {number}) said: {line}"));
            }
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // Before the network that it lives in.
        self.kill_all();
    }
}

/// A worker that was told to leave before the run's end says so with its exit code.
fn left_early(status: ExitStatus) -> bool {
    status.code() == Some(i32::from(STOPPED_EARLY))
}

/// How a coordinator that was told to stop may end: well, or by the signal itself where it
/// came before the coordinator listened for it.
fn stopped_well(status: ExitStatus) -> bool {
    status.success() || status.signal() == Some(Signal::TERM.as_raw())
}

fn wait_for_end(process: &Process) -> bool {
    let end = Instant::now() + END;
    while process.is_running() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}
