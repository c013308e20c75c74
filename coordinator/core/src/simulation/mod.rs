//! The core with simulated workers, streams, a disk and a virtual clock. Faults of every kind happen in seeded random
//! orders. Sums are texts, so that a sum along another tree is visible. [`schedules`] has the random runs and shows
//! that each rule, broken on purpose, is noticed; [`cases`] has the interleavings by name.
//!
//! The promises are checked after every event, and carry their names where they fail.

mod audited_sums;
mod cases;
mod exhaustive;
mod peers;
mod schedules;
mod server;
mod sharded;
mod text_sums;
mod worker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tally_numerics::digest::Digest;
use tally_numerics::order::Schedule;
use tally_numerics::random::{Purpose, Stream};
use tally_numerics::tree::{Node, Tree};

use super::cluster::{DeviceInfo, LinkAbility, Member, Session, State};
use super::events::{Action, AttemptId, AuditResult, ClusterEvent, Event, RunOutcome};
use super::fault_injection::FaultInjection;
use super::optimizer::{Algorithm, OptimizerConfig};
use super::recovery::Recorded;
use super::reduce_mode::ReduceMode;
use super::sampler::EpochSampler;
use super::{Core, Phase, RunSpec};
use peers::Peer;
use text_sums::TextSums;
use worker::{Bulk, Control, Out, Worker, digest_of, next_digest, sum_of};

const CHUNKS: u32 = 12;
/// Less than the chunks, so that credits matter.
const WINDOW: usize = 8;
/// The numerics class of devices whose gradients have other bits.
const OTHER_BITS: &str = "other bits";
const START: Digest = Digest(7);
const GRACE: Duration = Duration::from_millis(40);

fn tree() -> Tree {
    Tree::new(8).unwrap()
}

fn spec(workers: usize) -> RunSpec {
    RunSpec {
        tree: tree(),
        chunks: CHUNKS,
        // 29 samples in batches of 12: the last batch, of 5, leaves leaves empty.
        schedule: Schedule::new(3, 29, 12).unwrap(),
        epochs: 3,
        test_samples: 450,
        optimizer: OptimizerConfig { learning_rate: 0.1, ..OptimizerConfig::new(Algorithm::Sgd) },
        checkpoint_every: Some(4),
        workers,
        audit_rate: 0.2,
        reduce: ReduceMode::Star,
        credit_window: WINDOW,
    }
}

/// What a worker has to know of its run.
#[derive(Clone, Copy, Debug)]
struct Shape {
    tree: Tree,
    chunks: u32,
    window: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { tree: tree(), chunks: CHUNKS, window: WINDOW }
    }
}

/// The state on disk, which survives the coordinator.
#[derive(Clone, Debug, Default)]
struct Disk {
    journal: BTreeMap<u64, Digest>,
    tests: BTreeSet<u64>,
    checkpoints: BTreeMap<u64, Digest>,
}

/// What went wrong, and what was done about it.
#[derive(Clone, Debug, Default)]
struct Counts {
    events: u64,
    crashes: u32,
    adopted: u32,
    recomputed: u32,
    late: u32,
    drifted: u32,
    audits: Vec<AuditResult>,
    sums_audited: u32,
    sharded: u32,
    taken_back: u32,
    void: u32,
    resent: u32,
}

