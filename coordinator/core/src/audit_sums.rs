//! Detection of wrong additions: in some sharded steps the coordinator adds up some chunks of one owner as well, and the
//! bits are compared.
//!
//! The audit begins when all sums are there, before the step is closed. The coordinator takes the chunks back as it does
//! when an owner is lost: contributors have kept what they sent, and send it again. If the bits differ, the attempt is void,
//! and the step is computed again in the star. The owner is sent away if the star's sums are those that the coordinator got
//! from what was sent again, and the owner's are not.
//!
//! Otherwise nobody is blamed: a contributor may not have kept what it sent, a combiner may have added wrongly, or a node that
//! two workers computed may have had two versions. A contributor that lies to the owner alone cannot be told from an owner
//! that adds wrongly.

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
    /// The digests of the coordinator's sums of what was sent again.
    ours: BTreeMap<u32, Digest>,
    /// The digests of the star's sums, which decide if the others differ.
    star: BTreeMap<u32, Digest>,
    /// The sums differ, and the star decides.
    disputed: bool,
    /// What the owner added up and what was sent again come from the same workers, so that a difference tells of the owner.
    same_parts: bool,
}

/// Whether all of the owner's sums are these; `None` until all are known.
fn equal(theirs: &BTreeMap<u32, Option<Digest>>, others: &BTreeMap<u32, Digest>) -> Option<bool> {
    let is_equal = |(chunk, theirs): (&u32, &Option<Digest>)| theirs.as_ref() == others.get(chunk);
    (others.len() == theirs.len()).then(|| theirs.iter().all(is_equal))
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
        let here = |session: &&Session| self.members.0.contains_key(session);
        let owners: Vec<Session> = flight.layout.owners.iter().filter(here).copied().collect();
        let chance = self.audit_chance(flight.step) as usize;
        owners.get(chance % owners.len().max(1)).copied().filter(|_| is_due)
    }

    /// Whether sums of this step differed, so that the star decides.
    pub(super) fn has_disputed_sums(&self, step: u64) -> bool {
        self.sums_audit.as_ref().is_some_and(|audit| audit.step == step && audit.disputed)
    }

    /// Whether a chunk is being added up again, so that its owner has no say in it.
    pub(super) fn is_audited_sum(&self, chunk: u32) -> bool {
        let audit =
            self.sums_audit.as_ref().filter(|audit| !audit.disputed && audit.theirs.contains_key(&chunk));
        audit.is_some() && self.flight.as_ref().is_some_and(|flight| flight.own.contains(chunk))
    }

    /// Nodes are computed by other workers as well, and may have other bits there.
    pub(super) fn parts_have_two_versions(&mut self) {
        self.flight.iter_mut().for_each(|flight| flight.may_audit_sums = false);
        self.sums_audit.iter_mut().filter(|audit| !audit.disputed).for_each(|audit| audit.same_parts = false);
    }

    /// An attempt begins: an audit of the attempt before is over, unless the star is to decide.
    pub(super) fn restart_sums_audit(&mut self) {
        self.sums_audit.take_if(|audit| !audit.disputed);
        if let Some(audit) = &mut self.sums_audit {
            audit.star.clear();
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
            star: BTreeMap::new(),
            disputed: false,
            same_parts: flight.layout.machines.is_empty(),
        });
        self.actions.push(Action::DigestSums { chunks });
        true
    }

    /// Whether workers can send what the sums of this attempt are made of, with the same bits. Workers without links cannot: the
    /// coordinator has sent them the sums, so that they have nothing to send for them.
    fn can_audit_sums(&self) -> bool {
        let Some(flight) = &self.flight else { return false };
        let tree = self.spec.tree;
        let is_kept = |leaf: u32| {
            let keeps = |node: &Node| node.covers(tree.leaf(leaf));
            tree.samples(leaf, flight.samples).is_empty()
                || self.members.0.iter().any(|(session, member)| {
                    flight.layout.is_linked(*session) && member.closed.iter().any(keeps)
                })
        };
        let all_kept = (0..tree.microbatches()).all(is_kept) || self.injects(FaultInjection::AuditLostSums);
        flight.may_audit_sums && flight.classes.len() == 1 && all_kept
    }

    /// The owner's digests are known: the coordinator adds up itself.
    fn take_audited_sums_back(&mut self, now: Duration) {
        let can = self.can_audit_sums();
        let nodes: usize = self.members.0.values().map(|member| member.closed.len()).sum();
        let chunks = self.sums_audit.as_ref().map_or(0, |audit| audit.theirs.len());
        // What is sent again, in gradients.
        let due = self.due_after(now, 1.0 + (chunks * nodes) as f64 / f64::from(self.spec.chunks));
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
        let (step, attempt) = (flight.step, flight.attempt);
        self.postpone(due);
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
            Some(_) if audit.disputed => drop(audit.star.insert(chunk, digest)),
            Some(_) => drop(audit.ours.insert(chunk, digest)),
        }
        let result = if audit.disputed {
            let Some(as_star) = equal(&audit.theirs, &audit.star) else { return };
            match !as_star && audit.ours == audit.star && audit.same_parts && flight.classes == audit.classes
            {
                true => AuditResult::Alone(audit.owner),
                false => AuditResult::Undecided,
            }
        } else {
            let Some(as_ours) = equal(&audit.theirs, &audit.ours) else { return };
            if !as_ours {
                audit.disputed = true;
                let step = audit.step;
                let reason =
                    format!("the sums of {} differ from those of the gradients that it was sent", audit.name);
                if !flight.layout.machines.is_empty() {
                    // Whoever does it again is known then.
                    self.stop_combining(step, "sums of machines that combine were wrong");
                }
                self.abort(&reason);
                return self.boundary(now);
            }
            AuditResult::Equal
        };
        let Some(SumsAudit { step, owner, name, .. }) = self.sums_audit.take() else { return };
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
            let fault =
                format!("its sums of step {step} differ from those of the gradients that it was sent");
            self.evict(now, owner, fault, false);
        }
        self.close_if_complete();
    }
}
