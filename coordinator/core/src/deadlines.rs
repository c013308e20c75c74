//! Work that is assigned a second time: that of a lost worker, within the step (**LIVE-1**), and that of a straggler,
//! after its deadline.
//!
//! The deadline follows from measurements: twice the time that the assignment should take to compute and to transfer.
//! After it the nodes are assigned to other workers as well, and the first result counts. Both results have the same
//! bits, so it does not matter which one is first. A worker is late only while the sum waits for it; a worker that
//! has sent all that its credits allow is not late.

use std::collections::BTreeMap;
use std::time::Duration;

use tally_numerics::tree::Node;

use super::Core;
use super::assign::Load;
use super::cluster::{Member, Session, State};
use super::events::{Action, ClusterEvent};
use super::fault_injection::FaultInjection;

/// An assignment may take so many times its expected time …
const SLACK: f64 = 2.0;
/// … and this much more, for delays that no measurement predicts.
const FLOOR: Duration = Duration::from_millis(50);

/// How long something may take that should take so many seconds.
fn slack(seconds: f64) -> Duration {
    // A day is longer than any assignment takes, and does not overflow.
    Duration::from_secs_f64((SLACK * seconds).min(86_400.0))
}

/// Keeps the workers for which `good` holds, if there are any.
fn prefer(workers: &mut Vec<Session>, good: impl Fn(&Session) -> bool) {
    if workers.iter().any(&good) {
        workers.retain(good);
    }
}

