//! Every order of events in small clusters: all that two or three workers with two chunks can do in one or two sharded
//! steps, with few faults at any moment, is explored to the end: breadth-first, and depth-first while more states wait than
//! memory should hold.
//!
//! A state is the whole world: the real core, the workers, and what is on its way between them. A move is one message
//! that arrives, or a fault. What a worker does by itself follows at once, because nobody else sees the moment. Time
//! passes only where nothing else can happen, and as a fault, which stands for everything that is slow or frozen. The
//! promises are checked after every event, as in the random schedules, and each state must lead on until both steps
//! are committed (**LIVE-1**).
//!
//! `TALLY_EXHAUSTIVE=W,S,F,M cargo test -p tally-core exhaustive -- --nocapture` explores W workers, S steps and F faults on M
//! machines whose workers combine (0: nobody says where he is); more than what the test does takes from minutes to hours, and gigabytes.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::*;

/// Past every deadline: those that follow from measurements are at most some days.
const LONG: Duration = Duration::from_secs(10_000_000);

/// Something that can happen.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// A worker takes its next message from the control stream.
    Control(usize),
    /// A worker takes its next message from the gradient stream.
    Gradients(usize),
    /// A worker takes the next frame from a link.
    Frame(Session, Session),
    /// The coordinator takes a worker's next message from the control stream.
    Said(usize),
    /// The coordinator takes a worker's next message from the gradient stream.
    Sent(usize),
    /// A worker asks for sums of a step that counts.
    Need(usize),
    /// Time passes, because nothing else can happen.
    Wait,
    /// A worker that was killed is started again.
    Join(usize),
    /// Fault: a worker is killed.
    Kill(usize),
    /// Fault: a link breaks.
    Cut(Session, Session),
    /// Fault: a worker's connection to the coordinator breaks; it keeps its state.
    Disconnect(usize),
    /// Fault: whoever is waited for takes longer than any deadline.
    Slow,
    /// Fault: the coordinator is killed, and started again.
    Crash,
}

/// A world of which the search decides what happens next.
#[derive(Clone)]
struct Small {
    world: World,
}

impl Small {
    /// A cluster at the beginning of a sharded step.
    fn new(workers: usize, machines: usize) -> Self {
        let spec = RunSpec {
            tree: Tree::new(2).unwrap(),
            chunks: 2,
            schedule: Schedule::new(3, 8, 2).unwrap(),
            epochs: 1,
            test_samples: 1,
            checkpoint_every: None,
            audit_rate: 0.0,
            reduce: ReduceMode::Sharded,
            credit_window: 1,
            ..spec(workers)
        };
        let mut world = World::on_machines(1, spec, vec![""; workers], machines);
        world.until(|w| {
            let flight = w.core.flight().filter(|flight| !flight.closing && flight.receipts.is_empty());
            flight.is_some_and(|f| f.layout.linked.len() == workers && f.opened.is_empty())
        });
        world.still = true;
        let mut small = Self { world };
        (0..workers).for_each(|at| small.settle(at));
        small
    }

    /// A worker does all that it can do by itself, and sends what it may.
    fn settle(&mut self, at: usize) {
        let (sampler, worker) = (&mut self.world.sampler, &mut self.world.workers[at]);
        let from = worker.session.unwrap_or(0);
        if worker.session.is_none() {
            return;
        }
        loop {
            if worker.advance(sampler) {
                continue;
            }
            worker.patience = 0;
            match worker.send(0) {
                Some(Out::Coordinator(event)) => worker.up.push_back(event),
                Some(Out::Peer(to, frame)) => {
                    if let Some(wire) = self.world.wires.get_mut(&(from, to)) {
                        wire.push_back(frame);
                    }
                }
                None => return,
            }
        }
    }

    fn settle_all(&mut self) {
        (0..self.world.workers.len()).for_each(|at| self.settle(at));
    }

