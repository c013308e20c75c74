//! Directed cases of sharded attempts: one interleaving each that breaks a simpler protocol.

use super::*;

pub(super) fn sharded_spec(workers: usize) -> RunSpec {
    RunSpec { audit_rate: 0.0, reduce: ReduceMode::Sharded, ..spec(workers) }
}

impl World {
    /// A world in a sharded attempt of which nothing has come yet.
    fn sharded(seed: u64, workers: usize) -> Self {
        let mut world = Self::with(seed, sharded_spec(workers));
        world.run_to_sharded(workers);
        world
    }

    fn run_to_sharded(&mut self, linked: usize) {
        self.until(|w| {
            let flight = w.core.flight().filter(|flight| !flight.closing);
            flight.is_some_and(|f| f.layout.linked.len() == linked && f.reduction.emitted() == 0)
        });
    }

    pub(super) fn at(&self, session: Session) -> Option<usize> {
        self.workers.iter().position(|worker| worker.session == Some(session))
    }

    fn owner(&self, chunk: u32) -> Option<Session> {
        self.core.flight()?.layout.owner(chunk)
    }

    /// Whether the coordinator has this chunk's sum.
    fn is_whole(&self, chunk: u32) -> bool {
        self.core.flight().is_some_and(|flight| flight.reduction.is_covered(Node::ROOT, chunk))
    }

    /// The owner of a sum that another worker has and the coordinator has not.
    fn half_told(&self) -> Option<Session> {
        (0..CHUNKS).filter(|&chunk| !self.is_whole(chunk)).find_map(|chunk| {
            let owner = self.owner(chunk)?;
            let told =
                |worker: &Worker| worker.session != Some(owner) && worker.has_sum(self.core.attempt, chunk);
            self.workers.iter().any(told).then_some(owner)
        })
    }

    /// Ends as it must, whatever happened.
    pub(super) fn ends(self) -> Counts {
        let world = self.finish();
        world.check_whole(undisturbed());
        world.counts
    }

    /// Runs the attempt in flight turn by turn until `moment`; false if the attempt is over before.
    fn reaches(&mut self, moment: impl Fn(&Self) -> bool) -> bool {
        let attempt = self.core.attempt;
        while self.outcome.is_none() && self.core.attempt == attempt {
            if moment(self) {
                return true;
            }
            self.turn();
        }
        false
    }
}

/// Runs `case` with many seeds; it returns whether it reached its moment, which must happen often.
pub(super) fn many(case: impl Fn(u64) -> bool) {
    let reached = (0..60).filter(|&seed| case(seed)).count();
    assert!(reached >= 10, "only {reached} of 60 schedules reached the moment");
}

/// What a case whose rule is broken fails with, with any of many seeds.
fn noticed<T>(case: impl Fn(u64) -> T + std::panic::RefUnwindSafe) -> String {
    panics((0..60).map(|seed| {
        let case = &case;
        move || drop(case(seed))
    }))
}

#[test]
fn sum_1_sharded_attempts_give_the_stars_bits() {
    for workers in 2..6 {
        let counts = World::with(workers as u64, sharded_spec(workers)).ends();
        assert!(counts.sharded > 0, "{workers} workers: {counts:?}");
    }
}

/// Interleavings 1 and 2: a trailer is on the control of its partial sums' delivery by nobody. The sender dies, and then
/// the owner that has them.
#[test]
fn live_1_a_trailer_that_overtakes_its_partial_sums_is_only_a_claim() {
    many(|seed| {
        let mut world = World::sharded(seed, 3);
        let claims = |w: &World| {
            let in_flight =
                |s: Session| w.wires.iter().any(|((from, _), wire)| *from == s && !wire.is_empty());
            let closed = w.core.members().0.iter().filter(|(_, m)| !m.closed.is_empty());
            closed.map(|(s, _)| *s).find(|s| in_flight(*s))
        };
        let reached = world.reaches(|w| claims(w).is_some());
        if let Some(at) = claims(&world).filter(|_| reached).and_then(|session| world.at(session)) {
            world.kill(at, false);
        }
        world.ends();
        reached
    });
}

