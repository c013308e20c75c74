//! The core under random schedules: joins, losses, leaves, wrong digests, broken rules,
//! gradients with NaN, in any interleaving, on a virtual clock. Sums are texts, so that a
//! sum along another tree shows.
//!
//! A failing seed prints itself; replay it with `check(SEED)`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tally_data::Schedule;
use tally_exact::digest::{Digest, fnv1a};
use tally_exact::loss::LossParts;
use tally_exact::random::{Purpose, Stream};
use tally_exact::sum::along_tree;
use tally_exact::tree::{Node, Tree};

use super::deck::Deck;
use super::events::{Action, Event, Origin, Outcome};
use super::members::Session;
use super::recipe::{LrSchedule, Recipe};
use super::reduction::Due;
use super::step::Receipt;
use super::{Core, Shape};

const CHUNKS: u32 = 3;

/// What a worker is sent; both of its streams in one order.
#[derive(Clone, Debug)]
enum Message {
    State { step: u64, digest: Digest },
    Begin { step: u64, attempt: u32 },
    Plan { step: u64, attempt: u32, samples: usize, nodes: Vec<Node> },
    Reduced { attempt: u32, index: u32, text: String },
    Commit { step: u64, digest: Digest },
    Abort { attempt: u32 },
    TestLeaf { step: u64, leaf: u32 },
}

/// A worker that does what it is told, unless the schedule says otherwise.
#[derive(Default)]
struct Worker {
    inbox: VecDeque<Message>,
    outbox: VecDeque<Event>,
    committed: Option<(u64, Digest)>,
    void: u32,
    second: Option<(u32, BTreeMap<u32, String>)>,
    replica: bool,
    /// Its memory is bad: the next update comes out wrong.
    corrupt: bool,
    /// It has come out wrong.
    drifted: bool,
}

struct Simulation {
    core: Core,
    deck: Deck,
    rng: Stream,
    now: Duration,
    next_session: Session,
    workers: BTreeMap<Session, Worker>,
    waiting: HashMap<(Node, u32), String>,
    root: BTreeMap<u32, String>,
    held: Option<String>,
    digest: Digest,
    commits: Vec<u64>,
    tests: Vec<u64>,
    drifted: usize,
    outcome: Option<Outcome>,
}

fn next_digest(before: Digest, root: &BTreeMap<u32, String>) -> Digest {
    let text = root.values().flat_map(|text| text.bytes());
    Digest(fnv1a(before.0.to_le_bytes().into_iter().chain(text)))
}

/// A node's sum of a step for a chunk, as the tree defines it.
fn sum_of(tree: Tree, step: u64, samples: usize, node: Node, chunk: u32) -> Option<String> {
    let leaf = |k: u32| (!tree.samples(k, samples).is_empty()).then(|| format!("{step}:{k}.{chunk}"));
    along_tree(tree.leaves(node).map(leaf), |l, r| format!("({l}+{r})"))
}

fn shape(workers: usize) -> Shape {
    Shape {
        tree: Tree::new(8).unwrap(),
        chunks: CHUNKS,
        // 29 samples in batches of 12: the last batch, of 5, leaves leaves empty.
        schedule: Schedule::new(3, 29, 12).unwrap(),
        epochs: 3,
        test_samples: 450,
        recipe: Recipe {
            learning_rate: 0.1,
            momentum: 0.9,
            clip_norm: None,
            warmup_steps: 0,
            lr_schedule: LrSchedule::Constant,
        },
        checkpoint_every: Some(2),
        workers,
    }
}

impl Simulation {
    fn new(seed: u64, workers: usize) -> Self {
        let shape = shape(workers);
        let mut simulation = Self {
            deck: Deck::new(shape.schedule),
            core: Core::new(shape, 0, Digest(7), 0),
            rng: Stream::new(seed, Purpose::TrainNumbers),
            now: Duration::ZERO,
            next_session: 1,
            workers: BTreeMap::new(),
            waiting: HashMap::new(),
            root: BTreeMap::new(),
            held: None,
            digest: Digest(7),
            commits: Vec::new(),
            tests: Vec::new(),
            drifted: 0,
            outcome: None,
        };
        for _ in 0..workers {
            simulation.join();
        }
        simulation
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.rng.below(one_in) == 0
    }