    /// What can happen without a fault.
    fn moves(&self) -> Vec<Move> {
        let world = &self.world;
        let mut moves = Vec::new();
        for (at, worker) in world.workers.iter().enumerate().filter(|(_, w)| w.session.is_some()) {
            moves.extend((!worker.control.is_empty()).then_some(Move::Control(at)));
            moves.extend((!worker.bulk.is_empty()).then_some(Move::Gradients(at)));
            moves.extend((!worker.said.is_empty()).then_some(Move::Said(at)));
            moves.extend((!worker.up.is_empty()).then_some(Move::Sent(at)));
            let asked = worker.said.iter().any(|event| matches!(event, Event::Need { .. }));
            moves.extend(
                (!asked && worker.bulk.is_empty() && worker.need().is_some()).then_some(Move::Need(at)),
            );
        }
        for (&(from, to), wire) in &world.wires {
            let may = |frame: &Peer| {
                let worker = world.workers.iter().find(|w| w.session == Some(to));
                worker.is_some_and(|w| frame.attempt() <= w.side.attempt)
            };
            moves.extend(wire.front().is_some_and(may).then_some(Move::Frame(from, to)));
        }
        let away = world.workers.iter().position(|w| w.session.is_none());
        if moves.is_empty() || world.connected().is_empty() {
            moves.extend(away.map(Move::Join));
        }
        if moves.is_empty() {
            moves.push(Move::Wait);
        }
        moves
    }

    fn faults(&self) -> Vec<Move> {
        let connected = self.world.connected();
        let links = self.world.wires.keys().filter(|(from, to)| from < to);
        let mut faults: Vec<Move> = connected.iter().map(|&at| Move::Kill(at)).collect();
        faults.extend(connected.iter().map(|&at| Move::Disconnect(at)));
        faults.extend(links.map(|&(from, to)| Move::Cut(from, to)));
        faults.extend([Move::Slow, Move::Crash]);
        faults
    }

    fn apply(&mut self, next: Move) {
        let world = &mut self.world;
        match next {
            Move::Control(at) => match world.workers[at].control.pop_front() {
                Some(Control::Dial { peer }) => world.dial(at, peer),
                Some(message) => world.workers[at].hear(message),
                None => {}
            },
            Move::Gradients(at) => world.workers[at].receive(),
            Move::Frame(from, to) => {
                let frame = world.wires.get_mut(&(from, to)).and_then(VecDeque::pop_front);
                if let (Some(frame), Some(worker)) = (frame, world.worker_of(to)) {
                    assert!(worker.receive_from_peer(&frame), "a frame waits for its attempt");
                }
            }
            Move::Said(at) => {
                if let Some(event) = world.workers[at].said.pop_front() {
                    world.tell_coordinator(at, event);
                }
            }
            Move::Sent(at) => {
                if let Some(event) = world.workers[at].up.pop_front() {
                    world.tell_coordinator(at, event);
                }
            }
            Move::Need(at) => {
                let need = world.workers[at].need();
                world.workers[at].said.extend(need);
            }
            Move::Wait => {
                world.now += LONG;
                world.feed(Event::Tick);
            }
            Move::Slow => {
                world.now += LONG;
                // A worker that does not send the state that it was asked for may be sent away.
                world.workers.iter_mut().for_each(|worker| worker.faulty = worker.owes_a_state());
                world.feed(Event::Tick);
                world.workers.iter_mut().for_each(|worker| worker.faulty = false);
            }
            Move::Join(at) => world.join(at),
            Move::Kill(at) => world.kill(at, false),
            Move::Disconnect(at) => world.cut(at),
            Move::Cut(from, to) => world.cut_links(from, Some(to)),
            Move::Crash => world.crash(false),
        }
        // A message to another worker may have come of it.
        self.settle_all();
    }

    /// The state without what does not matter for the future: the moment, and how often things were counted.
    fn hash(&self) -> u128 {
        let world = &self.world;
        let text = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            world.core,
            world.workers,
            world.wires,
            world.disk,
            world.root,
            world.waiting.len(),
            world.last_root.0
        );
        let text = relative(&text, world.now);
        let half = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            (salt, &text).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        half(1) << 64 | half(2)
    }
}