#[derive(Clone)]
struct World {
    core: Core,
    sampler: EpochSampler,
    rng: Stream,
    now: Duration,
    next_session: Session,
    workers: Vec<Worker>,
    /// What the first workers compute with.
    kinds: Vec<&'static str>,
    /// On how many machines the workers are; 0 if they do not say.
    machines: usize,
    disk: Disk,
    /// The master state.
    master: (u64, Digest),
    waiting: TextSums,
    root: BTreeMap<u32, String>,
    /// The chunks of the root whose digests are told.
    digested: Vec<u32>,
    /// The sums of the step that was committed last, with its step and attempt.
    last_root: ((u64, u32), BTreeMap<u32, String>),
    /// What is on its way from one worker to another, for each link that is up.
    wires: BTreeMap<(Session, Session), VecDeque<Peer>>,
    /// Workers that no other can reach.
    unreachable: BTreeSet<usize>,
    held: Option<String>,
    /// A newer state than the checkpoint, confirmed by the journal, that a worker offers.
    offered: BTreeMap<Session, u64>,
    /// The coordinator dies at its next commit, between the journal and the workers.
    crash_in_commit: bool,
    crashed: bool,
    fault: Option<FaultInjection>,
    /// No time passes but where it is said to.
    still: bool,
    /// Print what happens.
    talks: bool,
    counts: Counts,
    outcome: Option<RunOutcome>,
}

impl World {
    fn new(seed: u64, workers: usize) -> Self {
        Self::with(seed, spec(workers))
    }

    fn with(seed: u64, spec: RunSpec) -> Self {
        let alike = vec![""; spec.workers];
        Self::of_kinds(seed, spec, alike)
    }

    /// A world of workers of these kinds; later ones are as the first.
    fn of_kinds(seed: u64, spec: RunSpec, kinds: Vec<&'static str>) -> Self {
        Self::on_machines(seed, spec, kinds, 0)
    }

    /// The same, where workers are on so many machines, in turn.
    fn on_machines(seed: u64, spec: RunSpec, kinds: Vec<&'static str>, machines: usize) -> Self {
        let workers = kinds.len();
        let mut world = Self {
            sampler: EpochSampler::new(spec.schedule),
            core: Core::new(spec, 0, START, Recorded::default()),
            rng: Stream::new(seed, Purpose::TrainNumbers),
            now: Duration::ZERO,
            next_session: 1,
            workers: Vec::new(),
            kinds,
            machines,
            disk: Disk::default(),
            master: (0, START),
            waiting: TextSums::default(),
            root: BTreeMap::new(),
            digested: Vec::new(),
            last_root: ((0, 0), BTreeMap::new()),
            wires: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            held: None,
            offered: BTreeMap::new(),
            crash_in_commit: false,
            crashed: false,
            fault: None,
            still: false,
            talks: false,
            counts: Counts::default(),
            outcome: None,
        };
        for _ in 0..workers {
            world.workers.push(Worker::default());
            world.join(world.workers.len() - 1);
        }
        world
    }

    fn shape(&self) -> Shape {
        let RunSpec { tree, chunks, credit_window: window, .. } = *self.core.spec();
        Shape { tree, chunks, window }
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.rng.below(one_in) == 0
    }

    // ---- Coming and going ----

    fn join(&mut self, at: usize) {
        let session = self.next_session;
        self.next_session += 1;
        let worker = &mut self.workers[at];
        worker.session = Some(session);
        let held = worker.offers();
        if self.core.phase() == Phase::Recovering {
            let confirmed = held.iter().filter(|(step, digest)| self.disk.journal.get(step) == Some(digest));
            if let Some(step) = confirmed.map(|(step, _)| *step).max() {
                self.offered.insert(session, step);
            }
        }
        let name = format!("w{at}");
        self.workers[at].shape = self.shape();
        self.workers[at].accent = if self.kinds.get(at) == Some(&OTHER_BITS) { "%" } else { "" };
        let numerics_class = self.kinds.get(at).unwrap_or(&self.kinds[0]).to_string();
        let device = DeviceInfo { name: String::new(), numerics_class };
        let links = if at % 4 == 3 { LinkAbility::Dials } else { LinkAbility::Listens };
        let machine = at.checked_rem(self.machines).map_or(String::new(), |number| format!("m{number}"));
        self.feed(Event::Joined { session, name, device, threads: 1, held, links, machine });
    }

