//! Detection of silent corruption: in some steps a second worker computes a node that another worker contributes, and
//! the bits are compared.
//!
//! The contribution is added as usual, and the step waits with its commit for the second result. If the two differ, a
//! third worker decides, and the worker with different bits is sent away. With only two workers the step is computed
//! again by both, because an accident does not repeat. Only workers of one numerics class are compared: a GPU's bits
//! are not a CPU's.

use std::time::Duration;

use tally_numerics::digest::{Digest, fnv1a};
use tally_numerics::tree::Node;

use super::Core;
use super::cluster::Session;
use super::events::{Action, AttemptId, AuditResult, ClusterEvent};

/// Audits since the start, by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Equal bits.
    pub equal: u64,
    /// Different bits.
    pub differed: u64,
}

/// An audit in the step in flight.
#[derive(Clone, Debug)]
pub struct Audit {
    node: Node,
    contributor: Session,
    /// The contribution's digest so far, its chunks so far, and whether it is closed.
    own: (Digest, u32, bool),
    checkers: Vec<(Session, Option<Digest>)>,
}

impl Audit {
    /// Who contributes what is checked.
    #[cfg(test)]
    pub(super) fn contributor(&self) -> Session {
        self.contributor
    }

    fn settled(&self) -> Option<AuditResult> {
        let (own, _, true) = self.own else { return None };
        let answers: Option<Vec<Digest>> = self.checkers.iter().map(|(_, digest)| *digest).collect();
        match answers?[..] {
            [first] if first == own => Some(AuditResult::Equal),
            [first, third] if first == third => Some(AuditResult::Alone(self.contributor)),
            [_, third] if third == own => Some(AuditResult::Alone(self.checkers[0].0)),
            [_, _] => Some(AuditResult::Undecided),
            _ => None,
        }
    }

    /// Whether two differ and nobody else has been asked.
    fn needs_a_third(&self) -> bool {
        matches!((self.own, &self.checkers[..]), ((own, _, true), [(_, Some(first))]) if *first != own)
    }
}

impl Core {
    /// Audits since the start.
    #[must_use]
    pub fn audits(&self) -> Counts {
        self.audits
    }

    /// Whether the digest of this contribution's chunks is wanted.
    #[must_use]
    pub fn is_audited(&self, from: AttemptId, node: Node) -> bool {
        let Some(flight) = &self.flight else { return false };
        (flight.step, flight.attempt) == (from.step, from.attempt)
            && flight.audit.as_ref().is_some_and(|a| (a.contributor, a.node) == (from.session, node))
    }

    /// The node of a step about which two workers differed.
    pub(super) fn disputed_node(&self, step: u64) -> Option<Node> {
        self.disputed.filter(|(of, _)| *of == step).map(|(_, node)| node)
    }

    /// Random bits of a step: the upper half decides whether there is an audit, the lower half of what.
    pub(super) fn audit_chance(&self, step: u64) -> u64 {
        let seed = self.spec.schedule.seed().to_le_bytes();
        fnv1a(step.to_le_bytes().into_iter().chain(seed))
    }

    /// Whether a node of this step, or sums of it, are to be audited.
    pub(super) fn audit_is_due(&self, step: u64) -> bool {
        let drawn = (self.audit_chance(step) >> 32) as f64 / f64::from(u32::MAX);
        self.disputed_node(step).is_some() || drawn < self.spec.audit_rate
    }

    /// Chooses, with the audit rate, a node of the step that begins for an audit.
    pub(super) fn begin_audit(&mut self, now: Duration, dealt: &[(Session, Vec<Node>)]) {
        let Some(flight) = &self.flight else { return };
        let step = flight.step;
        // Sums are audited when they are there.
        if !self.audit_is_due(step) || flight.layout.is_sharded() || self.has_disputed_sums(step) {
            return;
        }
        let disputed = self.disputed_node(step);
        let chance = self.audit_chance(step);
        let ready = self.members.ready();
        let has_peer =
            |owner: &Session| ready.iter().any(|s| s != owner && self.members.are_alike(*s, *owner));
        let shares: Vec<(Session, Node)> = dealt
            .iter()
            .filter(|(session, _)| has_peer(session))
            .flat_map(|(session, nodes)| nodes.iter().map(|n| (*session, *n)))
            .collect();
        let Some(&any) = shares.get((chance as u32) as usize % shares.len().max(1)) else { return };
        let (owner, node) = shares.iter().copied().find(|(_, n)| Some(*n) == disputed).unwrap_or(any);
        let Some(flight) = &mut self.flight else { return };
        flight.audit = Some(Audit {
            node,
            contributor: owner,
            own: (Digest::default(), 0, false),
            checkers: Vec::new(),
        });
        if !self.ask_checker(now) {
            self.drop_audit();
        }
    }

