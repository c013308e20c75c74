//! The core with simulated workers, streams, a disk and a virtual clock. Faults of every kind happen in seeded random
//! orders. Sums are texts, so that a sum along another tree is visible. [`schedules`] has the random runs and shows
//! that each rule, broken on purpose, is noticed; [`cases`] has the interleavings by name.
//!
//! The promises are checked after every event, and carry their names where they fail.

mod cases;
mod schedules;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tally_numerics::digest::Digest;
use tally_numerics::order::Schedule;
use tally_numerics::random::{Purpose, Stream};
use tally_numerics::tree::{Node, Tree};

use super::cluster::DeviceInfo;
use super::cluster::{Session, State};
use super::events::{Action, AttemptId, AuditResult, ClusterEvent, Event, RunOutcome};
use super::fault_injection::FaultInjection;
use super::optimizer::{Algorithm, OptimizerConfig};
use super::recovery::Recorded;
use super::reduction::ReductionStep;
use super::sampler::EpochSampler;
use super::{Core, Phase, RunSpec};
use worker::{Bulk, Control, Worker, digest_of, next_digest, sum_of};

const CHUNKS: u32 = 12;
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
    }
}

/// The state on disk, which survives the coordinator.
#[derive(Default)]
struct Disk {
    journal: BTreeMap<u64, Digest>,
    tests: BTreeSet<u64>,
    checkpoints: BTreeMap<u64, Digest>,
}

/// What went wrong, and what was done about it.
#[derive(Debug, Default)]
struct Counts {
    events: u64,
    crashes: u32,
    adopted: u32,
    recomputed: u32,
    late: u32,
    drifted: u32,
    audits: Vec<AuditResult>,
}