/// A text with its durations as `past` or `future`: no more matters of them.
fn relative(text: &str, now: Duration) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(at);
        out.push_str(before);
        let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
        let (digits, after) = number.split_at(end);
        let unit = ["ns", "µs", "ms", "s"].into_iter().find(|unit| {
            after.strip_prefix(unit).is_some_and(|next| !next.starts_with(|c: char| c.is_alphanumeric()))
        });
        let scale = unit.map(|unit| match unit {
            "ns" => 1e-9,
            "µs" => 1e-6,
            "ms" => 1e-3,
            _ => 1.0,
        });
        match (scale, unit, digits.parse::<f64>()) {
            (Some(scale), Some(unit), Ok(value)) => {
                out.push_str(if value * scale <= now.as_secs_f64() { "past" } else { "future" });
                rest = &after[unit.len()..];
            }
            _ => {
                out.push_str(digits);
                rest = after;
            }
        }
    }
    out + rest
}

/// So many states may wait before the search goes on depth-first: some 0.6 GB.
const WIDE: usize = 30_000;

/// Explores every state that so many faults can lead to, and returns how many there are.
fn explore(workers: usize, machines: usize, steps: u64, faults: u32) -> usize {
    let start = Small::new(workers, machines);
    let goal = start.world.core.committed().0 + steps;
    let mut seen = HashSet::from([start.hash()]);
    // Each state with the faults that are left and its place in the history.
    let mut frontier = VecDeque::from([(start, faults, 0usize)]);
    let mut history: Vec<(usize, Option<Move>)> = vec![(0, None)];
    let path = |history: &[(usize, Option<Move>)], mut at: usize| {
        let mut moves = Vec::new();
        while let (before, Some(made)) = history[at] {
            moves.push(made);
            at = before;
        }
        moves.reverse();
        moves
    };
    let next_of = |frontier: &mut VecDeque<_>| match frontier.len() {
        0..=WIDE => frontier.pop_front(),
        _ => frontier.pop_back(),
    };
    while let Some((state, left, place)) = next_of(&mut frontier) {
        let moves = state.moves();
        let next = moves.iter().map(|m| (*m, left));
        let harm = if left > 0 { state.faults() } else { Vec::new() };
        let mut leads_on = false;
        for (made, left) in next.chain(harm.into_iter().map(|m| (m, left.wrapping_sub(1)))) {
            let mut after = state.clone();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| after.apply(made)));
            if let Err(panic) = result {
                println!("{:?} then {made:?}", path(&history, place));
                std::panic::resume_unwind(panic);
            }
            if after.world.core.committed().0 >= goal {
                leads_on = true;
                continue;
            }
            let mut hash = after.hash();
            hash = hash.wrapping_add(u128::from(left));
            leads_on |= made_progress(&state, &after, made);
            if seen.insert(hash) {
                if seen.len().is_multiple_of(100_000) {
                    println!("{} states, {} of them wait", seen.len(), frontier.len());
                }
                history.push((place, Some(made)));
                frontier.push_back((after, left, history.len() - 1));
            }
        }
        assert!(leads_on, "LIVE-1: nothing leads on from {:?}", path(&history, place));
    }
    seen.len()
}

/// Whether a move changed anything: a cluster that only waits has hung.
fn made_progress(before: &Small, after: &Small, made: Move) -> bool {
    !matches!(made, Move::Wait) || before.hash() != after.hash()
}

#[test]
fn every_order_of_events_in_small_clusters_keeps_the_promises() {
    let asked = std::env::var("TALLY_EXHAUSTIVE").ok().map(|text| {
        let numbers: Vec<u64> = text.split(',').map(|n| n.parse().expect("four numbers")).collect();
        [numbers[0], numbers[1], numbers[2], numbers[3]]
    });
    let small = vec![[2, 2, 0, 0], [2, 1, 1, 0], [3, 1, 0, 2]];
    for [workers, steps, faults, machines] in asked.map_or(small, |asked| vec![asked]) {
        let states = explore(workers as usize, machines as usize, steps, faults as u32);
        println!(
            "{workers} workers, {machines} machines, two chunks, {steps} steps, up to {faults} faults: {states} states"
        );
        assert!(states > 1000, "only {states} states");
    }
}
