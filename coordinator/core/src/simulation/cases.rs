//! Directed cases: one interleaving each, with the failure that a rule prevents.

use super::*;

impl World {
    /// Runs until `step` is in flight.
    fn run_to(&mut self, step: u64) {
        self.until(|world| world.core.flight().is_some_and(|f| f.step >= step && !f.closing));
    }

    fn ends_well(self) -> Counts {
        let world = self.finish();
        world.check_whole(undisturbed());
        world.counts
    }

    /// Runs until every worker is at `step`, which nothing follows yet, and the coordinator
    /// dies.
    fn crash_at(seed: u64, step: u64) -> Self {
        let mut world = Self::with(seed, rarely_saved());
        world.until(|w| w.workers.iter().all(|worker| worker.committed.is_some_and(|c| c.0 == step)));
        world
    }
}

/// Checkpoints after steps 3, 6 and 9.
fn rarely_saved() -> RunSpec {
    RunSpec { checkpoint_every: None, ..spec(3) }
}

fn quiet(workers: usize) -> RunSpec {
    RunSpec { audit_rate: 0.0, ..spec(workers) }
}

// ---- RESUME-1 ----

#[test]
fn resume_1_a_state_that_a_worker_holds_is_adopted_and_nothing_is_computed_again() {
    for seed in 0..20 {
        let mut world = World::crash_at(seed, 5);
        let last = *world.disk.journal.last_key_value().unwrap().0;
        world.crash(false);
        // One of them is enough; the others died too.
        for at in 1..3 {
            world.kill(at, false);
        }
        world.join(0);
        let counts = world.ends_well();
        // A step that the journal has and nobody holds is the only one.
        assert_eq!((counts.adopted, u64::from(counts.recomputed)), (1, last - 5), "seed {seed}");
    }
}

#[test]
fn resume_1_a_commit_that_nobody_holds_is_computed_again_and_has_its_bits() {
    let mut world = World::with(1, rarely_saved());
    world.run_to(5);
    world.crash_in_commit = true;
    world.until(|w| w.counts.crashes == 1);
    let counts = world.ends_well();
    assert_eq!((counts.adopted, counts.recomputed), (1, 1));
}

#[test]
fn resume_1_after_the_grace_the_checkpoint_has_to_do() {
    let mut world = World::crash_at(2, 5);
    world.crash(false);
    world.now += GRACE + Duration::from_millis(1);
    world.feed(Event::Tick);
    assert_ne!(world.core.phase(), Phase::Recovering);
    let last = *world.disk.journal.last_key_value().unwrap().0;
    let counts = world.ends_well();
    assert_eq!((counts.adopted, u64::from(counts.recomputed)), (0, last - 3));
}

#[test]
fn resume_1_a_loss_of_power_may_leave_the_journal_behind_the_workers() {
    // The journal has lost its last line; the workers hold the step before as well, until
    // they begin to write over it.
    let mut world = World::with(3, rarely_saved());
    world.until(|w| w.workers.iter().any(|worker| worker.committed.is_some_and(|c| c.0 == 5)));
    world.disk.journal.split_off(&5);
    world.crash(false);
    let counts = world.ends_well();
    assert_eq!((counts.adopted, counts.recomputed), (1, 0));
}

#[test]
fn resume_1_a_state_that_the_journal_does_not_confirm_is_not_taken() {
    let mut world = World::crash_at(4, 5);
    for worker in &mut world.workers {
        // It said that it holds step 5; its memory is another.
        worker.committed = Some((5, Digest(666)));
        (worker.drifted, worker.faulty) = (true, true);
    }
    world.crash(false);
    let counts = world.ends_well();
    assert!(counts.recomputed >= 1, "step 5 was not taken from anyone: {counts:?}");
}

#[test]
fn resume_1_who_dies_while_it_is_asked_is_replaced_by_the_next() {
    let mut world = World::crash_at(5, 5);
    world.crash(false);
    world.join(0);
    world.join(1);
    world.kill(0, false);
    let counts = world.ends_well();
    assert_eq!(counts.adopted, 1);
}

#[test]
fn resume_1_a_stop_does_not_wait_for_the_grace() {
    let mut world = World::crash_at(6, 5);
    world.crash(false);
    world.feed(Event::Stop);
    assert_eq!(world.outcome, Some(RunOutcome::Stopped));
}

// ---- Deadlines ----