impl Core {
    /// When the last assignment of the step in flight is due, from the step's beginning.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let flight = self.flight.as_ref()?;
        let due = self.members.0.values().filter(|m| m.leaves > 0).map(|m| m.due).max();
        due.map(|due| due.saturating_sub(flight.started))
    }

    /// When what is on its way now is due: after twice the measured transfer.
    pub(super) fn transfer_due(&self, now: Duration) -> Duration {
        self.due_after(now, 1.0)
    }

    /// When so many times as much is due.
    pub(super) fn due_after(&self, now: Duration, transfers: f64) -> Duration {
        now + FLOOR + slack(self.transfer * transfers)
    }

    /// Nobody who contributes is late before this moment.
    pub(super) fn postpone(&mut self, due: Duration) {
        for member in self.members.0.values_mut().filter(|m| !m.open.is_empty() || !m.closed.is_empty()) {
            member.due = member.due.max(due);
        }
    }

    /// A worker has been given `leaves` more leaves.
    pub(super) fn extend_deadline(&mut self, now: Duration, session: Session, leaves: u32, samples: usize) {
        let mean_leaf = samples as f64 / f64::from(self.spec.tree.microbatches());
        let seconds = self.members.per_sample(session) * mean_leaf * f64::from(leaves) + self.transfer;
        if let Some(member) = self.members.0.get_mut(&session) {
            member.due = member.due.max(now + FLOOR) + slack(seconds);
        }
    }

    /// Finds the workers that are late now.
    pub(super) fn tick(&mut self, now: Duration) {
        if self.recovery.is_some() {
            return self.boundary(now);
        }
        self.dial(now);
        if !self.injects(FaultInjection::ForgetTestMicrobatch) {
            self.test_overdue(now);
        }
        let Some(flight) = &self.flight else { return };
        if flight.closing {
            return;
        }
        let window = self.spec.credit_window;
        let mut late: Vec<(Session, Vec<Node>)> = Vec::new();
        for (&session, member) in self.members.0.iter().filter(|(_, m)| now >= m.due) {
            let own = member.open.iter().map(|node| (*node, false));
            let own = own.chain(member.closed.iter().map(|node| (*node, true)));
            let nodes: Vec<Node> = own
                .filter(|&(node, closed)| flight.awaits(node, closed, window))
                .map(|(node, _)| node)
                .filter(|node| !flight.speculative.contains(&(session, *node)))
                .collect();
            if !nodes.is_empty() {
                late.push((session, nodes));
            }
        }
        let step = flight.step;
        for (session, nodes) in late {
            let leaves = self.take_over(now, &nodes);
            let Some(flight) = &self.flight else { return };
            let others_have =
                |node: Node| self.members.0.iter().any(|(&other, m)| other != session && m.has(node));
            let closed = |node: &Node| self.members.0.get(&session).is_some_and(|m| m.closed.contains(node));
            let withheld = |node: &Node| closed(node) && !others_have(*node);
            if leaves == 0 && flight.layout.is_sharded() && nodes.iter().any(withheld) {
                // It says that it has sent what did not arrive, and nobody else can compute it.
                self.star_until = step + 1;
                self.abort("a worker does not send what it has computed");
                return self.boundary(now);
            }
            if leaves > 0 {
                if let Some(flight) = &mut self.flight {
                    flight.speculative.extend(nodes.into_iter().map(|node| (session, node)));
                }
                self.actions.push(Action::Report(ClusterEvent::Late { session, step, leaves }));
            }
        }
        self.audit_overdue(now);
        self.sums_overdue(now);
    }

    /// Deals nodes that a worker has not closed to others, and returns how many leaves.
    pub(super) fn take_over(&mut self, now: Duration, nodes: &[Node]) -> u32 {
        let Some(flight) = &self.flight else { return 0 };
        if self.injects(FaultInjection::ForgetTakeover) {
            return 0;
        }
        let mean_leaf = flight.samples as f64 / f64::from(self.spec.tree.microbatches());
        let (step, attempt) = (flight.step, flight.attempt);
        let window = self.spec.credit_window;
        let is_late = |session: &Session| {
            let member = &self.members.0[session];
            now >= member.due && member.open.iter().any(|node| flight.awaits(*node, false, window))
        };
        let ready = self.members.ready();
        let mut loads: BTreeMap<Session, Load> = BTreeMap::new();
        for &session in &ready {
            let member = &self.members.0[&session];
            let per_leaf = self.members.per_sample(session) * mean_leaf;
            let elapsed = now.saturating_sub(flight.started).as_secs_f64();
            let todo = if member.open.is_empty() { 0.0 } else { f64::from(member.leaves) * per_leaf };
            loads.insert(session, Load { busy: (todo - elapsed).max(0.0), per_leaf });
        }
        // In a sharded attempt a worker that has sent a node keeps it, and sends it again if it is asked to.
        let is_kept = |node: Node| {
            let keeps = |m: &Member| {
                let closed = m.closed.iter().any(|own| own.covers(node));
                closed && !(now >= m.due && flight.awaits(node, true, window))
            };
            flight.layout.is_sharded() && self.members.0.values().any(keeps)
        };
        let mut dealt: BTreeMap<Session, Vec<Node>> = BTreeMap::new();
        let mut leaves = 0;
        // A worker that took over more than once may have a node and a part of it.
        let is_part = |node: Node| nodes.iter().any(|whole| *whole != node && whole.covers(node));
        let to_deal = |node: &&Node| !is_part(**node) && !flight.is_done(**node) && !is_kept(**node);
        for &node in nodes.iter().filter(to_deal) {
            let mut takers: Vec<Session> =
                ready.iter().copied().filter(|s| !self.members.0[s].has(node)).collect();
            // A late worker gets more only if there is no other worker, and so does one that cannot send to owners.
            let is_linked = |s: &Session| !flight.layout.is_sharded() || flight.layout.is_linked(*s);
            prefer(&mut takers, |s| !is_late(s));
            prefer(&mut takers, is_linked);
            // Bits of another kind could void the attempt.
            let is_alike = |s: &Session| flight.classes.contains(&self.members.0[s].device.numerics_class);
            prefer(&mut takers, |s| !flight.layout.is_sharded() || is_alike(s));
            if takers.is_empty() {
                continue;
            }
            let mut theirs: Vec<Load> = takers.iter().map(|s| loads[s]).collect();
            let shares = flight.deal(&[node], &mut theirs);
            for ((session, share), load) in takers.into_iter().zip(shares).zip(theirs) {
                loads.insert(session, load);
                // It computes, or has computed, the nodes that it was given before.
                let had = |n: &Node| {
                    self.members.0[&session].open.contains(n) || flight.opened.contains(&(session, *n))
                };
                dealt.entry(session).or_default().extend(share.into_iter().filter(|n| !had(n)));
            }
            leaves += flight.full_leaves(node);
        }
        dealt.retain(|_, nodes| !nodes.is_empty());
        if dealt.is_empty() {
            return 0;
        }
        let full = |nodes: &[Node]| nodes.iter().map(|&node| flight.full_leaves(node)).sum();
        let by = dealt.iter().map(|(&session, nodes)| (session, full(nodes))).collect();
        let class = |session: &Session| &self.members.0[session].device.numerics_class;
        let joins = dealt.keys().any(|session| !flight.classes.contains(class(session)));
        let sharded = flight.layout.is_sharded();
        // Owners, or the combiners of a machine, would wait for nodes that come from elsewhere.
        let reason = if sharded && dealt.keys().any(|session| !flight.layout.is_linked(*session)) {
            Some("a worker without links computes for others")
        } else if !flight.layout.machines.is_empty() {
            Some("a machine that combines lacks nodes")
        } else {
            None
        };
        if sharded && joins && (reason.is_some() || !flight.own.order().is_empty()) {
            self.void_mixed(now, "a worker of another numerics class computes for others");
            return 0;
        }
        if let Some(reason) = reason {
            let missing = flight.missing();
            if !self.take_back(now, missing, reason) {
                return 0;
            }
        }
        self.parts_have_two_versions();
        self.actions.push(Action::Report(ClusterEvent::TakenOver { step, leaves, by }));
        for (session, nodes) in dealt {
            self.plan(now, session, step, attempt, nodes, true);
        }
        leaves
    }

    /// A step is over. A worker that still had work in it is slower than estimated, and gets more only after it has
    /// confirmed the step.
    pub(super) fn measure_the_late(&mut self, now: Duration, started: Duration, samples: usize) {
        let mean_leaf = samples as f64 / f64::from(self.spec.tree.microbatches());
        let elapsed = now.saturating_sub(started).as_secs_f64();
        for member in self.members.0.values_mut().filter(|m| m.state == State::Ready && !m.open.is_empty()) {
            member.state = State::Loading;
            let at_least = elapsed / (mean_leaf * f64::from(member.leaves)).max(1.0);
            if member.per_sample.is_none_or(|known| at_least > known) {
                member.per_sample = Some(at_least);
            }
        }
        self.members.decay_idle_estimates();
    }
}
