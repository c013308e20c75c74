//! Detection of wrong additions: in some sharded steps the coordinator adds up some chunks of one owner as well, and the
//! bits are compared.
//!
//! The audit begins when all sums are there, before the step is closed. The coordinator takes the chunks back as it does
//! when an owner is lost: contributors have kept what they sent, and send it again. If the bits differ, either the owner
//! added wrongly, or a contributor has not kept what it sent. So the attempt is void, and the step is computed again in
//! the star. The owner is sent away if the star's sums differ from those of the owner.
//!
//! Only attempts of one numerics class are audited, because a node that is computed again on another device has other
//! bits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tally_numerics::digest::Digest;
use tally_numerics::tree::Node;

use super::Core;
use super::cluster::Session;
use super::events::{Action, AuditResult, ClusterEvent};
use super::fault_injection::FaultInjection;

/// The most chunks of an audit: they cost the coordinator's link what they cost in the star.
const CHUNKS: usize = 8;

/// An audit of an owner's sums.
#[derive(Clone, Debug)]
pub struct SumsAudit {
    step: u64,
    owner: Session,
    /// The owner's name, for people.
    name: String,
    /// The numerics classes of the sharded attempt: a single one.
    classes: BTreeSet<String>,
    /// The audited chunks, with the digests of the owner's sums once they are known.
    theirs: BTreeMap<u32, Option<Digest>>,
    /// The digests of the coordinator's sums.
    ours: BTreeMap<u32, Digest>,
    /// The sums differ, and the star decides.
    disputed: bool,
}

impl Core {
    /// Whether the audit that is due in this step is one of sums, provided that the step is sharded.
    pub(super) fn audits_sums(&self, step: u64) -> bool {
        self.disputed_node(step).is_none() && self.audit_chance(step).count_ones() % 2 == 1
    }

    /// The owner whose sums are audited in the attempt in flight, if they are.
    pub(super) fn audited_owner(&self) -> Option<Session> {
        let flight = self.flight.as_ref().filter(|flight| flight.layout.is_sharded())?;
        let is_due = self.audit_is_due(flight.step) && self.audits_sums(flight.step);
        let chance = self.audit_chance(flight.step) as usize;
        is_due.then(|| flight.layout.owners[chance % flight.layout.owners.len()])
    }

    /// Whether sums of this step differed, so that the star decides.
    pub(super) fn has_disputed_sums(&self, step: u64) -> bool {
        self.sums_audit.as_ref().is_some_and(|audit| audit.step == step && audit.disputed)
    }

    /// An attempt begins: an audit of the attempt before is over, unless the star is to decide.
    pub(super) fn restart_sums_audit(&mut self) {
        self.sums_audit.take_if(|audit| !audit.disputed);
        if let Some(audit) = &mut self.sums_audit {
            audit.ours.clear();
            self.actions.push(Action::DigestSums { chunks: audit.theirs.keys().copied().collect() });
        }
    }

    /// All sums are there. Begins the audit of some of them if one is due; returns whether the step waits for one.
    pub(super) fn audit_sums(&mut self) -> bool {
        let Some(flight) = &self.flight else { return false };
        if self.sums_audit.as_ref().is_some_and(|audit| !audit.disputed) {
            return true;
        }
        let Some(owner) = self.audited_owner().filter(|_| self.can_audit_sums()) else { return false };
        let mut chunks: Vec<u32> = (0..flight.reduction.chunks())
            .filter(|chunk| flight.layout.owner(*chunk) == Some(owner) && !flight.own.contains(*chunk))
            .collect();
        if chunks.is_empty() {
            return false;
        }
        let first = flight.step as usize % chunks.len();
        chunks.rotate_left(first);
        chunks.truncate(CHUNKS.min(self.spec.credit_window));
        let name = self.members.0.get(&owner).map_or_else(String::new, |member| member.name.clone());
        self.sums_audit = Some(SumsAudit {
            step: flight.step,
            owner,
            name,
            classes: flight.classes.clone(),
            theirs: chunks.iter().map(|chunk| (*chunk, None)).collect(),
            ours: BTreeMap::new(),
            disputed: false,
        });
        self.actions.push(Action::DigestSums { chunks });
        true
    }

    /// Whether workers can send what the sums of this attempt are made of, with the same bits.
    fn can_audit_sums(&self) -> bool {
        let Some(flight) = &self.flight else { return false };
        let tree = self.spec.tree;
        let is_kept = |leaf: u32| {
            let keeps = |node: &Node| node.covers(tree.leaf(leaf));
            tree.samples(leaf, flight.samples).is_empty()
                || self.members.0.values().any(|member| member.closed.iter().any(keeps))
        };
        let all_kept = (0..tree.microbatches()).all(is_kept) || self.injects(FaultInjection::AuditLostSums);
        flight.may_audit_sums && flight.classes.len() == 1 && all_kept
    }

    /// The owner's digests are known: the coordinator adds up itself.
    fn take_audited_sums_back(&mut self, now: Duration) {
        let can = self.can_audit_sums();
        let due = self.transfer_due(now);
        let (Some(flight), Some(audit)) = (&mut self.flight, &self.sums_audit) else { return };
        flight.may_audit_sums = false;
        if !can {
            self.sums_audit = None;
            return self.close_if_complete();
        }
        let chunks: Vec<u32> = audit.theirs.keys().copied().collect();
        for &chunk in &chunks {
            flight.reduction.forget(chunk);
            flight.own.push(chunk);
        }
        for member in self.members.0.values_mut().filter(|m| !m.open.is_empty() || !m.closed.is_empty()) {
            member.due = member.due.max(due);
        }
        let (step, attempt) = (flight.step, flight.attempt);
        self.actions.push(Action::TakeBack { step, attempt, chunks });
    }

    /// The digest of a sum that was asked for: first the owner's, then the coordinator's.
    pub(super) fn summed(&mut self, now: Duration, chunk: u32, digest: Digest) {
        let (Some(flight), Some(audit)) = (&self.flight, &mut self.sums_audit) else { return };
        match audit.theirs.get_mut(&chunk) {
            None => return,
            Some(theirs @ None) => {
                *theirs = Some(digest);
                if audit.theirs.values().all(Option::is_some) {
                    self.take_audited_sums_back(now);
                }
                return;
            }
            Some(_) => drop(audit.ours.insert(chunk, digest)),
        }
        if audit.ours.len() < audit.theirs.len() {
            return;
        }
        let equal = audit.theirs.iter().all(|(chunk, theirs)| theirs.as_ref() == audit.ours.get(chunk));
        let classes = flight.classes.clone();
        if !equal && !audit.disputed {
            audit.disputed = true;
            let reason = format!("the sums of {} are not those of what workers sent to it", audit.name);
            self.abort(&reason);
            return self.boundary(now);
        }
        let Some(SumsAudit { step, owner, name, classes: before, disputed, .. }) = self.sums_audit.take()
        else {
            return;
        };
        let result = match (equal, disputed) {
            (true, false) => AuditResult::Equal,
            (false, _) if classes == before => AuditResult::Alone(owner),
            _ => AuditResult::Undecided,
        };
        let alone = matches!(result, AuditResult::Alone(_)).then(|| name.clone());
        self.count_audit(result);
        let checker = "the coordinator".into();
        self.actions.push(Action::Report(ClusterEvent::Audited {
            step,
            node: None,
            owner: name,
            checker,
            alone,
            result,
        }));
        if matches!(result, AuditResult::Alone(_)) {
            let fault = format!("its sums of step {step} are not those of what workers sent to it");
            self.evict(now, owner, fault, false);
        }
        self.close_if_complete();
    }
}