#[test]
fn live_1_a_frozen_worker_holds_up_no_step_and_comes_back() {
    let mut world = World::with(7, quiet(3));
    world.run_to(3);
    world.workers[1].asleep = u32::MAX;
    world.until(|w| w.core.committed().0 == 6);
    assert!(world.counts.late >= 1);
    let session = world.workers[1].session.unwrap();
    let member = &world.core.members().0[&session];
    assert_eq!((member.state, member.leaves), (State::Loading, 0), "it gets no work while it lags");
    world.workers[1].asleep = 0;
    world.until(|w| w.core.members().0.get(&session).is_some_and(|m| m.state == State::Ready));
    assert_eq!(world.counts.drifted, 0);
    world.ends_well();
}

#[test]
fn live_1_who_takes_over_from_a_late_one_may_die_too() {
    for seed in 0..50 {
        let mut world = World::with(seed, quiet(3));
        world.run_to(3);
        world.workers[1].asleep = u32::MAX;
        world.until(|w| w.counts.late >= 1);
        world.kill(2, false);
        world.kill(0, false);
        world.workers[1].asleep = 0;
        world.ends_well();
    }
}

/// Found by the chaos command: newcomers waited for a boundary that never came.
#[test]
fn live_1_newcomers_finish_a_step_whose_workers_are_all_silent() {
    for seed in 0..20 {
        let mut world = World::with(seed, quiet(2));
        world.run_to(3);
        for worker in &mut world.workers {
            worker.asleep = u32::MAX;
        }
        world.workers.push(Worker::default());
        world.join(2);
        world.until(|w| w.core.committed().0 == 5);
        assert!(world.counts.late >= 1, "seed {seed}");
        for worker in &mut world.workers {
            worker.asleep = 0;
        }
        world.ends_well();
    }
}

#[test]
fn a_worker_that_waits_for_credits_is_not_late() {
    let mut world = World::with(8, quiet(2));
    world.run_to(3);
    world.workers[1].asleep = u32::MAX;
    world.until(|w| w.counts.late >= 1);
    let session = world.workers[0].session.unwrap();
    let speculative = &world.core.flight().unwrap().speculative;
    assert!(speculative.iter().all(|(late, _)| *late != session), "{speculative:?}");
}

#[test]
fn live_1_a_spare_takes_over() {
    let mut world = World::with(9, quiet(10));
    // In the first step no speed is known, so all workers count as equally fast.
    world.until(|world| world.core.flight().is_some());
    let spares = world.core.members().0.values().filter(|m| m.leaves == 0).count();
    assert_eq!(spares, 2, "eight leaves for ten workers");
    let owner = world.core.members().0.iter().find(|(_, m)| !m.open.is_empty()).map(|(s, _)| *s).unwrap();
    let at = world.workers.iter().position(|w| w.session == Some(owner)).unwrap();
    world.kill(at, false);
    let taken = world.core.members().0.values().filter(|m| m.leaves > 0).count();
    assert_eq!(taken, 8, "a spare computes what the dead one had");
    world.ends_well();
}

/// Found by random schedules: a worker that took over from two others had a node and a part of it. A newcomer was given
/// the part twice, and sent away when it opened the part a second time.
#[test]
fn live_1_a_node_and_a_part_of_it_are_taken_over_once() {
    for seed in 0..20 {
        let mut world = World::with(seed, quiet(3));
        world.run_to(3);
        let owner = |(session, m): (&Session, &Member)| Some((*session, m.open.first()?.parent()?));
        let (session, whole) = world.core.members.0.iter().find_map(owner).unwrap();
        let open = &mut world.core.members.0.get_mut(&session).unwrap().open;
        open.extend([whole].into_iter().chain(whole.children()));
        let at = world.workers.iter().position(|w| w.session == Some(session)).unwrap();
        world.kill(at, false);
        world.ends_well();
    }
}

// ---- Audits ----

fn flipped(seed: u64, workers: usize, flips: u32) -> Counts {
    let mut world = World::with(seed, RunSpec { audit_rate: 1.0, ..spec(workers) });
    world.run_to(4);
    // Not the last of the run's steps to be audited; bad memory makes one chunk wrong.
    for _ in 0..flips {
        let owner = world.core.flight().and_then(|f| f.audit.as_ref()).map(|a| a.contributor());
        if let Some(worker) = owner.and_then(|owner| world.worker_of(owner)) {
            (worker.flip, worker.faulty) = (true, true);
        }
    }
    world.ends_well()
}

#[test]
fn sum_1_an_audit_finds_who_was_wrong_where_there_is_a_third() {
    for seed in 0..20 {
        let counts = flipped(seed, 3, 1);
        let differed: Vec<&AuditResult> =
            counts.audits.iter().filter(|f| **f != AuditResult::Equal).collect();
        assert!(matches!(differed[..], [AuditResult::Alone(_)]), "seed {seed}: {differed:?}");
    }
}

