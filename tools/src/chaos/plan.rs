//! What happens when: pure, and the same for the same seed and settings.
//!
//! The plan knows what it has done to whom and until when, never what came of it, so a
//! seed repeats its actions exactly even where the cluster's timing differs. While it goes
//! on, one worker at least is whole, except where the fault is that all are killed.

use std::fmt;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use serde::Serialize;

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A worker is killed with SIGKILL and started again after a while.
    Kill,
    /// A worker dies of SIGABRT, as by a panic that aborts, and is started again.
    Abort,
    /// A worker is frozen (SIGSTOP) for less than a step.
    FreezeShort,
    /// A worker is frozen for many steps.
    FreezeLong,
    /// A worker leaves politely (SIGINT) and comes back.
    Leave,
    /// A further worker joins for a while, and then leaves or is killed.
    Join,
    /// A worker's connection breaks, and no new one is let through for a while.
    Cut,
    /// A worker's connection stays, but nothing passes for a while.
    Stall,
    /// Every byte between a worker and the coordinator takes longer for a while.
    Delay,
    /// The cable between a worker's network namespace and the coordinator is pulled.
    Cable,
    /// The links that others have opened to a worker break, and no new ones are let through for a while.
    LinksCut,
    /// The links that others have opened to a worker stay, but nothing passes for a while.
    LinksStall,
    /// The coordinator is killed with SIGKILL and started again with `--resume`.
    KillCoordinator,
    /// The coordinator is stopped with SIGTERM and started again with `--resume`.
    StopCoordinator,
    /// All workers are killed at once and started again.
    KillAll,
    /// The coordinator and all workers are killed at once and started again.
    KillEverything,
}

impl Fault {
    /// All of them, with how often each is chosen among those that are possible.
    pub const WEIGHTS: [(Self, u32); 16] = [
        (Self::Kill, 18),
        (Self::Abort, 8),
        (Self::FreezeShort, 10),
        (Self::FreezeLong, 6),
        (Self::Leave, 9),
        (Self::Join, 8),
        (Self::Cut, 8),
        (Self::Stall, 6),
        (Self::Delay, 6),
        (Self::Cable, 6),
        (Self::LinksCut, 10),
        (Self::LinksStall, 8),
        (Self::KillCoordinator, 5),
        (Self::StopCoordinator, 2),
        (Self::KillAll, 2),
        (Self::KillEverything, 1),
    ];

    /// Whether it takes the coordinator down.
    #[must_use]
    pub fn hits_coordinator(self) -> bool {
        matches!(self, Self::KillCoordinator | Self::StopCoordinator | Self::KillEverything)
    }

    /// Whether it takes every worker down.
    #[must_use]
    pub fn hits_all_workers(self) -> bool {
        matches!(self, Self::KillAll | Self::KillEverything)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "worker killed (SIGKILL)",
            Self::Abort => "worker aborts (SIGABRT)",
            Self::FreezeShort => "worker frozen, under a step",
            Self::FreezeLong => "worker frozen, many steps",
            Self::Leave => "worker leaves (SIGINT)",
            Self::Join => "one more worker joins",
            Self::Cut => "connection cut",
            Self::Stall => "connection stalls",
            Self::Delay => "connection slow",
            Self::Cable => "cable pulled",
            Self::LinksCut => "links to others cut",
            Self::LinksStall => "links to others stall",
            Self::KillCoordinator => "coordinator killed (SIGKILL)",
            Self::StopCoordinator => "coordinator stopped (SIGTERM)",
            Self::KillAll => "all workers killed",
            Self::KillEverything => "coordinator and all workers killed",
        })
    }
}

/// One thing that is done, and undone after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Action {
    /// When, from the first committed step on.
    pub at: Duration,
    /// What.
    pub fault: Fault,
    /// To which worker, where it is one.
    pub slot: Option<usize>,
    /// After how long it is undone.
    pub lasts: Duration,
    /// How long every byte takes, if that is what is done.
    pub delay: Duration,
    /// The rougher of two ways: a killed coordinator leaves half a line in its journal; a
    /// further worker is killed at its end instead of leaving.
    pub rough: bool,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The seed.
    pub seed: u64,
    /// Workers that are there all the time, but for their faults: slots `0..workers`.
    pub workers: usize,
    /// Places for further ones: slots `workers..workers + guests`.
    pub guests: usize,
    /// Whether every second of the lasting workers has a cable instead of a relay.
    pub cables: bool,
    /// Whether workers have links to each other.
    pub links: bool,
    /// For how long actions begin.
    pub length: Duration,
    /// The mean time between two.
    pub every: Duration,
    /// About how long an undisturbed step takes.
    pub step: Duration,
}

