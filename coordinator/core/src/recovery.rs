//! After a crash: the state from which a restarted coordinator continues (**RESUME-1**).
//!
//! The master state starts at the newest checkpoint; the journal may know of later steps, and workers that outlived
//! the coordinator may hold one of those states. A state counts only if the journal has its digest. The newest step
//! of the journal is taken as soon as a worker offers it. An older one is taken after a grace period in which workers
//! reconnect. Without any, the steps since the checkpoint are computed again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tally_numerics::digest::Digest;

use super::Core;
use super::cluster::Session;
use super::events::{Action, ClusterEvent};
use super::fault_injection::FaultInjection;

/// How long a worker may take to send the state it was asked for.
const UPLOAD: Duration = Duration::from_secs(30);

/// The journal's record of steps that the master state may not have reached.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// The digest after each step.
    pub digests: BTreeMap<u64, Digest>,
    /// The steps whose test pass is done.
    pub tests: BTreeSet<u64>,
    /// How long to wait for workers that hold a newer state than the master.
    pub grace: Duration,
}

impl Recorded {
    /// The epochs up to `step` whose test pass is done.
    #[must_use]
    pub fn tested(&self, step: u64) -> u32 {
        self.tests.range(..=step).count() as u32
    }

    /// The newest step.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.digests.last_key_value().map_or(0, |(&step, _)| step)
    }
}

/// The search for the newest state that a worker holds.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// When the search ends with the best state found, counted from the first event.
    until: Option<Duration>,
    /// The newest state that each worker holds and the journal confirms.
    offers: BTreeMap<Session, u64>,
    /// The worker that was asked, the state, and the time until which it may take.
    asked: Option<(Session, u64, Duration)>,
}

impl Core {
    /// Goes on with the search; true once it is over.
    pub(super) fn recovered(&mut self, now: Duration) -> bool {
        let Some(recovery) = &mut self.recovery else { return true };
        let until = *recovery.until.get_or_insert(now + self.recorded.grace);
        if let Some((session, step, patience)) = recovery.asked {
            if now >= patience {
                self.evict(now, session, format!("it did not send the state of step {step}"), false);
            }
            return false;
        }
        let best =
            recovery.offers.iter().max_by_key(|(session, step)| (**step, std::cmp::Reverse(**session)));
        match best.map(|(&session, &step)| (session, step)) {
            Some((session, step)) if step == self.recorded.last() || now >= until => {
                recovery.asked = Some((session, step, now + UPLOAD));
                self.actions.push(Action::Upload { session, step });
                false
            }
            None if now >= until => {
                self.recovery = None;
                true
            }
            _ => false,
        }
    }

    /// A worker has joined; it may hold a state.
    pub(super) fn offered(&mut self, session: Session) {
        let Some(member) = self.members.0.get(&session) else { return };
        let confirmed = |(step, digest): &&(u64, Digest)| {
            *step > self.committed
                && (self.recorded.digests.get(step) == Some(digest)
                    || self.injects(FaultInjection::AdoptAnyState))
        };
        let newest = member.held.iter().filter(confirmed).map(|(step, _)| *step).max();
        if let (Some(recovery), Some(step)) = (&mut self.recovery, newest) {
            recovery.offers.insert(session, step);
        }
    }

    /// A worker is gone, and its offer with it.
    pub(super) fn offer_gone(&mut self, session: Session) {
        if let Some(recovery) = &mut self.recovery {
            recovery.offers.remove(&session);
            recovery.asked.take_if(|asked| asked.0 == session);
        }
    }

    /// The state that was asked for has come whole.
    pub(super) fn uploaded(&mut self, now: Duration, session: Session, step: u64, digest: Digest) {
        let asked = self.recovery.as_ref().and_then(|r| r.asked);
        if asked.is_none_or(|(who, what, _)| (who, what) != (session, step)) {
            return self.evict(now, session, format!("it sent the state of step {step} unasked"), false);
        }
        if self.recorded.digests.get(&step) != Some(&digest) && !self.injects(FaultInjection::AdoptAnyState) {
            let reason =
                format!("the state of step {step} that it sent has digest {digest}, not the journal's");
            return self.evict(now, session, reason, true);
        }
        if let Some(recovery) =
            self.recovery.as_mut().filter(|r| r.offers.values().any(|&newer| newer > step))
        {
            // Its holder came while this one was on its way.
            recovery.asked = None;
            return self.boundary(now);
        }
        self.recovery = None;
        self.go_to(step, digest);
        self.actions.push(Action::Adopt { step });
        self.actions.push(Action::Report(ClusterEvent::Adopted { session, step }));
        self.boundary(now);
    }
}