#[test]
fn sum_1_with_two_workers_the_step_is_computed_again() {
    for seed in 0..20 {
        let counts = flipped(seed, 2, 1);
        let differed: Vec<&AuditResult> =
            counts.audits.iter().filter(|f| **f != AuditResult::Equal).collect();
        assert!(matches!(differed[..], [AuditResult::Undecided]), "seed {seed}: {differed:?}");
    }
}

#[test]
fn an_audit_of_honest_workers_finds_nothing() {
    let counts = World::with(1, RunSpec { audit_rate: 1.0, ..spec(4) }).ends_well();
    assert!(counts.audits.len() >= 7 && counts.audits.iter().all(|f| *f == AuditResult::Equal), "{counts:?}");
}

#[test]
fn an_audit_compares_workers_of_one_kind() {
    let audits = |kinds: &[&'static str]| {
        let spec = RunSpec { audit_rate: 1.0, ..spec(kinds.len()) };
        World::of_kinds(1, spec, kinds.to_vec()).ends_well().audits
    };
    assert!(audits(&["CPU", "GPU"]).is_empty(), "nobody can say who is right");
    let some = audits(&["CPU", "GPU", "CPU"]);
    let all = audits(&["CPU", "CPU", "CPU"]);
    assert!(!some.is_empty() && some.iter().all(|finding| *finding == AuditResult::Equal), "{some:?}");
    assert_eq!(some.len(), all.len(), "as often as where all are of one kind");
    // Workers of old builds say nothing of it.
    assert!(!audits(&["", "CPU", ""]).is_empty());
}

// ---- REP-1 ----

#[test]
fn rep_1_a_replica_with_wrong_bits_is_sent_away_and_counted() {
    let mut world = World::new(1, 3);
    (world.workers[1].corrupt, world.workers[1].faulty) = (true, true);
    assert_eq!(world.ends_well().drifted, 1);
}

// ---- NaN ----

/// Drives a run of three workers to step 4, where these report NaN one after the other.
fn with_nan_from(who: &[usize]) -> World {
    let mut world = World::with(1, quiet(3));
    for &at in who {
        world.workers[at].faulty = true;
        let session = world.workers[at].session.unwrap();
        world.until(|w| {
            let working = w.core.members().0.get(&session).is_some_and(|m| !m.open.is_empty());
            working && w.core.flight().is_some_and(|f| f.step == 4 && !f.closing)
        });
        let flight = world.core.flight().unwrap();
        let from = AttemptId { session, step: flight.step, attempt: flight.attempt };
        let node = *world.core.members().0[&session].open.first().unwrap();
        world.feed(Event::NonFinite { from, node, tensor: "conv6.weight".into() });
    }
    world.finish()
}

#[test]
fn nan_that_two_workers_find_is_the_models() {
    let world = with_nan_from(&[0, 1]);
    assert_eq!(world.outcome, Some(RunOutcome::Diverged { step: 4, tensor: "conv6.weight".into() }));
    assert_eq!(world.core.committed().0, 3);
    assert!(world.disk.checkpoints.contains_key(&3), "the last good state is kept");
}

#[test]
fn nan_that_only_one_worker_finds_is_its_own() {
    let world = with_nan_from(&[1]);
    world.check_whole(undisturbed());
}

// ---- Stopping ----

#[test]
fn a_stop_lets_the_step_in_flight_finish() {
    let mut world = World::new(5, 2);
    world.run_to(2);
    world.feed(Event::Stop);
    let world = world.finish();
    assert_eq!((world.outcome, world.core.committed().0), (Some(RunOutcome::Stopped), 2));
}

#[test]
fn a_stop_ends_even_if_every_worker_goes() {
    for seed in 0..50 {
        let mut world = World::new(seed, 3);
        world.run_to(2);
        world.feed(Event::Stop);
        for at in 0..3 {
            world.kill(at, false);
        }
        assert_eq!(world.outcome, Some(RunOutcome::Stopped), "seed {seed}");
    }
}

#[test]
fn a_run_that_was_done_before_it_could_say_so_ends_at_once() {
    let recorded = Recorded { tests: [3, 6, 9].into(), ..Recorded::default() };
    let mut core = Core::new(spec(2), 9, Digest(1), recorded);
    assert_eq!(core.handle(Duration::ZERO, Event::Wake), [Action::Finish(RunOutcome::Done)]);
}