impl Settings {
    /// Whether a slot is connected by a cable that can be pulled, and not through a relay.
    #[must_use]
    pub fn has_cable(&self, slot: usize) -> bool {
        self.cables && slot < self.workers && slot % 2 == 1
    }
}

/// How long a worker is left alone after a fault, to be a part of the cluster again.
const SETTLE: Duration = Duration::from_millis(700);

/// How long a coordinator that was started again is left alone. Others are not.
const BETWEEN_STARTS: Duration = Duration::from_secs(5);

/// How long the plan waits at most to kill all at once.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// Random numbers from a seed.
struct Dice(ChaCha8Rng);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        // A bias of under n in 2³² is nothing here.
        ((u64::from(self.0.next_u32()) * u64::from(n)) >> 32) as u32
    }

    fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let span = to.saturating_sub(from).as_micros() as u32;
        from + Duration::from_micros(u64::from(self.below(span + 1)))
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        self.between(Duration::from_millis(from), Duration::from_millis(to))
    }
}

/// What the plan has done so far, as it matters for what it may do next.
struct Planned<'a> {
    settings: &'a Settings,
    dice: Dice,
    /// Until when each slot is under a fault or settling. A guest is there until then.
    busy: Vec<Duration>,
    coordinator_busy: Duration,
}

/// The whole plan, in the order of its actions.
#[must_use]
pub fn plan(settings: &Settings) -> Vec<Action> {
    let mut planned = Planned {
        settings,
        dice: Dice(ChaCha8Rng::seed_from_u64(settings.seed)),
        busy: vec![Duration::ZERO; settings.workers + settings.guests],
        coordinator_busy: Duration::ZERO,
    };
    let mut actions = Vec::new();
    let mut now = Duration::ZERO;
    loop {
        now += planned.dice.between(settings.every / 2, settings.every * 3 / 2);
        if now >= settings.length {
            return actions;
        }
        let Some(action) = planned.next(now) else { continue };
        now = now.max(action.at);
        if action.at < settings.length {
            actions.push(action);
        }
    }
}