struct World {
    core: Core,
    sampler: EpochSampler,
    rng: Stream,
    now: Duration,
    next_session: Session,
    workers: Vec<Worker>,
    /// What the first workers compute with.
    kinds: Vec<&'static str>,
    disk: Disk,
    /// The master state.
    master: (u64, Digest),
    waiting: HashMap<(Node, u32), String>,
    root: BTreeMap<u32, String>,
    held: Option<String>,
    /// A newer state than the checkpoint, confirmed by the journal, that a worker offers.
    offered: BTreeMap<Session, u64>,
    /// The coordinator dies at its next commit, between the journal and the workers.
    crash_in_commit: bool,
    crashed: bool,
    fault: Option<FaultInjection>,
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
        let workers = kinds.len();
        let mut world = Self {
            sampler: EpochSampler::new(spec.schedule),
            core: Core::new(spec, 0, START, Recorded::default()),
            rng: Stream::new(seed, Purpose::TrainNumbers),
            now: Duration::ZERO,
            next_session: 1,
            workers: Vec::new(),
            kinds,
            disk: Disk::default(),
            master: (0, START),
            waiting: HashMap::new(),
            root: BTreeMap::new(),
            held: None,
            offered: BTreeMap::new(),
            crash_in_commit: false,
            crashed: false,
            fault: None,
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
        let numerics_class = self.kinds.get(at).unwrap_or(&self.kinds[0]).to_string();
        let device = DeviceInfo { name: String::new(), numerics_class };
        self.feed(Event::Joined { session, name, device, threads: 1, held });
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
            self.feed(Event::Lost { session, reason: "gone".into(), polite });
        }
    }

    /// The coordinator dies and is started again; with `power`, the lines that were not
    /// synced are lost as well.
    fn crash(&mut self, power: bool) {
        self.counts.crashes += 1;
        self.workers.iter_mut().for_each(Worker::disconnect);
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
        self.now += Duration::from_micros(u64::from(self.rng.below(400)));
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
                let stays = self.core.members().0.contains_key(&session);
                assert!(!stays, "REP-1: a replica with wrong bits is sent away");
            }
            self.check();
        }
    }

    fn digest_of_step(&self, step: u64) -> Option<Digest> {
        if step == 0 { Some(START) } else { self.disk.journal.get(&step).copied() }
    }

    fn tell(&mut self, to: Session, message: Control) {
        if let Some(worker) = self.worker_of(to) {
            worker.control.push_back(message);
        }
    }

    fn tell_replicas(&mut self, message: &Control) {
        for worker in self.workers.iter_mut().filter(|w| w.session.is_some() && w.replica) {
            worker.control.push_back(message.clone());
        }
    }

    fn broadcast(&mut self, message: &Bulk) {
        for worker in self.workers.iter_mut().filter(|w| w.session.is_some() && w.replica) {
            worker.bulk.push_back(message.clone());
        }
    }

    fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::SendState { session, during } => {
                let (step, digest) = self.core.committed();
                if let Some(worker) = self.worker_of(session) {
                    worker.replica = true;
                    worker.bulk.push_back(Bulk::State { step, digest });
                }
                self.catch_up(session, during);
            }
            Action::Keep { session, during } => {
                let (step, digest) = self.core.committed();
                if let Some(worker) = self.worker_of(session) {
                    worker.replica = true;
                    worker.control.push_back(Control::Keep { step, digest });
                }
                self.catch_up(session, during);
            }
            Action::Upload { session, step } => self.tell(session, Control::Upload { step }),
            Action::Adopt { .. } => self.master = self.core.committed(),
            Action::Begin { step, attempt, .. } => {
                if let Some(best) = self.offered.values().max() {
                    assert!(
                        step > *best,
                        "RESUME-1: step {best} is held by a worker, yet {step} is computed again"
                    );
                }
                self.offered.clear();
                self.waiting.clear();
                self.root.clear();
                self.broadcast(&Bulk::Begin { step, attempt });
            }
            Action::Plan { session, step, attempt, samples, nodes, .. } => {
                self.tell(session, Control::Plan { step, attempt, samples, nodes, audit: false });
            }
            Action::Audit { session, step, attempt, samples, node } => {
                self.tell(session, Control::Plan { step, attempt, samples, nodes: vec![node], audit: true });
            }
            Action::Take { node, index } => {
                let text = self.held.take().expect("a chunk is taken once");
                self.waiting.retain(|(other, chunk), _| *chunk != index || !node.covers(*other));
                self.waiting.insert((node, index), text);
            }
            Action::Reduce(ReductionStep::Add { parent, chunk }) => {
                let [l, r] = parent
                    .children()
                    .map(|c| self.waiting.remove(&(c, chunk)).expect("SUM-1: both children are there"));
                self.waiting.insert((parent, chunk), format!("({l}+{r})"));
            }
            Action::Reduce(ReductionStep::Promote { child, chunk }) => {
                let text = self.waiting.remove(&(child, chunk)).expect("SUM-1: the child is there");
                self.waiting.insert((child.parent().unwrap(), chunk), text);
            }
            Action::Reduce(ReductionStep::RootReady { chunk }) => {
                let text = self.waiting.remove(&(Node::ROOT, chunk)).expect("SUM-1: the root is there");
                let (step, attempt) = self.core.flight().map(|f| (f.step, f.attempt)).unwrap();
                self.broadcast(&Bulk::Reduced { step, attempt, index: chunk, text: text.clone() });
                self.root.insert(chunk, text);
            }
            Action::Close { step, .. } => {
                // Whatever happened before, this is the tree's sum.
                let samples = self.sampler.batch_len(step);
                for chunk in 0..CHUNKS {
                    let expect = sum_of(tree(), step, samples, Node::ROOT, chunk);
                    assert_eq!(self.root.get(&chunk), expect.as_ref(), "SUM-1 at step {step}");
                }
                self.master = (step, next_digest(self.master.1, &self.root));
                events.push_back(Event::Applied { digest: self.master.1 });
            }
            Action::Commit(c) => {
                assert_eq!((c.step, c.digest), self.master, "REP-1: the commit is the master state");
                assert_eq!(c.samples, self.sampler.batch_len(c.step), "LIVE-1: no batch shrinks");
                match self.disk.journal.get(&c.step) {
                    Some(recorded) => {
                        self.counts.recomputed += 1;
                        assert_eq!(*recorded, c.digest, "RESUME-1: a step computed again has its bits");
                    }
                    None => {
                        let last = self.disk.journal.last_key_value().map_or(0, |(step, _)| *step);
                        assert_eq!(c.step, last + 1, "LIVE-1: no step is skipped or repeated");
                        self.disk.journal.insert(c.step, c.digest);
                    }
                }
                if self.crash_in_commit {
                    self.crashed = true;
                    return;
                }
                self.tell_replicas(&Control::Commit { step: c.step, digest: c.digest });
            }
            Action::Abort { step, attempt, .. } => self.tell_replicas(&Control::Abort { step, attempt }),
            Action::Evict { session, drifted, reason } => {
                self.counts.drifted += u32::from(drifted);
                self.offered.remove(&session);
                if let Some(worker) = self.worker_of(session) {
                    assert!(
                        worker.faulty,
                        "LIVE-1: a worker that did what it was told is sent away: {reason}"
                    );
                    worker.disconnect();
                }
            }
            Action::SendTestLeaf { session, step, leaf } => {
                self.tell(session, Control::TestLeaf { step, leaf });
            }
            Action::TestDone { step, .. } => {
                self.disk.tests.insert(step);
            }
            Action::Checkpoint { step } => {
                assert_eq!(step, self.master.0, "CKPT-1: a checkpoint is of a committed step");
                self.disk.checkpoints.insert(step, self.master.1);
            }
            Action::Report(ClusterEvent::Adopted { .. }) => self.counts.adopted += 1,
            Action::Report(ClusterEvent::Late { .. }) => self.counts.late += 1,
            Action::Report(ClusterEvent::Audited { result, .. }) => self.counts.audits.push(result),
            Action::Finish(outcome) => self.outcome = Some(outcome),
            Action::SendLeaf { .. } | Action::TestBegin { .. } | Action::Report(_) => {}
        }
    }

    /// Sends a newcomer what was broadcast of the step in flight.
    fn catch_up(&mut self, session: Session, during: Option<(u64, u32)>) {
        let Some((step, attempt)) = during else { return };
        let reduced: Vec<(u32, String)> =
            self.root.iter().map(|(index, text)| (*index, text.clone())).collect();
        let Some(worker) = self.worker_of(session) else { return };
        worker.bulk.push_back(Bulk::Begin { step, attempt });
        for (index, text) in reduced {
            worker.bulk.push_back(Bulk::Reduced { step, attempt, index, text });
        }
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
            let open: Vec<Node> =
                self.core.members().0.values().flat_map(|m| m.open.iter().copied()).collect();
            let leaves = (0..8).filter(|leaf| !tree().samples(*leaf, flight.samples).is_empty());
            for leaf in leaves.map(|leaf| tree().leaf(leaf)) {
                let given = flight.is_done(leaf) || open.iter().any(|node| node.covers(leaf));
                assert!(given, "LIVE-1: nobody computes {leaf} of step {}", flight.step);
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
            0 => {
                if let Some(message) = worker.control.pop_front() {
                    worker.hear(message);
                }
            }
            1 => worker.receive(),
            _ => {
                worker.advance(sampler, tree());
            }
        }
    }

    /// The coordinator hears the next thing a worker has to say, on either stream.
    fn hear(&mut self, at: usize) {
        let first = self.chance(2);
        let worker = &mut self.workers[at];
        let said = if first { worker.said.pop_front() } else { None };
        let next = said.or_else(|| worker.send()).or_else(|| worker.said.pop_front());
        let Some(mut event) = next else { return };
        if let Event::Chunk { from, node, index, digest, fault } = &mut event {
            // What a worker says in the place of a fault is the text of its chunk.
            self.held = fault.take();
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