    fn join(&mut self) {
        let session = self.next_session;
        self.next_session += 1;
        self.workers.insert(session, Worker::default());
        self.feed(Event::Joined { session, name: format!("w{session}"), device: String::new(), threads: 1 });
    }

    fn lose(&mut self, session: Session, polite: bool) {
        self.workers.remove(&session);
        self.feed(Event::Lost { session, reason: "gone".into(), polite });
    }

    fn feed(&mut self, event: Event) {
        self.now += Duration::from_micros(u64::from(self.rng.below(1000)));
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.core.handle(self.now, event) {
                self.perform(action, &mut events);
            }
            self.held = None;
        }
    }

    fn send(&mut self, to: Session, message: Message) {
        if let Some(worker) = self.workers.get_mut(&to) {
            worker.inbox.push_back(message);
        }
    }

    fn broadcast(&mut self, message: &Message) {
        for worker in self.workers.values_mut().filter(|w| w.replica) {
            worker.inbox.push_back(message.clone());
        }
    }

    fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::SendState { session } => {
                let (step, digest) = self.core.committed();
                if let Some(worker) = self.workers.get_mut(&session) {
                    worker.replica = true;
                }
                self.send(session, Message::State { step, digest });
            }
            Action::Begin { step, attempt, .. } => {
                self.waiting.clear();
                self.root.clear();
                self.broadcast(&Message::Begin { step, attempt });
            }
            Action::Plan { session, step, attempt, samples, nodes } => {
                self.send(session, Message::Plan { step, attempt, samples, nodes });
            }
            Action::Take { node, index } => {
                let text = self.held.take().expect("a chunk is taken once");
                self.waiting.insert((node, index), text);
            }
            Action::Reduce(Due::Add { parent, chunk }) => {
                let [l, r] = parent
                    .children()
                    .map(|c| self.waiting.remove(&(c, chunk)).expect("both children are there"));
                self.waiting.insert((parent, chunk), format!("({l}+{r})"));
            }
            Action::Reduce(Due::Rise { child, chunk }) => {
                let text = self.waiting.remove(&(child, chunk)).expect("the child is there");
                self.waiting.insert((child.parent().unwrap(), chunk), text);
            }
            Action::Reduce(Due::Emit { chunk }) => {
                let text = self.waiting.remove(&(Node::ROOT, chunk)).expect("the root is there");
                let attempt = self.core.flight().unwrap().attempt;
                self.broadcast(&Message::Reduced { attempt, index: chunk, text: text.clone() });
                self.root.insert(chunk, text);
            }
            Action::Close { step, .. } => {
                // SUM-1: whatever happened on the way, this is the tree's sum.
                let samples = self.deck.batch_len(step);
                for chunk in 0..CHUNKS {
                    let expect = sum_of(Tree::new(8).unwrap(), step, samples, Node::ROOT, chunk);
                    assert_eq!(self.root.get(&chunk), expect.as_ref(), "SUM-1 at step {step}");
                }
                self.digest = next_digest(self.digest, &self.root);
                events.push_back(Event::Applied { digest: self.digest });
            }
            Action::Commit(c) => {
                assert_eq!(
                    c.step,
                    self.commits.last().map_or(1, |s| s + 1),
                    "no step is skipped or repeated"
                );
                assert_eq!(c.samples, self.deck.batch_len(c.step), "LIVE-1: no batch shrinks");
                self.commits.push(c.step);
                self.broadcast(&Message::Commit { step: c.step, digest: c.digest });
            }
            Action::Abort { attempt, .. } => self.broadcast(&Message::Abort { attempt }),
            Action::Evict { session, drifted, .. } => {
                self.drifted += usize::from(drifted);
                self.workers.remove(&session);
            }
            Action::SendTestLeaf { session, step, leaf } => {
                self.send(session, Message::TestLeaf { step, leaf })
            }
            Action::TestDone { step, .. } => self.tests.push(step),
            Action::Finish(outcome) => self.outcome = Some(outcome),
            Action::SendLeaf { .. }
            | Action::Checkpoint { .. }
            | Action::TestBegin { .. }
            | Action::Note(_) => {}
        }
    }

    /// A worker takes its next message.
    fn deliver(&mut self, session: Session) {
        let deck = &mut self.deck;
        let Some(worker) = self.workers.get_mut(&session) else { return };
        let Some(message) = worker.inbox.pop_front() else { return };
        match message {
            Message::State { step, digest } => {
                worker.committed = Some((step, digest));
                worker.outbox.push_back(Event::Loaded { session, step, digest });
            }
            Message::Begin { step, attempt } => {
                assert_eq!(worker.committed.map(|c| c.0 + 1), Some(step), "a replica is at a committed step");
                worker.second = Some((attempt, BTreeMap::new()));
            }
            Message::Plan { step, attempt, samples, nodes } => {
                let (at, digest) = worker.committed.expect("work is given to replicas");
                assert_eq!(at + 1, step, "a plan is for the step after the committed one");
                if attempt <= worker.void {
                    return;
                }
                let tree = Tree::new(8).unwrap();
                let from = Origin { session, step, attempt };
                for node in nodes {
                    let samples_digest = deck.node_digest(tree, step, node);
                    worker.outbox.push_back(Event::Header { from, node, digest, samples: samples_digest });
                    worker.outbox.extend((0..CHUNKS).map(|index| Event::Chunk {
                        from,
                        node,
                        index,
                        fault: None,
                    }));
                    let receipts = tree.leaves(node).filter_map(|leaf| {
                        let samples = tree.samples(leaf, samples).len() as u32;
                        let losses = LossParts { label: f64::from(leaf), sum: 1.0, difference: 0.5 };
                        (samples > 0).then_some(Receipt { leaf, samples, losses })
                    });
                    worker.outbox.push_back(Event::Trailer {
                        from,
                        node,
                        receipts: receipts.collect(),
                        computed: 0.01,
                    });
                }
            }
            Message::Reduced { attempt, index, text } => {
                if let Some((of, chunks)) = &mut worker.second
                    && *of == attempt
                {
                    chunks.insert(index, text);
                }
            }
            Message::Commit { step, digest } => {
                let (_, before) = worker.committed.expect("replicas get commits");
                let (_, chunks) = worker.second.take().expect("a commit follows its sum");
                let mut own = next_digest(before, &chunks);
                if std::mem::take(&mut worker.corrupt) {
                    own = Digest(own.0 ^ 1);
                    worker.drifted = true;
                }
                if !worker.drifted {
                    assert_eq!(own, digest, "REP-1: a replica that was told everything agrees");
                }
                worker.committed = Some((step, own));
                worker.outbox.push_back(Event::Committed {
                    session,
                    step,
                    digest: own,
                    apply: 0.0,
                    round: 0.0,
                });
            }
            Message::Abort { attempt } => {
                worker.void = worker.void.max(attempt);
                worker.second = None;
            }
            Message::TestLeaf { step, leaf } => {
                worker.outbox.push_back(Event::Answered { session, step, leaf })
            }
        }
    }

    /// The coordinator hears the next thing a worker has to say.
    fn hear(&mut self, session: Session) {
        let Some(event) = self.workers.get_mut(&session).and_then(|w| w.outbox.pop_front()) else { return };
        if let Event::Chunk { from, node, index, .. } = &event {
            let samples = self.deck.batch_len(from.step);
            self.held = sum_of(Tree::new(8).unwrap(), from.step, samples, *node, *index);
        }
        self.feed(event);
    }

    fn random_worker(&mut self) -> Option<Session> {
        let count = self.workers.len() as u32;
        let at = self.rng.below(count.max(1)) as usize;
        self.workers.keys().nth(at).copied()
    }

    /// The worker says that its gradient has NaN in it. Only one worker ever does in a
    /// step: a second would mean that the model has diverged.
    fn report_nan(&mut self, session: Session) {
        let from = self.core.flight().map(|f| Origin { session, step: f.step, attempt: f.attempt });
        let node = self.core.members().0.get(&session).and_then(|m| m.open.first().copied());
        let others = self.core.members().ready().len() > 1;
        let allowed = self.core.non_finite.is_none_or(|before| before == session && others);
        if let (Some(from), Some(node), true) = (from, node, allowed) {
            self.feed(Event::NonFinite { from, node, tensor: "conv1.weight".into() });
        }
    }

    /// One random thing happens; `faults` is how many may still go wrong.
    fn tick(&mut self, faults: &mut u32) {
        // A new run waits until it has as many workers as it was told.
        if self.core.committed().0 == 0 && self.workers.len() < self.core.shape().workers {
            return self.join();
        }
        let Some(session) = self.random_worker() else { return self.join() };
        if *faults > 0 && self.chance(12) {
            *faults -= 1;
            match self.rng.below(8) {
                0 => self.lose(session, false),
                1 => self.lose(session, true),
                2 => self.join(),
                3 => self.workers.get_mut(&session).unwrap().corrupt = true,
                // A chunk that breaks the rules, in place of whatever it would have said.
                4 => {
                    let at =
                        self.workers[&session].outbox.iter().position(|e| matches!(e, Event::Chunk { .. }));
                    if let Some(at) = at
                        && let Some(Event::Chunk { fault, .. }) =
                            self.workers.get_mut(&session).unwrap().outbox.get_mut(at)
                    {
                        *fault = Some("broken".into());
                    }
                }
                // Said twice: a header, a chunk or a trailer.
                5 => {
                    let said = self.workers[&session].outbox.front().cloned();
                    self.workers.get_mut(&session).unwrap().outbox.extend(said);
                }
                // A contribution with a hole in it.
                6 => {
                    let chunk = |e: &Event| matches!(e, Event::Chunk { .. });
                    let outbox = &mut self.workers.get_mut(&session).unwrap().outbox;
                    if let Some(at) = outbox.iter().position(chunk) {
                        outbox.remove(at);
                    }
                }
                _ => self.report_nan(session),
            }
        } else if self.chance(2) {
            self.deliver(session);
        } else {
            self.hear(session);
        }
    }

    fn run(mut self, mut faults: u32) -> Self {
        let mut ticks = 0;
        while self.outcome.is_none() {
            ticks += 1;
            assert!(ticks < 200_000, "LIVE-1: the run comes to its end; it stands at {:?}", self.core);
            self.tick(&mut faults);
        }
        self
    }
}

