//! Workers that join and leave, and the state of their replicas: whether they have the right sums, and all of them
//! (**REP-1**).

use std::collections::BTreeSet;
use std::time::Duration;

use tally_numerics::digest::Digest;
use tally_numerics::tree::Node;

use super::Core;
use super::cluster::{Member, Session, State};
use super::events::{Action, AttemptId, ClusterEvent};
use super::fault_injection::FaultInjection;

impl Core {
    pub(super) fn joined(&mut self, now: Duration, session: Session, member: Member) {
        self.members.0.insert(session, member);
        if self.recovery.is_some() {
            self.offered(session);
            self.boundary(now);
        } else {
            self.send_states();
        }
    }

    /// Sends the committed state to every worker that waits for one and does not hold it, with the sums of the step
    /// in flight so far. If all workers that compute the step fall silent, a newcomer can finish it (**LIVE-1**).
    pub(super) fn send_states(&mut self) {
        let during = match &self.flight {
            // Its state is about to change.
            Some(flight) if flight.closing => return,
            flight => flight.as_ref().map(|f| (f.step, f.attempt)),
        };
        let (step, digest) = (self.committed, self.digest);
        let any = self.injects(FaultInjection::KeepAnyRetainedState);
        for (&session, member) in &mut self.members.0 {
            if member.state == State::Joining {
                member.state = State::Loading;
                self.actions.push(
                    if member.held.first() == Some(&(step, digest))
                        || (any && member.held.contains(&(step, digest)))
                    {
                        Action::Keep { session, during }
                    } else {
                        Action::SendState { session, during }
                    },
                );
                member.held.clear();
                self.flight.iter_mut().for_each(|flight| flight.may_audit_sums = false);
            }
        }
    }

    /// A replica reports that it is at `step` with `digest`.
    ///
    /// `differing` are the chunks of that step whose sums were others than the coordinator's, if that is known.
    pub(super) fn confirmed(
        &mut self,
        now: Duration,
        session: Session,
        step: u64,
        digest: Digest,
        differing: Option<&[u32]>,
    ) {
        let Some(member) = self.members.0.get_mut(&session) else { return };
        // A replica that is to be sent a state again may go on by itself meanwhile.
        if (member.state == State::Joining && member.confirmed.is_none())
            || step > self.committed
            || member.confirmed.is_some_and(|c| step <= c)
        {
            return self.evict(now, session, format!("it confirmed step {step} out of turn"), false);
        }
        let recent = self.recent.iter().find(|(of, _)| *of == step).map(|(_, digest)| *digest);
        match recent {
            Some(wanted) if wanted == digest || self.injects(FaultInjection::IgnoreDrift) => {}
            Some(_) if self.was_sent_other_sums(now, session, step, differing) => return,
            Some(wanted) => {
                let reason = format!("its replica drifted: digest {digest} at step {step}, not {wanted}");
                return self.evict(now, session, reason, true);
            }
            None => return self.evict(now, session, format!("it lags at step {step}"), false),
        }
        let Some(member) = self.members.0.get_mut(&session) else { return };
        member.confirmed = Some(step);
        if member.state == State::Loading && step + 1 >= self.committed {
            member.state = State::Ready;
            if !std::mem::replace(&mut member.was_ready, true) {
                self.links.worker_came();
                self.actions.push(Action::Report(ClusterEvent::Ready { session }));
            }
            if self.flight.is_none() {
                self.boundary(now);
            } else {
                self.deal_test_leaves(now);
            }
        }
    }

    pub(super) fn evict(&mut self, now: Duration, session: Session, reason: String, drifted: bool) {
        if self.members.0.contains_key(&session) {
            self.actions.push(Action::Evict { session, reason: reason.clone(), drifted });
            self.lost(now, session, reason, false);
        }
    }