#[test]
fn live_1_a_contributor_dies_and_then_the_owner_that_has_its_partial_sums() {
    many(|seed| {
        let mut world = World::sharded(seed, 4);
        let closed =
            |w: &World| w.core.members().0.iter().find(|(_, m)| !m.closed.is_empty()).map(|(s, _)| *s);
        let reached = world.reaches(|w| closed(w).is_some());
        if let Some(contributor) = closed(&world).filter(|_| reached) {
            let owner = (0..CHUNKS).filter_map(|chunk| world.owner(chunk)).find(|o| *o != contributor);
            for session in [Some(contributor), owner].into_iter().flatten() {
                if let Some(at) = world.at(session) {
                    world.kill(at, false);
                }
            }
        }
        world.ends();
        reached
    });
}

/// Interleaving 3.
#[test]
fn live_1_an_owner_that_was_given_up_goes_on_sending() {
    let mut taken_back = 0;
    for seed in 0..20 {
        let mut world = World::sharded(seed, 3);
        world.workers[1].asleep = u32::MAX;
        let step = world.core.committed().0;
        world.until(|w| w.core.committed().0 > step);
        world.workers[1].asleep = 0;
        taken_back += world.ends().taken_back;
    }
    assert!(taken_back >= 10, "chunks were taken back {taken_back} times");
}

/// Interleaving 4.
#[test]
fn live_1_an_owner_dies_when_one_replica_has_its_sum_and_the_coordinator_does_not() {
    many(|seed| {
        let mut world = World::sharded(seed, 3);
        let reached = world.reaches(|w| w.half_told().is_some());
        if let Some(at) = world.half_told().filter(|_| reached).and_then(|owner| world.at(owner)) {
            world.kill(at, false);
        }
        world.ends();
        reached
    });
}

/// Interleaving 5: the coordinator commits, and the owner dies before a replica has its sum.
fn commit_without_sum(seed: u64, fault: Option<FaultInjection>) -> Option<Counts> {
    let mut world = World::with(seed, sharded_spec(3));
    (world.fault, world.core.fault) = (fault, fault);
    world.run_to_sharded(3);
    let step = world.core.committed().0 + 1;
    let owed = |w: &World| {
        let sum = |message: &Peer| matches!(message, Peer::Sum { step: of, .. } if *of == step);
        w.wires.iter().find(|(_, wire)| wire.iter().any(sum)).map(|(ends, _)| *ends)
    };
    world.until(|w| w.core.committed().0 >= step);
    let (owner, replica) = owed(&world)?;
    let at = world.at(owner)?;
    world.kill(at, false);
    let replica = world.at(replica)?;
    world.until(|w| w.workers[replica].committed.is_some_and(|c| c.0 >= step));
    let committed = world.workers[replica].committed;
    assert!(committed.is_some_and(|c| c.0 >= step), "LIVE-1: a replica waits for ever");
    Some(world.ends())
}

#[test]
fn live_1_a_replica_that_lacks_a_sum_of_a_committed_step_is_sent_it() {
    let counts: Vec<Counts> = (0..60).filter_map(|seed| commit_without_sum(seed, None)).collect();
    assert!(counts.len() >= 10 && counts.iter().any(|c| c.resent > 0), "{} schedules", counts.len());
    let noticed = noticed(|seed| commit_without_sum(seed, Some(FaultInjection::IgnoreNeed)));
    assert!(noticed.contains("LIVE-1"), "{noticed:.200}");
}

/// Interleaving 6: only the last chunks come to the coordinator, and their numbers are beyond the window.
#[test]
fn live_1_credits_count_what_the_coordinator_adds_up() {
    many(|seed| {
        let mut world = World::sharded(seed, 3);
        let last = world.owner(CHUNKS - 1).unwrap();
        let at = world.at(last).unwrap();
        world.kill(at, false);
        let reached = world.core.flight().is_some_and(|f| f.own.order().contains(&(CHUNKS - 1)));
        world.ends();
        reached
    });
}