fn check(seed: u64) {
    let undisturbed = Simulation::new(0, 1).run(0);
    let workers = 1 + (seed % 5) as usize;
    let run = Simulation::new(seed, workers).run(40);
    let steps: Vec<u64> = (1..=9).collect();
    assert_eq!(run.outcome, Some(Outcome::Done), "seed {seed}");
    assert_eq!((run.commits, run.tests), (steps, vec![3, 6, 9]), "seed {seed}");
    assert_eq!(run.digest, undisturbed.digest, "seed {seed}: RESUME-1 and SUM-1, the same bits");
    let ledger = run.core.ledger();
    assert_eq!((ledger.committed(), ledger.lost(), ledger.duplicated()), (87, 0, 0), "seed {seed}: DATA-1");
}

#[test]
fn all_promises_hold_under_random_schedules() {
    for seed in 0..1000 {
        let result = std::panic::catch_unwind(|| check(seed));
        assert!(result.is_ok(), "schedule {seed} broke a promise; replay it with check({seed})");
    }
}

#[test]
fn rep_1_a_replica_with_wrong_bits_is_sent_away_and_counted() {
    let mut simulation = Simulation::new(1, 3);
    simulation.workers.get_mut(&2).unwrap().corrupt = true;
    let run = simulation.run(0);
    assert_eq!((run.outcome, run.drifted, run.workers.len()), (Some(Outcome::Done), 1, 2));
}