    pub(super) fn lost(&mut self, now: Duration, session: Session, reason: String, polite: bool) {
        let Some(member) = self.members.0.remove(&session) else { return };
        let (name, was_ready) = (member.name.clone(), member.was_ready);
        let trust = self.injects(FaultInjection::TrustTrailers);
        self.actions.push(Action::Report(ClusterEvent::Lost { session, name, reason, polite, was_ready }));
        if self.recovery.is_some() {
            self.offer_gone(session);
            return self.boundary(now);
        }
        if !self.injects(FaultInjection::ForgetTestMicrobatch)
            && let Some(test) = &mut self.test
        {
            test.give_back(member.testing);
            self.deal_test_leaves(now);
        }
        self.links.remove(session);
        self.audit_lost(session);
        let Some(flight) = &mut self.flight else { return };
        if flight.closing {
            return;
        }
        if self.members.ready().is_empty() {
            // No worker is left to finish the step. The next worker gets the committed state, so the attempt has to
            // start again.
            self.abort("no worker is left");
            return self.boundary(now);
        }
        // In a sharded attempt what it had sent may not have arrived, and what it kept is gone.
        let sent = flight.layout.is_sharded() && !trust;
        let closed = member.closed.into_iter().filter(|_| sent);
        let nodes: Vec<Node> = member.open.into_iter().chain(closed).collect();
        // A worker that was late before may be given a new deadline after it gets more work.
        flight.speculative.retain(|(_, late)| !nodes.iter().any(|node| late.covers(*node)));
        let owned = flight.missing_of(session);
        if self.take_back(now, owned, &format!("{} is lost", member.name)) {
            self.take_over(now, &nodes);
            self.close_if_complete();
        }
    }

    /// A replica's digest is wrong. If owners sent it other sums than they sent the coordinator, they have to go, and the
    /// replica is sent the state. If nobody can tell any more, it is sent the state as well. Returns whether that is so.
    pub(super) fn was_sent_other_sums(
        &mut self,
        now: Duration,
        session: Session,
        step: u64,
        differing: Option<&[u32]>,
    ) -> bool {
        let Some((_, layout)) = self.layouts.iter().find(|(of, _)| *of == step) else { return false };
        if self.injects(FaultInjection::BlameReceiver) || !layout.is_linked(session) {
            return false;
        }
        let passed_on = |chunk: &u32| layout.source(session, *chunk) != layout.owner(*chunk);
        let unclear = differing.is_some_and(|chunks| chunks.iter().any(passed_on));
        // A sum that has come through a combiner may have been changed by it or by its owner.
        let differing = differing.filter(|_| !unclear);
        let owners: Option<BTreeSet<Session>> =
            differing.map(|chunks| chunks.iter().filter_map(|&chunk| layout.owner(chunk)).collect());
        if owners.as_ref().is_some_and(|owners| owners.is_empty() || owners.contains(&session)) {
            return false;
        }
        if unclear {
            // Whoever does it again is known then.
            self.stop_combining(
                self.committed,
                "a machine that combines passed on other sums than the coordinator has",
            );
        }
        if let Some(member) = self.members.0.get_mut(&session) {
            member.state = State::Joining;
        }
        for owner in owners.unwrap_or_default() {
            let reason = format!("it sent workers different sums of step {step}");
            self.evict(now, owner, reason, true);
        }
        self.send_states();
        true
    }

    /// A replica lacks sums of a step that is closed: its owner, or the link to it, was lost in between.
    pub(super) fn need(&mut self, from: AttemptId, chunks: Vec<u32>) {
        let AttemptId { session, step, attempt } = from;
        let known = step == self.committed || self.flight.as_ref().is_some_and(|f| f.step == step);
        if self.injects(FaultInjection::IgnoreNeed) {
            return;
        }
        let Some(member) = self.members.0.get_mut(&session) else { return };
        if known {
            self.actions.push(Action::Resend { session, step, attempt, chunks });
        } else if step < self.committed {
            // Those sums are gone; the state they led to is not.
            member.state = State::Joining;
            self.send_states();
        }
    }
}