/// Interleaving 7.
#[test]
fn live_1_a_newcomer_that_no_owner_knows_gets_every_sum() {
    many(|seed| {
        let mut world = World::sharded(seed, 3);
        let reached = world.reaches(|w| w.core.flight().is_some_and(|f| f.reduction.emitted() > 2));
        let step = world.core.committed().0;
        world.workers.push(Worker::default());
        world.join(3);
        world.until(|w| w.workers[3].committed.is_some_and(|c| c.0 > step));
        world.ends();
        reached
    });
}

/// Interleaving 8: an owner with bad memory makes innocent replicas differ.
#[test]
fn rep_1_an_owner_that_sends_different_sums_has_to_go_and_nobody_else() {
    many(|seed| {
        let mut world = World::sharded(seed, 4);
        (world.workers[2].side.lies, world.workers[2].faulty) = (true, true);
        let counts = world.ends();
        assert!(counts.drifted <= 1, "seed {seed}: {counts:?}");
        counts.drifted == 1
    });
}

/// Interleaving 9: a worker says that the link to an honest one broke, again and again. That costs links, and nobody his
/// place.
#[test]
fn live_1_an_accusation_moves_chunks_and_sends_nobody_away() {
    many(|seed| {
        let mut world = World::sharded(seed, 3);
        let [session, peer] = [0, 1].map(|at: usize| world.workers[at].session.unwrap());
        let reason = "it sent NaN".to_string();
        world.feed(Event::LinkDown { session, peer, reason });
        let moved = world.core.flight().is_some_and(|f| !f.own.order().is_empty());
        let counts = world.ends();
        assert_eq!(counts.drifted, 0);
        moved
    });
}

/// Interleaving 10: links end with their sessions, so nothing of an old incarnation arrives.
#[test]
fn resume_1_a_coordinator_that_dies_in_a_sharded_attempt() {
    many(|seed| {
        let mut world = World::sharded(seed, 3);
        let reached = world.reaches(|w| w.core.flight().is_some_and(|f| f.reduction.emitted() > 4));
        world.crash(false);
        world.ends();
        reached
    });
}

#[test]
fn live_1_a_sum_that_is_not_sound_is_added_up_again_and_its_owner_has_to_go() {
    many(|seed| {
        let mut world = World::sharded(seed, 3);
        (world.workers[1].side.nan, world.workers[1].faulty) = (true, true);
        let session = world.workers[1].session.unwrap();
        let step = world.core.committed().0 + 1;
        world.until(|w| w.core.committed().0 >= step);
        let gone = !world.core.members().0.contains_key(&session);
        world.ends();
        gone
    });
}

/// A worker computes on other samples, and its chunks are at their owners before its header is at the coordinator.
fn other_samples(seed: u64, fault: Option<FaultInjection>) -> Counts {
    let mut world = World::with(seed, sharded_spec(3));
    (world.fault, world.core.fault) = (fault, fault);
    world.run_to_sharded(3);
    (world.workers[1].other_samples, world.workers[1].faulty) = (true, true);
    world.ends()
}

#[test]
fn sum_1_a_wrong_header_voids_a_sharded_attempt_because_owners_may_have_its_chunks() {
    for seed in 0..20 {
        other_samples(seed, None);
    }
    let noticed = noticed(|seed| other_samples(seed, Some(FaultInjection::ForgiveHeader)));
    assert!(noticed.contains("SUM-1"), "{noticed:.200}");
}

#[test]
fn live_1_without_any_link_the_run_ends_in_the_same_bits() {
    let mut world = World::with(1, sharded_spec(4));
    world.unreachable.extend(0..4);
    let counts = world.ends();
    assert_eq!(counts.sharded, 0);
}

#[test]
fn live_1_links_that_break_in_every_attempt_cost_no_step() {
    for seed in 0..20 {
        let mut world = World::sharded(seed, 4);
        while world.outcome.is_none() {
            for _ in 0..40 {
                if world.outcome.is_none() {
                    world.turn();
                }
            }
            let at = world.rng.below(4) as usize;
            if let Some(session) = world.workers[at].session {
                world.cut_links(session, None);
            }
        }
        world.check_whole(undisturbed());
    }
}