impl Planned<'_> {
    /// The slots that a fault may hit at `now`.
    fn targets(&self, fault: Fault, now: Duration) -> Vec<usize> {
        let free = |slot: &usize| self.busy[*slot] <= now;
        let lasting: Vec<usize> = (0..self.settings.workers).filter(free).collect();
        if fault == Fault::Join {
            return (self.settings.workers..self.busy.len()).filter(free).collect();
        }
        // One stays whole.
        if lasting.len() < 2 {
            return Vec::new();
        }
        let has_cable = |slot: &usize| self.settings.has_cable(*slot);
        match fault {
            Fault::Cable => lasting.into_iter().filter(has_cable).collect(),
            Fault::Cut | Fault::Stall | Fault::Delay | Fault::LinksCut | Fault::LinksStall => {
                lasting.into_iter().filter(|slot| !has_cable(slot)).collect()
            }
            _ => lasting,
        }
    }

    /// When no lasting worker is under a fault any more.
    fn all_free(&self) -> Duration {
        self.busy[..self.settings.workers].iter().copied().max().unwrap_or_default()
    }

    fn possible(&self, fault: Fault, now: Duration) -> bool {
        if matches!(fault, Fault::LinksCut | Fault::LinksStall) && !self.settings.links {
            return false;
        }
        if fault.hits_all_workers() {
            // It waits for the others' end, and that should not take long.
            self.coordinator_busy <= now && self.all_free() <= now + LONGEST_WAIT
        } else if fault.hits_coordinator() {
            self.coordinator_busy <= now
        } else {
            !self.targets(fault, now).is_empty()
        }
    }

    fn next(&mut self, now: Duration) -> Option<Action> {
        let possible: Vec<(Fault, u32)> =
            Fault::WEIGHTS.into_iter().filter(|(fault, _)| self.possible(*fault, now)).collect();
        let mut drawn = self.dice.below(possible.iter().map(|(_, weight)| weight).sum());
        let (fault, _) = possible.into_iter().find(|(_, weight)| {
            let chosen = drawn < *weight;
            drawn = drawn.wrapping_sub(*weight);
            chosen
        })?;
        // An end never falls on its own beginning.
        let lasts = self.lasts(fault).max(Duration::from_millis(1));
        let delay = if fault == Fault::Delay { self.dice.millis(2, 40) } else { Duration::ZERO };
        let rough = self.dice.below(2) == 1;
        if fault.hits_all_workers() {
            // Whatever is going on ends first, so that "all" means all and undoing is simple.
            let at = now.max(self.all_free());
            let until = at + lasts + SETTLE;
            self.busy.iter_mut().for_each(|busy| *busy = until.max(*busy));
            self.coordinator_busy = at + lasts + BETWEEN_STARTS;
            return Some(Action { at, fault, slot: None, lasts, delay, rough });
        }
        if fault.hits_coordinator() {
            self.coordinator_busy = now + lasts + BETWEEN_STARTS;
            return Some(Action { at: now, fault, slot: None, lasts, delay, rough });
        }
        let targets = self.targets(fault, now);
        let slot = targets[self.dice.below(targets.len() as u32) as usize];
        self.busy[slot] = now + lasts + SETTLE;
        Some(Action { at: now, fault, slot: Some(slot), lasts, delay, rough })
    }

    fn lasts(&mut self, fault: Fault) -> Duration {
        let (step, dice) = (self.settings.step, &mut self.dice);
        let second = Duration::from_secs(1);
        match fault {
            Fault::Kill | Fault::Abort | Fault::Leave => dice.millis(100, 3000),
            Fault::FreezeShort => dice.between(step / 5, step * 9 / 10),
            // Some sleep for longer than any connection is kept open.
            Fault::FreezeLong if dice.below(4) == 0 => dice.millis(18_000, 25_000),
            Fault::FreezeLong => dice.between((step * 10).max(second), (step * 40).max(2 * second)),
            Fault::Join => dice.millis(2000, 15_000),
            Fault::Cut => dice.millis(0, 2000),
            Fault::Stall if dice.below(4) == 0 => dice.millis(16_000, 20_000),
            Fault::Stall => dice.between(step / 2, (step * 30).max(3 * second)),
            Fault::Delay => dice.millis(1000, 6000),
            Fault::LinksCut => dice.millis(0, 3000),
            Fault::LinksStall => dice.between(step / 2, (step * 20).max(2 * second)),
            Fault::Cable if dice.below(4) == 0 => dice.millis(16_000, 20_000),
            Fault::Cable => dice.millis(200, 5000),
            Fault::KillCoordinator | Fault::StopCoordinator => dice.millis(0, 1500),
            Fault::KillAll | Fault::KillEverything => dice.millis(200, 2000),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn settings(seed: u64) -> Settings {
        Settings {
            seed,
            workers: 4,
            guests: 2,
            cables: true,
            links: true,
            length: Duration::from_secs(1200),
            every: Duration::from_secs(1),
            step: Duration::from_millis(50),
        }
    }

    #[test]
    fn a_seed_repeats_its_plan_and_another_has_another() {
        assert_eq!(plan(&settings(1)), plan(&settings(1)));
        assert_ne!(plan(&settings(1)), plan(&settings(2)));
    }

    #[test]
    fn a_long_plan_has_every_fault_about_every_second() {
        let actions = plan(&settings(1));
        let kinds: BTreeSet<Fault> = actions.iter().map(|action| action.fault).collect();
        assert_eq!(kinds.len(), Fault::WEIGHTS.len());
        assert!((850..1300).contains(&actions.len()), "{}", actions.len());
        assert!(actions.is_sorted_by_key(|action| action.at));
    }

    #[test]
    fn one_worker_is_whole_unless_all_are_killed() {
        for seed in 0..50 {
            let actions = plan(&settings(seed));
            for (index, now) in actions.iter().enumerate() {
                let hurt = actions[..=index].iter().filter(|a| a.at + a.lasts > now.at);
                let slots: Vec<usize> = hurt.filter_map(|a| a.slot).filter(|slot| *slot < 4).collect();
                let each: BTreeSet<usize> = slots.iter().copied().collect();
                assert!(each.len() < 4, "seed {seed}, {now:?}");
                assert_eq!(each.len(), slots.len(), "seed {seed}, {now:?}: two faults at once");
                assert!(!now.fault.hits_all_workers() || slots.is_empty(), "seed {seed}, {now:?}");
            }
        }
    }

    #[test]
    fn faults_of_a_connection_hit_those_that_have_one() {
        for action in plan(&settings(3)) {
            match action.fault {
                Fault::Cable => assert_eq!(action.slot.unwrap() % 2, 1),
                Fault::Cut | Fault::Stall | Fault::Delay | Fault::LinksCut | Fault::LinksStall => {
                    assert_eq!(action.slot.unwrap() % 2, 0);
                }
                Fault::Join => assert!((4..6).contains(&action.slot.unwrap())),
                fault => {
                    assert_eq!(action.slot.is_none(), fault.hits_all_workers() || fault.hits_coordinator())
                }
            }
        }
        let bare = Settings { cables: false, workers: 1, guests: 0, ..settings(4) };
        for action in plan(&bare) {
            assert!(action.slot.is_none(), "the only worker stays whole: {action:?}");
        }
    }
}