    /// Has the worker that is free first, of those whose bits should be equal, compute the audited node; false
    /// if there is none that has not.
    fn ask_checker(&mut self, now: Duration) -> bool {
        let Some(flight) = &mut self.flight else { return false };
        let (step, attempt, samples) = (flight.step, flight.attempt, flight.samples);
        let Some(audit) = &mut flight.audit else { return false };
        let asked = |session: &Session| {
            *session == audit.contributor || audit.checkers.iter().any(|(checker, _)| checker == session)
        };
        let can = |session: Session| {
            self.members.are_alike(session, audit.contributor) && Some(session) != self.non_finite
        };
        let free = self.members.ready().into_iter().filter(|s| !asked(s) && can(*s));
        let Some(checker) = free.min_by_key(|s| self.members.0[s].due) else { return false };
        audit.checkers.push((checker, None));
        let node = audit.node;
        flight.audits.insert((checker, node));
        self.deal(checker, step, node);
        let leaves = self.spec.tree.leaves(node).len() as u32;
        self.extend_deadline(now, checker, leaves, samples);
        self.actions.push(Action::Audit { session: checker, step, attempt, samples, node });
        true
    }

    /// A chunk of a contribution came, of which the digest was wanted.
    pub(super) fn audit_chunk(&mut self, from: AttemptId, node: Node, digest: Option<Digest>) {
        let audited = self.is_audited(from, node);
        let audit = self.flight.as_mut().and_then(|f| f.audit.as_mut());
        if let (true, Some(audit), Some(digest)) = (audited, audit, digest) {
            audit.own = (audit.own.0.and(digest), audit.own.1 + 1, false);
        }
    }

    /// A contribution is closed.
    pub(super) fn audit_closed(&mut self, now: Duration, from: AttemptId, node: Node) {
        if !self.is_audited(from, node) {
            return;
        }
        let chunks = self.spec.chunks;
        let Some(audit) = self.flight.as_mut().and_then(|f| f.audit.as_mut()) else { return };
        if audit.own.1 == chunks {
            audit.own.2 = true;
            self.settle_audit(now);
        } else {
            // Others were faster, so it did not send all.
            self.drop_audit();
        }
    }

    /// The result of the second worker has come.
    pub(super) fn audited(&mut self, now: Duration, from: AttemptId, node: Node, digest: Digest) {
        let Some((_, flight)) = self.current(from) else { return };
        if !flight.audits.remove(&(from.session, node)) {
            let reason = format!("it audited {node}, which it was not asked to");
            return self.evict(now, from.session, reason, false);
        }
        // The audit may have been dropped.
        let Some(audit) = &mut flight.audit else { return };
        if let Some((_, answer)) = audit.checkers.iter_mut().find(|(checker, _)| *checker == from.session) {
            *answer = Some(digest);
        }
        self.settle_audit(now);
    }

    pub(super) fn count_audit(&mut self, result: AuditResult) {
        match result {
            AuditResult::Equal => self.audits.equal += 1,
            AuditResult::Alone(_) | AuditResult::Undecided => self.audits.differed += 1,
        }
    }

    fn settle_audit(&mut self, now: Duration) {
        let Some(audit) = self.flight.as_ref().and_then(|f| f.audit.as_ref()) else { return };
        let mut result = audit.settled();
        if audit.needs_a_third() && !self.ask_checker(now) {
            result = Some(AuditResult::Undecided);
        }
        let Some(result) = result else { return };
        let Some(flight) = &mut self.flight else { return };
        let Some(audit) = flight.audit.take() else { return };
        let (step, node, owner) = (flight.step, audit.node, audit.contributor);
        let name =
            |session: Session| self.members.0.get(&session).map_or_else(String::new, |m| m.name.clone());
        let alone = match result {
            AuditResult::Alone(session) => Some(name(session)),
            _ => None,
        };
        let checker = name(audit.checkers[0].0);
        let note =
            ClusterEvent::Audited { step, node: Some(node), owner: name(owner), checker, alone, result };
        self.count_audit(result);
        self.actions.push(Action::Report(note));
        let fault = format!("its bits for {node} of step {step} are not those that two others got");
        match result {
            AuditResult::Equal => self.close_if_complete(),
            AuditResult::Alone(session) if session == owner => self.violated(now, session, fault),
            AuditResult::Alone(session) => {
                self.evict(now, session, fault, true);
                self.close_if_complete();
            }
            AuditResult::Undecided if self.disputed.is_some_and(|(of, _)| of == step) => {
                self.close_if_complete()
            }
            AuditResult::Undecided => {
                self.disputed = Some((step, node));
                self.abort("an audit found different bits, and nobody to decide");
                self.boundary(now);
            }
        }
    }

    /// A worker is gone; what it owned or checked cannot be compared any more.
    pub(super) fn audit_lost(&mut self, session: Session) {
        let Some(audit) = self.flight.as_ref().and_then(|f| f.audit.as_ref()) else { return };
        if audit.contributor == session || audit.checkers.iter().any(|(checker, _)| *checker == session) {
            self.drop_audit();
        }
    }

    /// The step does not wait for a second result that is late.
    pub(super) fn audit_overdue(&mut self, now: Duration) {
        let Some(flight) = &self.flight else { return };
        let Some(audit) = &flight.audit else { return };
        let late = |session: &Session| self.members.0.get(session).is_none_or(|m| now >= m.due);
        let checkers =
            audit.checkers.iter().filter(|(_, answer)| answer.is_none()).map(|(session, _)| session);
        let speculative = flight.speculative.contains(&(audit.contributor, audit.node));
        if speculative || checkers.into_iter().any(late) {
            self.drop_audit();
            self.close_if_complete();
        }
    }

    fn drop_audit(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.audit = None;
        }
    }
}
