//! Random schedules of faults. A failing one prints its seed; `TALLY_TEST_SEED=N cargo test -p tally-core schedules
//! -- --nocapture` repeats that schedule and prints its events.

use std::panic::catch_unwind;
use std::sync::OnceLock;

use super::*;

const SCHEDULES: u64 = 2000;
const FAULTS: u32 = 40;

fn wanted() -> Digest {
    static WANTED: OnceLock<Digest> = OnceLock::new();
    *WANTED.get_or_init(undisturbed)
}

impl World {
    /// A worker says that its gradient has NaN in it. Only one worker ever does in a
    /// step: a second would mean that the model has diverged.
    fn report_nan(&mut self, session: Session) {
        let from = self.core.flight().map(|f| AttemptId { session, step: f.step, attempt: f.attempt });
        let node = self.core.members().0.get(&session).and_then(|m| m.open.first().copied());
        let others = self.core.members().ready().len() > 1;
        let allowed = self.core.non_finite.is_none_or(|before| before == session && others);
        if let (Some(from), Some(node), true) = (from, node, allowed) {
            self.feed(Event::NonFinite { from, node, tensor: "conv1.weight".into() });
        }
    }

    /// The next message of a contribution to the coordinator, in the star.
    fn next_to_coordinator(&mut self, at: usize) -> Option<Event> {
        if self.core.flight().is_none_or(|flight| flight.layout.is_sharded()) {
            return None;
        }
        let worker = &mut self.workers[at];
        if worker.up.is_empty()
            && let Some(Out::Coordinator(event)) = worker.send(3)
        {
            worker.up.push_back(event);
        }
        worker.up.pop_front()
    }

    /// Something goes wrong with a worker.
    fn fault(&mut self, at: usize) {
        let kinds = if self.core.spec().reduce == ReduceMode::Star { 14 } else { 20 };
        let kind = match self.rng.below(kinds) {
            // After a crash all links have to come back first.
            10..=12 if kinds > 14 && !self.chance(4) => 14 + self.rng.below(6),
            kind => kind,
        };
        let chunk = |e: &Event| matches!(e, Event::Chunk { .. });
        self.workers[at].faulty |= matches!(kind, 4 | 7..=9 | 13 | 16 | 17 | 19);
        match kind {
            0 => self.kill(at, false),
            1 => self.kill(at, true),
            2 => self.cut(at),
            3 => {
                self.workers.push(Worker::default());
                self.join(self.workers.len() - 1);
            }
            4 => self.workers[at].corrupt = true,
            // Frozen, or much slower than it was.
            5 => self.workers[at].asleep = 20 + self.rng.below(400),
            6 => self.now += Duration::from_millis(u64::from(self.rng.below(500))),
            // A chunk that breaks a rule, after a wrong one that could not be recognised.
            7 => {
                let speculative = self.core.flight().is_some_and(|f| !f.speculative.is_empty());
                let next = if speculative { None } else { self.next_to_coordinator(at) };
                if let Some(Event::Chunk { from, node, index, fault, .. }) = next {
                    self.held = fault.map(|text| text + "!");
                    self.feed(Event::Chunk { from, node, index, digest: None, fault: None });
                    let fault = Some("broken".into());
                    self.feed(Event::Chunk { from, node, index: index + 1, digest: None, fault });
                } else if let Some(other) = next {
                    self.feed(other);
                }
            }
            // Said twice: a header, a chunk or a trailer.
            8 => {
                let said = self.workers[at].sent.front().cloned();
                self.workers[at].sent.extend(said);
            }
            // A contribution with a hole in it.
            9 => {
                let sent = &mut self.workers[at].sent;
                if let Some(hole) = sent.iter().position(chunk) {
                    sent.remove(hole);
                }
            }
            10 => self.crash(false),
            11 => self.crash(true),
            12 => self.crash_in_commit = true,
            // A cable, a firewall, an owner with bad memory, a long silence.
            14 => {
                let (Some(session), n) = (self.workers[at].session, self.workers.len() as u32) else {
                    return;
                };
                let peer = self.workers[self.rng.below(n) as usize].session;
                if peer.is_some() {
                    self.cut_links(session, peer);
                }
            }
            15 => {
                if !self.unreachable.remove(&at) {
                    self.unreachable.insert(at);
                    self.workers[at].session.into_iter().for_each(|session| self.cut_links(session, None));
                }
            }
            16 => self.workers[at].side.lies = true,
            17 => self.workers[at].side.nan = true,
            19 => self.workers[at].other_samples = true,
            18 => self.now += Duration::from_millis(u64::from(self.rng.below(5000))),
            _ => {
                if let Some(session) = self.workers[at].session {
                    self.report_nan(session);
                }
            }
        }
    }