/// Devices that compute different bits, and chunks that would have two versions.
fn mixed(seed: u64, fault: Option<FaultInjection>) -> u32 {
    let mut world = World::of_kinds(seed, sharded_spec(3), vec!["CPU", OTHER_BITS, "CPU"]);
    (world.fault, world.core.fault) = (fault, fault);
    world.run_to_sharded(3);
    // What the owner contributed is computed again by others, of which one may be of another kind.
    if world.reaches(|w| w.half_told().is_some())
        && let Some(at) = world.half_told().and_then(|owner| world.at(owner))
    {
        world.kill(at, false);
    }
    let world = world.finish();
    assert_eq!(world.outcome, Some(RunOutcome::Done));
    world.counts.void
}

#[test]
fn rep_1_where_devices_differ_an_attempt_is_void_before_a_sum_has_two_versions() {
    let void = (0..60).map(|seed| mixed(seed, None)).sum::<u32>();
    assert!(void >= 10, "{void} attempts were void");
    let noticed = noticed(|seed| mixed(seed, Some(FaultInjection::MixVersions)));
    assert!(noticed.contains("SUM-1: all versions") || noticed.contains("REP-1"), "{noticed:.200}");
}

/// Two linked workers of one kind are late with what is partly in their sums, and a newcomer of another kind, which has no links
/// yet, computes for them.
fn unlinked_of_another_kind(seed: u64) -> Option<u32> {
    let mut world = World::of_kinds(seed, sharded_spec(2), vec!["CPU"; 2]);
    world.run_to_sharded(2);
    let open = |w: &World| w.core.members().0.values().all(|member| !member.open.is_empty());
    if !world.reaches(|w| open(w) && w.core.flight().is_some_and(|f| f.reduction.emitted() > 0)) {
        return None;
    }
    world.kinds.push(OTHER_BITS);
    world.workers.push(Worker::default());
    world.join(2);
    // Nobody is late before the newcomer is ready.
    world.still = true;
    world.until(|w| w.core.members().ready().len() == 3);
    world.still = false;
    // Both trailers may have come meanwhile.
    let late = world.core.flight().is_some_and(|flight| !flight.closing && !flight.has_all_receipts());
    world.now += Duration::from_secs(10);
    world.feed(Event::Tick);
    let world = world.finish();
    assert_eq!(world.outcome, Some(RunOutcome::Done));
    late.then_some(world.counts.void)
}

#[test]
fn sum_1_an_unlinked_worker_of_another_kind_voids_the_attempt_in_which_it_takes_over() {
    let found: Vec<u32> = (0..400).filter_map(unlinked_of_another_kind).collect();
    let void = found.iter().filter(|void| **void > 0).count();
    assert!(void >= 10, "{found:?}");
}

// ---- Machines whose workers combine ----

impl World {
    /// Workers on two machines, in a sharded attempt of which nothing has come yet.
    fn combining(seed: u64, workers: usize) -> Self {
        let mut world = Self::on_machines(seed, sharded_spec(workers), vec![""; workers], 2);
        world.run_to_sharded(workers);
        world
    }

    /// A worker that combines a chunk whose sum has not come, with the chunk.
    fn combiner(&self) -> Option<(Session, u32)> {
        let flight = self.core.flight()?;
        let layout = &flight.layout;
        let combiner = |chunk: u32| {
            let machine = layout.machines.iter().find(|m| layout.gateway(m, chunk) != layout.owner(chunk))?;
            Some((layout.gateway(machine, chunk)?, chunk))
        };
        flight.missing().into_iter().find_map(combiner)
    }
}