/// Drives a run of three workers to step 4, where `who` report NaN one after the other.
fn with_nan_from(who: &[Session]) -> Simulation {
    let mut simulation = Simulation::new(1, 3);
    let mut reports = who.iter();
    let mut next = reports.next();
    while simulation.outcome.is_none() {
        simulation.tick(&mut 0);
        let Some((step, attempt)) = simulation.core.flight().map(|f| (f.step, f.attempt)) else { continue };
        let Some(&session) = next.filter(|_| step == 4) else { continue };
        let member = simulation.core.members().0.get(&session);
        if let Some(node) = member.and_then(|m| m.open.first().copied()) {
            next = reports.next();
            let from = Origin { session, step, attempt };
            simulation.feed(Event::NonFinite { from, node, tensor: "conv6.weight".into() });
        }
    }
    simulation
}

#[test]
fn nan_that_two_workers_find_is_the_models() {
    let run = with_nan_from(&[1, 2]);
    let expect = Outcome::Diverged { step: 4, tensor: "conv6.weight".into() };
    assert_eq!((run.outcome, run.commits), (Some(expect), vec![1, 2, 3]));
    assert_eq!(run.workers.len(), 3, "nobody is sent away for it");
}

#[test]
fn nan_that_only_one_worker_finds_is_its_own() {
    let run = with_nan_from(&[2]);
    assert_eq!((run.outcome, run.commits.len(), run.workers.len()), (Some(Outcome::Done), 9, 2));
    assert!(!run.workers.contains_key(&2));
}

