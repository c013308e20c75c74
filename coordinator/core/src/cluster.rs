//! The members of the cluster, the state of each replica, and its measured speed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tally_numerics::digest::Digest;
use tally_numerics::tree::Node;

/// One stay of one worker in the cluster. A number is never used again.
pub type Session = u64;

/// A worker's device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For people: `CPU (2 threads)`.
    pub name: String,
    /// Identifies the arithmetic of its gradients: workers of one class compute equal ones (**SUM-1**).
    pub numerics_class: String,
}

/// The state of a member's replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for a step's boundary, where it is sent a committed state.
    Joining,
    /// It has been sent the state of a step and all that came since, and has not yet
    /// confirmed a digest close enough to the newest commit.
    Loading,
    /// Its replica is verified; it can be given work.
    Ready,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct Member {
    /// For people.
    pub name: String,
    /// What it computes with.
    pub device: DeviceInfo,
    /// Threads it computes with.
    pub threads: u32,
    /// How far its replica is.
    pub state: State,
    /// The newest step whose digest it has confirmed.
    pub confirmed: Option<u64>,
    /// Measured seconds a sample, smoothed; `None` before its first contribution.
    pub per_sample: Option<f64>,
    /// Nodes of the step in flight it was given and has not closed with a trailer.
    pub open: BTreeSet<Node>,
    /// Nodes of the step in flight whose trailers have come: a second is a violation. In a sharded attempt the worker keeps
    /// their sums until the step is committed.
    pub closed: BTreeSet<Node>,
    /// Leaves of the step in flight it was given.
    pub leaves: u32,
    /// Seconds it has computed for the step in flight.
    pub computed: f64,
    /// Leaves whose samples it has been sent: (step, leaf).
    pub dealt: BTreeSet<(u64, u32)>,
    /// Leaves of the test pass it was given and has not answered.
    pub testing: BTreeSet<u32>,
    /// Samples it has contributed to committed steps.
    pub samples: u64,
    /// When its assignment in the step in flight is due.
    pub due: Duration,
    /// Steps whose state it held when it came, with their digests.
    pub held: Vec<(u64, Digest)>,
    /// It has been ready before.
    pub was_ready: bool,
    /// How it can have links with other workers.
    pub links: LinkAbility,
    /// The machine on which it runs, by a name that its workers have in common; empty if it is not known.
    pub machine: String,
    /// It owns no chunks before this step, because its sums were late.
    pub owns_from: u64,
    /// How often its sums were late.
    pub late_sums: u32,
}

/// How a worker can have links with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkAbility {
    /// Not at all.
    #[default]
    None,
    /// It dials others.
    Dials,
    /// It dials, and others may dial it.
    Listens,
}

impl Member {
    /// A member that has just joined.
    #[must_use]
    pub fn new(name: String, device: DeviceInfo, threads: u32, held: Vec<(u64, Digest)>) -> Self {
        Self {
            name,
            device,
            threads,
            state: State::Joining,
            confirmed: None,
            per_sample: None,
            open: BTreeSet::new(),
            closed: BTreeSet::new(),
            leaves: 0,
            computed: 0.0,
            dealt: BTreeSet::new(),
            testing: BTreeSet::new(),
            samples: 0,
            due: Duration::ZERO,
            held,
            was_ready: false,
            links: LinkAbility::None,
            machine: String::new(),
            owns_from: 0,
            late_sums: 0,
        }
    }

    /// Whether it computes, or has computed, a node that covers this one.
    #[must_use]
    pub fn has(&self, node: Node) -> bool {
        self.open.iter().chain(&self.closed).any(|own| own.covers(node))
    }

    /// What it is doing, in a word; `in_flight` says whether a step is.
    #[must_use]
    pub fn activity(&self, in_flight: bool) -> &'static str {
        match self.state {
            State::Joining => "joining",
            State::Loading => "loading",
            State::Ready if self.leaves > 0 || !self.testing.is_empty() => "working",
            State::Ready if in_flight => "spare",
            State::Ready => "ready",
        }
    }

    /// Takes a measurement of its speed: one in four counts fully, so that a single slow leaf does not change its
    /// assignment.
    pub fn measure(&mut self, seconds: f64, samples: usize) {
        if samples > 0 && seconds.is_finite() && seconds >= 0.0 {
            let now = seconds / samples as f64;
            self.per_sample = Some(self.per_sample.map_or(now, |before| 0.75 * before + 0.25 * now));
        }
    }
}

/// All members, in the order of their sessions.
#[derive(Clone, Debug, Default)]
pub struct Members(pub BTreeMap<Session, Member>);

impl Members {
    /// Whether two have the same numerics class, so that their bits can be compared.
    #[must_use]
    pub fn are_alike(&self, a: Session, b: Session) -> bool {
        let class = |session| self.0.get(&session).map(|member| &member.device.numerics_class);
        class(a) == class(b)
    }

    /// The sessions that can be given work.
    #[must_use]
    pub fn ready(&self) -> Vec<Session> {
        let ready = self.0.iter().filter(|(_, m)| m.state == State::Ready);
        ready.map(|(&session, _)| session).collect()
    }

    /// Whether any can be given work.
    #[must_use]
    pub fn any_ready(&self) -> bool {
        self.0.values().any(|member| member.state == State::Ready)
    }

    /// Seconds a sample of a member; the mean of those measured stands in for one that has not been, so that
    /// newcomers start with an average assignment.
    #[must_use]
    pub fn per_sample(&self, session: Session) -> f64 {
        let measured: Vec<f64> = self.0.values().filter_map(|m| m.per_sample).collect();
        let mean =
            if measured.is_empty() { 1.0 } else { measured.iter().sum::<f64>() / measured.len() as f64 };
        let own = self.0.get(&session).and_then(|m| m.per_sample);
        own.unwrap_or(mean).max(1e-9)
    }

    /// Moves the estimates of slow idle workers a little towards those of the others. An idle worker is not measured,
    /// and may have become faster, so it is tried again.
    pub fn decay_idle_estimates(&mut self) {
        let working = self.0.values().filter(|m| m.leaves > 0).filter_map(|m| m.per_sample);
        let (sum, count) = working.fold((0.0, 0), |(sum, count), next| (sum + next, count + 1));
        if count == 0 {
            return;
        }
        let mean = sum / f64::from(count);
        for member in self.0.values_mut().filter(|m| m.leaves == 0) {
            if let Some(own) = member.per_sample.as_mut().filter(|own| **own > mean) {
                *own = mean + 0.9 * (*own - mean);
            }
        }
    }

    /// Workers that have not confirmed the last two commits have no part in the next step.
    pub fn demote_lagging(&mut self, committed: u64) {
        for member in self.0.values_mut().filter(|m| m.state == State::Ready) {
            if member.confirmed.is_none_or(|step| step + 1 < committed) {
                member.state = State::Loading;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_counts_as_average_and_one_slow_leaf_moves_little() {
        let mut members = Members::default();
        for session in 1..=3 {
            members.0.insert(session, Member::new(String::new(), DeviceInfo::default(), 1, Vec::new()));
        }
        let mut measure = |session, seconds| {
            if let Some(member) = members.0.get_mut(&session) {
                member.measure(seconds, 10);
            }
        };
        measure(1, 1.0);
        measure(2, 3.0);
        measure(1, 2.0);
        measure(1, f64::NAN);
        assert_eq!(members.per_sample(1), 0.125);
        assert_eq!(members.per_sample(3), (0.125 + 0.3) / 2.0);
    }
}