    fn run(mut self, mut faults: u32) -> Self {
        let mut turns = 0;
        while self.outcome.is_none() {
            turns += 1;
            assert!(turns < 1_000_000, "LIVE-1: the run comes to its end; it stands at {:?}", self.core);
            // A new run waits until it has as many workers as it was told.
            let started = self.core.started || self.connected().len() >= self.core.spec().workers;
            if started && faults > 0 && self.chance(40) {
                faults -= 1;
                let at = self.rng.below(self.workers.len() as u32) as usize;
                self.fault(at);
            } else {
                self.turn();
            }
        }
        self
    }
}

fn schedule(seed: u64, fault: Option<FaultInjection>, talks: bool) -> Counts {
    let reduce = if seed.is_multiple_of(2) { ReduceMode::Sharded } else { ReduceMode::Star };
    let spec = RunSpec { reduce, ..spec(1 + (seed / 2 % 5) as usize) };
    let kinds = vec![""; spec.workers];
    let mut world = World::on_machines(seed, spec, kinds, (seed / 10 % 4) as usize);
    world.talks = talks;
    world.fault = fault;
    world.core.fault = fault;
    let world = world.run(FAULTS);
    world.check_whole(wanted());
    world.counts
}

#[test]
fn all_promises_hold_under_random_schedules() {
    let alone =
        std::env::var("TALLY_TEST_SEED").ok().map(|seed| seed.parse().expect("TALLY_TEST_SEED is a number"));
    if let Some(seed) = alone {
        println!("{:?}", schedule(seed, None, true));
        return;
    }
    let mut all = Counts::default();
    for seed in 0..SCHEDULES {
        let result = catch_unwind(|| schedule(seed, None, false));
        let counts = result.unwrap_or_else(|_| {
            panic!(
                "schedule {seed} broke a promise; TALLY_TEST_SEED={seed} cargo test -p tally-core schedules"
            )
        });
        assert!(counts.events >= 200, "schedule {seed} has only {} events", counts.events);
        all.events += counts.events;
        all.crashes += counts.crashes;
        all.adopted += counts.adopted;
        all.recomputed += counts.recomputed;
        all.late += counts.late;
        all.drifted += counts.drifted;
        all.audits.extend(counts.audits);
        all.sums_audited += counts.sums_audited;
        all.sharded += counts.sharded;
        all.taken_back += counts.taken_back;
        all.resent += counts.resent;
    }
    println!(
        "{SCHEDULES} schedules, {} events, {} crashes of the coordinator, {} states adopted, {} steps computed \
         again, {} late shares, {} replicas drifted, {} audits, {} of them of sums, {} sharded attempts, chunks taken back {} times, sums sent \
         again {} times",
        all.events,
        all.crashes,
        all.adopted,
        all.recomputed,
        all.late,
        all.drifted,
        all.audits.len(),
        all.sums_audited,
        all.sharded,
        all.taken_back,
        all.resent
    );
    // An event that never happens proves nothing.
    for (what, count) in [
        ("adopted", all.adopted),
        ("recomputed", all.recomputed),
        ("late", all.late),
        ("audits of sums", all.sums_audited),
        ("sharded", all.sharded),
        ("taken back", all.taken_back),
        ("resent", all.resent),
    ] {
        assert!(count > 100, "only {count} {what}");
    }
}

/// Breaks a rule, and returns the promise that the schedules found broken.
fn caught(rule: FaultInjection) -> String {
    panics((0..SCHEDULES).map(|seed| move || drop(schedule(seed, Some(rule), false))))
}

/// Each rule that is broken on purpose is noticed as a violation of the promise that it keeps.
#[test]
fn a_broken_rule_is_noticed_by_the_schedules() {
    let rules = [
        (FaultInjection::ForgetTakeover, "LIVE-1"),
        (FaultInjection::ForgetTestMicrobatch, "LIVE-1"),
        (FaultInjection::CloseHalfContribution, "LIVE-1"),
        (FaultInjection::KeepLedger, "DATA-1"),
        (FaultInjection::AcceptOldAttempts, "LIVE-1"),
        (FaultInjection::ForgiveViolation, "SUM-1"),
        (FaultInjection::AcceptAnyReplica, "SUM-1"),
        (FaultInjection::IgnoreDrift, "REP-1"),
        (FaultInjection::AdoptAnyState, "REP-1"),
        (FaultInjection::KeepAnyRetainedState, "RESUME-1"),
        (FaultInjection::ForgetTakeBack, "LIVE-1"),
        (FaultInjection::TrustTrailers, "LIVE-1"),
        (FaultInjection::CreditByIndex, "LIVE-1"),
        (FaultInjection::BlameReceiver, "LIVE-1"),
    ];
    for (rule, promise) in rules {
        let found = caught(rule);
        println!("{rule:?}: {found:.90}");
        assert!(found.contains(promise), "{rule:?} is noticed as {found:.300}");
    }
}