    fn worker_of(&mut self, session: Session) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|w| w.session == Some(session))
    }

    /// The process dies: what it held is gone as well.
    fn kill(&mut self, at: usize, polite: bool) {
        let worker = std::mem::take(&mut self.workers[at]);
        self.gone(worker.session, polite);
    }

    /// The connection breaks.
    fn cut(&mut self, at: usize) {
        let session = self.workers[at].session;
        self.workers[at].disconnect();
        self.gone(session, false);
    }

    fn gone(&mut self, session: Option<Session>, polite: bool) {
        if let Some(session) = session {
            self.offered.remove(&session);
            self.cut_links(session, None);
            self.feed(Event::Lost { session, reason: "gone".into(), polite });
        }
    }

    /// The links of a worker break, or the one to a peer; both ends notice.
    fn cut_links(&mut self, session: Session, peer: Option<Session>) {
        let cut = |(a, b): &(Session, Session)| *a == session && peer.is_none_or(|peer| peer == *b);
        for (a, b) in self.wires.keys().copied().filter(cut).collect::<Vec<_>>() {
            for (one, other) in [(a, b), (b, a)] {
                self.wires.remove(&(one, other));
                if let Some(worker) = self.worker_of(one) {
                    worker.said.push_back(Event::LinkDown {
                        session: one,
                        peer: other,
                        reason: "cut".into(),
                    });
                }
            }
        }
    }

    /// A worker dials another.
    fn dial(&mut self, at: usize, peer: Session) {
        let Some(session) = self.workers[at].session else { return };
        let to = self.workers.iter().position(|worker| worker.session == Some(peer));
        let reached = to.is_some_and(|to| ![at, to].iter().any(|w| self.unreachable.contains(w)));
        let said = if reached {
            for ends in [(session, peer), (peer, session)] {
                self.wires.insert(ends, VecDeque::new());
            }
            Event::LinkUp { session, peer }
        } else {
            Event::LinkDown { session, peer, reason: "nobody answers".into() }
        };
        self.workers[at].said.push_back(said);
    }

    /// The coordinator dies and is started again; with `power`, the lines that were not
    /// synced are lost as well.
    fn crash(&mut self, power: bool) {
        self.counts.crashes += 1;
        self.workers.iter_mut().for_each(Worker::disconnect);
        self.wires.clear();
        self.offered.clear();
        self.waiting.clear();
        self.root.clear();
        self.held = None;
        let (step, digest) = self.disk.checkpoints.last_key_value().map_or((0, START), |(s, d)| (*s, *d));
        if power {
            self.disk.journal.split_off(&(step + 1));
            self.disk.tests.split_off(&(step + 1));
        }
        let recorded =
            Recorded { digests: self.disk.journal.clone(), tests: self.disk.tests.clone(), grace: GRACE };
        self.master = (step, digest);
        self.core = Core::new(self.core.spec.clone(), step, digest, recorded);
        self.core.fault = self.fault;
        self.crash_in_commit = false;
        self.crashed = false;
        self.feed(Event::Wake);
    }

    // ---- The coordinator's server ----

    fn feed(&mut self, event: Event) {
        if !self.still {
            self.now += Duration::from_micros(u64::from(self.rng.below(400)));
        }
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.counts.events += 1;
            let wrong = match event {
                Event::Loaded { session, step, digest } | Event::Committed { session, step, digest, .. } => {
                    (self.digest_of_step(step) != Some(digest)).then_some(session)
                }
                _ => None,
            };
            for action in self.core.handle(self.now, event) {
                if self.talks {
                    println!("{:?} {action:?}", self.now);
                }
                self.perform(action, &mut events);
                if self.crashed {
                    return self.crash(false);
                }
            }
            self.held = None;
            if let Some(session) = wrong {
                let member = self.core.members().0.get(&session);
                let has_work = member.is_some_and(|member| member.state == State::Ready);
                assert!(!has_work, "REP-1: a replica with wrong bits is sent away, or sent the right ones");
            }
            self.check();
        }
    }

    fn digest_of_step(&self, step: u64) -> Option<Digest> {
        if step == 0 { Some(START) } else { self.disk.journal.get(&step).copied() }
    }

    /// The promises that hold at every moment.
    fn check(&self) {
        let ledger = self.core.ledger();
        assert_eq!((ledger.lost(), ledger.duplicated()), (0, 0), "DATA-1: no sample is lost or used twice");
        for (session, member) in self.core.members().0.iter().filter(|(_, m)| m.state == State::Ready) {
            let worker = self.workers.iter().find(|w| w.session == Some(*session));
            if let Some((step, digest)) = worker.filter(|w| !w.drifted).and_then(|w| w.committed) {
                assert_eq!(
                    Some(digest),
                    self.digest_of_step(step),
                    "REP-1: a replica at step {step} has its bits"
                );
            }
            assert!(member.confirmed.is_some(), "REP-1: nobody has work before its digest matched");
        }
        if let Some(flight) = self.core.flight().filter(|f| !f.closing) {
            let sharded = flight.layout.is_sharded();
            let members = &self.core.members().0;
            let tree = self.shape().tree;
            let leaves =
                (0..tree.microbatches()).filter(|leaf| !tree.samples(*leaf, flight.samples).is_empty());
            for leaf in leaves.map(|leaf| tree.leaf(leaf)) {
                // Who has sent to owners keeps what it sent; who has sent to the coordinator need not.
                let has = |node: Node| move |own: &Node| own.covers(node);
                let given = members
                    .values()
                    .any(|m| m.open.iter().any(has(leaf)) || (sharded && m.closed.iter().any(has(leaf))));
                assert!(
                    flight.is_done(leaf) || given,
                    "LIVE-1: nobody computes {leaf} of step {}",
                    flight.step
                );
            }
            for chunk in flight.missing() {
                let machines = flight.layout.machines.iter().map(|m| flight.layout.gateway(m, chunk));
                for adds in machines.chain([flight.layout.owner(chunk)]) {
                    assert!(members.contains_key(&adds.unwrap()), "LIVE-1: nobody adds up chunk {chunk}");
                }
            }
        }
    }

    // ---- Turns ----

    /// A worker takes a message or does something.
    fn act(&mut self, at: usize) {
        let turn = self.rng.below(3);
        let (sampler, worker) = (&mut self.sampler, &mut self.workers[at]);
        if worker.asleep > 0 {
            worker.asleep -= 1;
            return;
        }
        match turn {
            0 => match worker.control.pop_front() {
                Some(Control::Dial { peer }) => self.dial(at, peer),
                Some(message) => worker.hear(message),
                None => {}
            },
            1 => {
                worker.receive();
                self.receive_from_peer(at);
            }
            _ => {
                worker.advance(sampler);
            }
        }
    }

    /// A worker takes the next message from one of its links, unless that has to wait.
    fn receive_from_peer(&mut self, at: usize) {
        let Some(me) = self.workers[at].session else { return };
        let links: Vec<(Session, Session)> = self
            .wires
            .iter()
            .filter(|((_, to), wire)| *to == me && !wire.is_empty())
            .map(|(k, _)| *k)
            .collect();
        if links.is_empty() {
            return;
        }
        let link = links[self.rng.below(links.len() as u32) as usize];
        let Some(wire) = self.wires.get_mut(&link) else { return };
        if let Some(message) = wire.front()
            && self.workers[at].receive_from_peer(message)
        {
            wire.pop_front();
        }
    }

    /// The coordinator hears the next thing a worker has to say, on either stream.
    fn hear(&mut self, at: usize) {
        let (first, arrives, kind) = (self.chance(2), self.chance(2), self.rng.below(4));
        let worker = &mut self.workers[at];
        if first && let Some(event) = worker.said.pop_front() {
            return self.tell_coordinator(at, event);
        }
        let sent = worker.send(kind);
        let idle = sent.is_none();
        match sent {
            Some(Out::Coordinator(event)) => worker.up.push_back(event),
            Some(Out::Peer(to, message)) => {
                // What is sent over a link that is broken is lost.
                let from = worker.session.unwrap_or(0);
                if let Some(wire) = self.wires.get_mut(&(from, to)) {
                    wire.push_back(message);
                }
            }
            None => {}
        }
        let worker = &mut self.workers[at];
        let heard = if arrives || idle { worker.up.pop_front() } else { None };
        let heard = heard.or_else(|| if idle { worker.said.pop_front() } else { None });
        if let Some(event) = heard {
            self.tell_coordinator(at, event);
        }
    }

    fn tell_coordinator(&mut self, at: usize, mut event: Event) {
        if let Event::Committed { step, differing, .. } = &mut event
            && *step == self.last_root.0.0
        {
            let sums = &self.workers[at].last_sums;
            let differs = |index: &u32| sums.get(index) != self.last_root.1.get(index);
            *differing = Some((0..self.shape().chunks).filter(differs).collect());
        }
        if let Event::Chunk { from, node, index, digest, fault } = &mut event {
            // What a worker says in the place of a fault is the text of its chunk.
            self.held = fault.take();
            if self.held.as_deref() == Some("NaN") {
                *fault = self.held.take();
            }
            if self.core.is_audited(*from, *node) {
                *digest = self.held.as_ref().map(|text| digest_of(*index, text));
            }
        }
        self.feed(event);
    }

    fn connected(&self) -> Vec<usize> {
        (0..self.workers.len()).filter(|&at| self.workers[at].session.is_some()).collect()
    }

    /// Something happens without any fault.
    fn turn(&mut self) {
        if self.chance(8) {
            return self.feed(Event::Tick);
        }
        let away: Vec<usize> =
            (0..self.workers.len()).filter(|&at| self.workers[at].session.is_none()).collect();
        if !away.is_empty() && self.chance(20) {
            let at = away[self.rng.below(away.len() as u32) as usize];
            return self.join(at);
        }
        let connected = self.connected();
        if connected.is_empty() {
            self.now += Duration::from_millis(1);
            return;
        }
        let at = connected[self.rng.below(connected.len() as u32) as usize];
        if self.chance(2) {
            self.act(at);
        } else {
            self.hear(at);
        }
    }

    /// Runs without faults until `done`.
    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let mut turns = 0;
        while !done(self) && self.outcome.is_none() {
            turns += 1;
            assert!(turns < 300_000, "LIVE-1: the run goes on; it stands at {:?}", self.core);
            self.turn();
        }
    }

    fn finish(mut self) -> Self {
        self.until(|_| false);
        self
    }

    /// Nothing of a whole run is lost, and its bits are those of the undisturbed one.
    fn check_whole(&self, undisturbed: Digest) {
        assert_eq!(self.outcome, Some(RunOutcome::Done));
        assert!(self.disk.journal.keys().copied().eq(1..=9), "LIVE-1: each step once");
        assert!(self.disk.tests.iter().copied().eq([3, 6, 9]));
        assert_eq!(self.master, (9, undisturbed), "SUM-1 and RESUME-1: the same bits");
        assert_eq!(self.core.samples_committed(), 87, "DATA-1");
    }
}

/// The digest that a run has in the end.
fn undisturbed() -> Digest {
    World::new(0, 1).finish().master.1
}

/// The words of the first of these that panics, without a word on the terminal; `nothing` if none does.
fn panics(cases: impl Iterator<Item = impl FnOnce()>) -> String {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = cases.filter_map(|case| catch_unwind(AssertUnwindSafe(case)).err()).next();
    std::panic::set_hook(hook);
    let text = found.and_then(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()))
    });
    text.unwrap_or_else(|| "nothing".into())
}
