//! Directed cases of audits of what owners add up.

use super::sharded::{many, sharded_spec};
use super::*;

impl World {
    /// Workers on so many machines, and at the beginning of a step whose sums are audited the owner whose sums they are.
    fn before_audit(seed: u64, workers: usize, machines: usize) -> (Self, Option<Session>) {
        let spec = RunSpec { audit_rate: 1.0, ..sharded_spec(workers) };
        let mut world = Self::on_machines(seed, spec, vec![""; workers], machines);
        let audited = |w: &Self| {
            let flight = w.core.flight().filter(|f| !f.closing && f.layout.is_sharded())?;
            (flight.reduction.emitted() == 0).then(|| w.core.audited_owner()).flatten()
        };
        world.until(|w| audited(w).is_some());
        let owner = audited(&world);
        (world, owner)
    }

    /// This worker adds up wrongly until it is noticed; returns what the audits found that was not equal.
    fn miscounts(mut self, session: Option<Session>) -> Vec<AuditResult> {
        if let Some(at) = session.and_then(|session| self.at(session)) {
            (self.workers[at].side.miscounts, self.workers[at].faulty) = (true, true);
        }
        self.until(|w| w.counts.audits.iter().any(|result| *result != AuditResult::Equal));
        self.workers.iter_mut().for_each(|worker| worker.side.miscounts = false);
        let found = self.ends().audits;
        found.into_iter().filter(|result| *result != AuditResult::Equal).collect()
    }
}

#[test]
fn sum_1_an_audit_finds_the_owner_that_adds_up_wrongly() {
    for workers in 2..5 {
        many(|seed| {
            let (world, owner) = World::before_audit(seed, workers, 0);
            let differed = world.miscounts(owner);
            assert!(matches!(differed[..], [] | [AuditResult::Alone(_)]), "seed {seed}: {differed:?}");
            !differed.is_empty()
        });
    }
}

/// What a combiner adds up wrongly, its owner passes on. The simulation notices if an honest worker is sent away.
#[test]
fn sum_1_an_audit_blames_no_owner_for_what_a_combiner_added_up() {
    many(|seed| {
        let (world, owner) = World::before_audit(seed, 4, 2);
        let elsewhere = world.core.flight().and_then(|flight| {
            let machine = flight.layout.machines.iter().find(|m| !m.workers.contains(&owner.unwrap()))?;
            machine.combiners.first().copied()
        });
        let differed = world.miscounts(elsewhere);
        assert!(matches!(differed[..], [] | [AuditResult::Undecided]), "seed {seed}: {differed:?}");
        !differed.is_empty()
    });
}

/// An owner answers in the contributors' place when its sums are taken back.
#[test]
fn trust_1_an_owner_has_no_say_in_the_audit_of_its_sums() {
    many(|seed| {
        let (mut world, owner) = World::before_audit(seed, 3, 0);
        world.until(|w| (0..CHUNKS).any(|chunk| w.core.is_audited_sum(chunk)));
        let audited = (0..CHUNKS).find(|chunk| world.core.is_audited_sum(*chunk));
        let (Some(session), Some(index)) = (owner, audited) else { return false };
        let (Some(flight), Some(at)) = (world.core.flight(), world.at(session)) else { return false };
        let from = AttemptId { session, step: flight.step, attempt: flight.attempt };
        if flight.opened.contains(&(session, Node::ROOT)) || flight.layout.owner(index) != Some(session) {
            return false;
        }
        world.workers[at].faulty = true;
        world.held = Some("what it likes!".into());
        world.feed(Event::Chunk { from, node: Node::ROOT, index, digest: None, fault: None });
        let gone = world.at(session).is_none();
        world.ends();
        assert!(gone, "seed {seed}");
        true
    });
}

#[test]
fn sum_1_audits_of_honest_owners_find_nothing() {
    for (seed, workers) in (0..40).zip((2..6).cycle()) {
        let spec = RunSpec { audit_rate: 1.0, ..sharded_spec(workers) };
        let counts = World::on_machines(seed, spec, vec![""; workers], seed as usize % 3).ends();
        assert!(counts.sharded > 0 && counts.audits.iter().all(|result| *result == AuditResult::Equal));
    }
}

/// Where devices compute different bits, nodes are audited in the place of sums.
#[test]
fn sum_1_sums_of_unlike_devices_are_not_audited_and_their_nodes_are() {
    let audited = |kinds: &[&'static str]| {
        let spec = RunSpec { audit_rate: 1.0, ..sharded_spec(kinds.len()) };
        let world = World::of_kinds(1, spec, kinds.to_vec()).finish();
        assert_eq!(world.outcome, Some(RunOutcome::Done));
        (world.counts.audits.len(), world.counts.sums_audited)
    };
    let (unlike, alike) = (audited(&["CPU", OTHER_BITS, "CPU"]), audited(&["CPU"; 3]));
    assert!(unlike.0 >= 7 && unlike.1 == 0, "{unlike:?}");
    assert!(alike.0 >= 7 && alike.1 >= 2, "{alike:?}");
}

/// Contributors die, freeze and lose links while sums are audited.
fn audit_amid_faults(seed: u64, fault: Option<FaultInjection>) -> bool {
    let mut world = World::with(seed, RunSpec { audit_rate: 1.0, ..sharded_spec(4) });
    (world.fault, world.core.fault) = (fault, fault);
    let mut reached = false;
    for _ in 0..3 {
        world.until(|w| w.core.sums_audit.is_some());
        reached |= world.core.sums_audit.is_some();
        if world.outcome.is_some() {
            break;
        }
        let at = world.rng.below(4) as usize;
        match world.rng.below(3) {
            0 => world.kill(at, false),
            1 => world.workers[at].asleep = 400,
            _ => world.cut(at),
        }
        world.until(|w| w.core.sums_audit.is_none());
    }
    world.ends();
    reached
}

#[test]
fn live_1_an_audit_of_sums_ends_whoever_dies_or_freezes_in_it() {
    many(|seed| audit_amid_faults(seed, None));
}

/// A contributor dies when all sums are there, and another's receipt is not: nobody computes its nodes again, or has them.
fn contributor_gone(seed: u64, fault: Option<FaultInjection>) -> bool {
    let mut world = World::with(seed, RunSpec { audit_rate: 1.0, ..sharded_spec(3) });
    (world.fault, world.core.fault) = (fault, fault);
    let gone = |w: &World| {
        let flight = w.core.flight().filter(|f| f.layout.is_sharded() && f.reduction.is_complete())?;
        w.core.audited_owner().filter(|_| !flight.closing && !flight.has_all_receipts())?;
        w.core.members().0.iter().find(|(_, m)| !m.closed.is_empty() && m.open.is_empty()).map(|(s, _)| *s)
    };
    // The first step whose sums are audited is the third.
    world.until(|w| gone(w).is_some() || w.core.committed().0 >= 3);
    let Some(at) = gone(&world).and_then(|session| world.at(session)) else { return false };
    world.kill(at, false);
    world.ends();
    true
}

#[test]
fn live_1_sums_whose_parts_nobody_has_any_more_are_not_audited() {
    let reached = (0..3000).filter(|&seed| contributor_gone(seed, None)).count();
    assert!(reached >= 5, "{reached} schedules");
    let broken = |seed| _ = contributor_gone(seed, Some(FaultInjection::AuditLostSums));
    let noticed = panics((0..3000).map(|seed| move || broken(seed)));
    assert!(noticed.contains("LIVE-1"), "{noticed:.200}");
}