#[test]
fn sum_1_machines_that_combine_give_the_stars_bits_and_each_sends_a_chunk_once() {
    for seed in 0..20 {
        let mut world = World::combining(seed, 4);
        let layout = &world.core.flight().unwrap().layout;
        let nodes: Vec<_> = layout.machines.iter().map(|machine| machine.nodes.clone()).collect();
        assert_eq!(nodes, [vec![Node(2)], vec![Node(3)]]);
        let machine_of = |session: Session| session % 2;
        let mut crossed = BTreeSet::new();
        let attempt = world.core.attempt;
        while world.core.attempt == attempt && world.outcome.is_none() {
            for ((from, to), wire) in
                world.wires.iter().filter(|((a, b), _)| machine_of(*a) != machine_of(*b))
            {
                crossed.extend(wire.iter().filter(|message| message.attempt() == attempt).map(|message| {
                    let (kind, node, index) = match message {
                        Peer::Partial { node, index, .. } => ("partial", node.0, index),
                        Peer::Sum { index, .. } => ("sum", 1, index),
                    };
                    (kind, node, *index, *from, *to)
                }));
            }
            world.turn();
        }
        // Each of two machines sends half of the chunks' partial sums, and the other half's sums, to the other.
        let count = |wanted| crossed.iter().filter(|(kind, ..)| *kind == wanted).count();
        // The last sum may be on its way when the next attempt begins.
        assert!(count("partial") == CHUNKS as usize && count("sum") <= CHUNKS as usize, "{crossed:?}");
        assert_eq!(world.ends().taken_back, 0);
    }
}

/// Its machine's chunks wait with it.
#[test]
fn live_1_a_combiner_dies() {
    many(|seed| {
        let mut world = World::combining(seed, 4);
        let reached = world.reaches(|w| w.core.flight().is_some_and(|f| f.reduction.emitted() > 2));
        if let Some((combiner, _)) = world.combiner().filter(|_| reached) {
            let at = world.at(combiner).unwrap();
            world.kill(at, false);
        }
        world.ends();
        reached
    });
}

/// A worker of a machine dies before it has sent its chunks. Others compute its nodes, and its machine's combiners would
/// wait for them until the sums are late.
#[test]
fn live_1_the_nodes_of_a_machine_that_combines_are_computed_elsewhere() {
    for seed in 0..20 {
        let mut world = World::combining(seed, 4);
        let step = world.core.committed().0;
        world.kill(3, false);
        world.until(|w| w.core.committed().0 > step);
        assert_eq!(world.core.combining_stopped, 0, "nothing had to become late first");
        assert!(world.ends().taken_back > 0);
    }
}

#[test]
fn live_1_a_link_within_a_machine_breaks() {
    many(|seed| {
        let mut world = World::combining(seed, 4);
        let [session, peer] = [0, 2].map(|at: usize| world.workers[at].session.unwrap());
        let reached = world.reaches(|w| w.core.flight().is_some_and(|f| f.reduction.emitted() > 1));
        world.cut_links(session, Some(peer));
        world.ends();
        reached
    });
}

/// Owners are not to blame for what a combiner does not send.
#[test]
fn live_1_a_combiner_that_is_silent_stops_the_combining_and_costs_no_owner_its_chunks() {
    let mut stopped = 0;
    for seed in 0..20 {
        let mut world = World::combining(seed, 4);
        let (combiner, _) = world.combiner().unwrap();
        let at = world.at(combiner).unwrap();
        // It has computed everything, and then falls silent.
        let closed = |w: &World| w.core.members().0.get(&combiner).is_some_and(|m| !m.closed.is_empty());
        if world.reaches(closed) {
            world.workers[at].asleep = u32::MAX;
            let step = world.core.committed().0;
            world.until(|w| w.core.committed().0 > step);
            let others = world.core.members().0.iter().filter(|(session, _)| **session != combiner);
            assert!(others.map(|(_, member)| member.late_sums).all(|late| late == 0));
            stopped += u32::from(world.core.combining_stopped > 0);
            world.workers[at].asleep = 0;
        }
        world.ends();
    }
    assert!(stopped >= 5, "combining was stopped in {stopped} of 20 schedules");
}

/// The receiver, the owner and its machine's other workers are innocent. Without combining the liar is known.
#[test]
fn rep_1_a_combiner_that_passes_on_other_sums_stops_the_combining_and_costs_nobody_his_place() {
    many(|seed| {
        let mut world = World::combining(seed, 4);
        let (combiner, _) = world.combiner().unwrap();
        let at = world.at(combiner).unwrap();
        world.workers[at].side.misquotes = true;
        let step = world.core.committed().0 + 4;
        world.until(|w| w.core.committed().0 >= step);
        let stopped = world.core.combining_stopped > 0;
        assert_eq!(world.ends().drifted, 0);
        stopped
    });
}