#[test]
fn a_stop_lets_the_step_in_flight_finish() {
    let mut simulation = Simulation::new(5, 2);
    while simulation.core.flight().is_none_or(|f| f.step < 2) {
        simulation.tick(&mut 0);
    }
    simulation.feed(Event::Stop);
    let run = simulation.run(0);
    assert_eq!((run.outcome, run.commits), (Some(Outcome::Stopped), vec![1, 2]));
}

#[test]
fn a_stop_ends_even_if_every_worker_goes() {
    for seed in 0..50 {
        let mut simulation = Simulation::new(seed, 3);
        while simulation.core.flight().is_none_or(|f| f.step < 2) {
            simulation.tick(&mut 0);
        }
        simulation.feed(Event::Stop);
        while let Some(session) = simulation.random_worker() {
            simulation.lose(session, false);
        }
        assert_eq!(simulation.outcome, Some(Outcome::Stopped), "seed {seed}");
    }
}

#[test]
fn a_run_that_was_done_before_it_could_say_so_ends_at_once() {
    let mut core = Core::new(shape(2), 9, Digest(1), 3);
    assert_eq!(core.handle(Duration::ZERO, Event::Wake), [Action::Finish(Outcome::Done)]);
}

#[test]
fn resume_1_a_run_cut_anywhere_ends_in_the_same_bits() {
    let undisturbed = Simulation::new(0, 1).run(0);
    for cut in 1..9 {
        let mut first = Simulation::new(cut, 2);
        while first.core.committed().0 < cut {
            first.tick(&mut 0);
        }
        let tested = first.tests.len() as u32;
        let mut second = Simulation::new(cut + 100, 0);
        second.core = Core::new(shape(1), cut, first.digest, tested);
        second.digest = first.digest;
        second.commits = first.commits;
        let second = second.run(0);
        assert_eq!(second.digest, undisturbed.digest, "cut after step {cut}");
        let ledger = second.core.ledger();
        assert_eq!(
            (second.core.samples_committed(), ledger.lost(), ledger.duplicated()),
            (87, 0, 0),
            "DATA-1"
        );
    }
}
