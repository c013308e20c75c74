//! One step, from its plans to its commit (**SUM-1**, **LIVE-1**).

use std::time::Duration;

use tally_numerics::digest::Digest;
use tally_numerics::tree::Node;

use super::Core;
use super::assign::{self, Load};
use super::cluster::{LinkAbility, Member, Session};
use super::events::{Action, AttemptId, Committed, Receipt, RunOutcome};
use super::fault_injection::FaultInjection;
use super::reduce_mode;
use super::step::StepInFlight;
use super::{LAYOUTS, RECENT};
use tally_numerics::layout::Machine;
use tally_numerics::reduction::Contribution;

impl Core {
    /// Gives a worker nodes, and before them the samples it has not got yet.
    pub(super) fn plan(
        &mut self,
        now: Duration,
        session: Session,
        step: u64,
        attempt: u32,
        nodes: Vec<Node>,
        takeover: bool,
    ) {
        let Some(flight) = &self.flight else { return };
        let samples = flight.samples;
        if nodes.is_empty() {
            return;
        }
        for &node in &nodes {
            self.deal(session, step, node);
        }
        if let (Some(member), Some(flight)) = (self.members.0.get_mut(&session), &mut self.flight) {
            member.open.extend(nodes.iter().copied());
            flight.classes.insert(member.device.numerics_class.clone());
        }
        let leaves = nodes.iter().map(|n| self.spec.tree.leaves(*n).len() as u32).sum::<u32>();
        self.extend_deadline(now, session, leaves, samples);
        if let Some(member) = self.members.0.get_mut(&session) {
            member.leaves += leaves;
        }
        let to_owners = self.flight.as_ref().is_some_and(|flight| flight.layout.is_sharded());
        self.actions.push(Action::Plan { session, step, attempt, samples, nodes, takeover, to_owners });
    }

    /// Sends the samples of a node's leaves that the worker has not been sent.
    pub(super) fn deal(&mut self, session: Session, step: u64, node: Node) {
        let Some(member) = self.members.0.get_mut(&session) else { return };
        for leaf in self.spec.tree.leaves(node) {
            let ids = self.sampler.leaf_ids(self.spec.tree, step, leaf);
            if !ids.is_empty() && member.dealt.insert((step, leaf)) {
                self.actions.push(Action::SendLeaf { session, step, leaf, ids });
            }
        }
    }

    /// The quotas of the next step: the last ones, as long as they are within a tenth of the best, so that noise in
    /// the measurements changes nothing.
    fn quotas(&mut self, ready: &[Session], loads: &[Load]) -> Vec<u32> {
        let tree = self.spec.tree;
        // What nodes take to come was measured with as many as the last step had. The sum's way
        // down is in it, so it is rather too much.
        let nodes = self.last_quotas.as_ref().map_or(0, |(_, quotas)| {
            assign::runs(tree, 0..tree.microbatches(), quotas).iter().map(Vec::len).sum()
        });
        let per_node = self.transfer / nodes.max(1) as f64;
        let best = assign::shares(tree, loads, per_node);
        let seconds = |quotas: &[u32]| assign::seconds(tree, quotas, loads, per_node);
        if let Some((who, quotas)) = &self.last_quotas
            && who == ready
            && seconds(quotas) <= 1.1 * seconds(&best)
            && assign::makespan(quotas, loads) <= 1.1 * assign::makespan(&best, loads)
        {
            return quotas.clone();
        }
        self.last_quotas = Some((ready.to_vec(), best.clone()));
        best
    }

    pub(super) fn start_step(&mut self, now: Duration) {
        self.members.demote_lagging(self.committed);
        let mut ready = self.members.ready();
        let wanted = if self.started { 1 } else { self.spec.workers };
        if ready.len() < wanted.max(1) {
            return;
        }
        if ready.len() > 1 {
            // Others compute what was NaN, to tell a broken worker from a broken model.
            ready.retain(|session| Some(*session) != self.non_finite);
        }
        self.started = true;
        let step = self.committed + 1;
        self.attempt += 1;
        let attempt = self.attempt;
        let mut layout = self.choose_layout(step, &ready);
        self.report_layout(step, &layout, ready.len());
        if layout.is_sharded() {
            // Others could not send what they compute to the owners.
            ready.retain(|session| layout.is_linked(*session));
        }
        let samples = self.sampler.batch_len(step);
        let tree = self.spec.tree;
        let mean_leaf = samples as f64 / f64::from(tree.microbatches());
        let load =
            |session: &Session| Load { busy: 0.0, per_leaf: self.members.per_sample(*session) * mean_leaf };
        let loads: Vec<Load> = ready.iter().map(load).collect();
        let quotas = self.quotas(&ready, &loads);
        let group = |i: usize| {
            let mates = layout.machine_of(ready[i]).map_or(&[][..], |machine| &machine.workers);
            ready.iter().position(|session| mates.contains(session)).unwrap_or(i)
        };
        let nodes = assign::runs_in_groups(tree, 0..tree.microbatches(), &quotas, group);
        for machine in &mut layout.machines {
            let is_mate = |(session, _): &(&Session, &Vec<Node>)| machine.workers.contains(session);
            let given = ready.iter().zip(&nodes).filter(is_mate).flat_map(|(_, nodes)| nodes);
            let full = given.copied().filter(|node| !tree.is_empty(*node, samples));
            machine.nodes = Machine::combined(tree, full);
        }
        let flight = StepInFlight::new(tree, self.spec.chunks, (step, attempt), samples, now, layout);
        self.flight = Some(flight);
        let learning_rate = self.spec.optimizer.rate(step, self.spec.steps());
        self.actions.push(Action::Begin { step, attempt, learning_rate });
        self.restart_sums_audit();
        for member in self.members.0.values_mut() {
            member.open.clear();
            member.closed.clear();
            member.leaves = 0;
            member.computed = 0.0;
            member.due = now;
            member.dealt.retain(|&(dealt, _)| dealt >= step);
        }
        let full = |n: &Vec<Node>| n.iter().copied().filter(|n| !tree.is_empty(*n, samples)).collect();
        let plans: Vec<(Session, Vec<Node>)> = ready.iter().copied().zip(nodes.iter().map(full)).collect();
        for (session, nodes) in &plans {
            self.plan(now, *session, step, attempt, nodes.clone(), false);
        }
        self.begin_audit(now, &plans);
        // The next step's samples travel while this one is computed.
        if step < self.spec.steps() {
            for (session, nodes) in ready.drain(..).zip(nodes) {
                for node in nodes {
                    self.deal(session, step + 1, node);
                }
            }
        }
    }

    /// The member and the flight, if the message belongs to the attempt in flight. One
    /// that belongs to an earlier attempt is late, and no fault.
    pub(super) fn current(&mut self, from: AttemptId) -> Option<(&mut Member, &mut StepInFlight)> {
        let any = self.injects(FaultInjection::AcceptOldAttempts);
        let flight = self.flight.as_mut()?;
        let member = self.members.0.get_mut(&from.session)?;
        let current = (from.step, from.attempt) == (flight.step, flight.attempt) || any;
        (current && !flight.closing).then_some((member, flight))
    }

    pub(super) fn header(
        &mut self,
        now: Duration,
        from: AttemptId,
        node: Node,
        digest: Digest,
        samples: u64,
    ) {
        let (tree, wanted) = (self.spec.tree, self.digest);
        let Some((member, flight)) = self.current(from) else { return };
        let (step, session) = (flight.step, from.session);
        if !tree.contains(node) || !member.open.contains(&node) || !flight.opened.insert((session, node)) {
            return self.bad_header(now, session, format!("it opened {node}, which it was not given"));
        }
        // Owners compare the digest themselves.
        if digest != wanted && !self.injects(FaultInjection::AcceptAnyReplica) {
            let reason = format!("it computed with digest {digest}, not {wanted}");
            return self.evict(now, session, reason, true);
        }
        if samples != self.sampler.node_digest(tree, step, node) {
            let fault = format!("it computed {node} on other samples than it was given");
            self.bad_header(now, session, fault);
        }
    }

    /// Nothing of the node has come, except in a sharded attempt, where its chunks may be in owners' sums.
    fn bad_header(&mut self, now: Duration, session: Session, fault: String) {
        let sharded = self.flight.as_ref().is_some_and(|flight| flight.layout.is_sharded());
        if sharded && !self.injects(FaultInjection::ForgiveHeader) {
            self.violated(now, session, fault);
        } else {
            self.evict(now, session, fault, false);
        }
    }

    pub(super) fn chunk(
        &mut self,
        now: Duration,
        from: AttemptId,
        node: Node,
        index: u32,
        digest: Option<Digest>,
        fault: Option<String>,
    ) {
        let (chunks, window) = (self.spec.chunks, self.spec.credit_window);
        let by_index = self.injects(FaultInjection::CreditByIndex);
        let is_audited = self.is_audited_sum(index);
        let Some((member, flight)) = self.current(from) else { return };
        let is_owners = index < chunks && flight.layout.owner(index) == Some(from.session);
        if is_owners && node == Node::ROOT && !is_audited {
            return self.owners_sum(now, from, index, fault);
        }
        // What is taken back may come after the trailer.
        let open = flight.opened.contains(&(from.session, node))
            && (flight.layout.is_sharded() || !member.closed.contains(&node));
        let has_credit = |index| match by_index {
            true => (index as usize) < flight.reduction.emitted() as usize + window,
            false => flight.own.has_credit(index, window),
        };
        let fault = if !open {
            Some(format!("it sent a chunk of {node}, which is not open"))
        } else if index >= chunks {
            Some(format!("it sent chunk {index} of {chunks}"))
        } else if !has_credit(index) {
            Some(format!("it sent chunk {index} of {node} without credit for it"))
        } else {
            fault
        };
        if let Some(fault) = fault {
            return self.violated(now, from.session, fault);
        }
        let verdict = flight.contribute(now, node, index);
        self.audit_chunk(from, node, digest);
        let Contribution::Take(due) = verdict else { return };
        self.actions.push(Action::Take { node, index });
        self.actions.extend(due.into_iter().map(Action::Reduce));
        self.close_if_complete();
    }

    /// An owner's sum has come: the chunk is whole, unless the coordinator was faster.
    fn owners_sum(&mut self, now: Duration, from: AttemptId, index: u32, fault: Option<String>) {
        let Some((member, flight)) = self.current(from) else { return };
        if let Some(fault) = fault {
            // The sum may be too large for a float, or the owner may be broken. The coordinator adds up itself to see.
            let reason = format!("{} sent a sum that is not sound: {fault}", member.name);
            let missing = flight.missing_of(from.session);
            flight.unsound.insert(from.session);
            self.take_back(now, missing, &reason);
            return;
        }
        let Contribution::Take(due) = flight.contribute(now, Node::ROOT, index) else { return };
        self.actions.push(Action::Take { node: Node::ROOT, index });
        self.actions.extend(due.into_iter().map(Action::Reduce));
        self.close_if_complete();
    }

    pub(super) fn trailer(
        &mut self,
        now: Duration,
        from: AttemptId,
        node: Node,
        receipts: Vec<Receipt>,
        computed: f64,
    ) {
        let half = self.injects(FaultInjection::CloseHalfContribution);
        let Some((member, flight)) = self.current(from) else { return };
        let fault = if !flight.opened.contains(&(from.session, node)) || !member.closed.insert(node) {
            Some(format!("it closed {node}, which is not open"))
        } else if !half
            && !flight.layout.is_sharded()
            && !(0..flight.reduction.chunks()).all(|chunk| flight.reduction.is_covered(node, chunk))
        {
            Some(format!("it closed {node} before all of its chunks had come"))
        } else {
            flight.check(node, &receipts).err()
        };
        if let Some(fault) = fault {
            return self.violated(now, from.session, fault);
        }
        let samples: u32 = receipts.iter().map(|r| r.samples).sum();
        member.open.remove(&node);
        member.computed += computed.max(0.0);
        member.measure(computed, samples as usize);
        for receipt in receipts {
            flight.receipts.entry(receipt.leaf).or_insert(receipt);
        }
        self.audit_closed(now, from, node);
        self.await_sums(now);
        self.close_if_complete();
    }

    pub(super) fn close_if_complete(&mut self) {
        let Some(flight) = &self.flight else { return };
        if flight.closing || !flight.is_complete() || flight.audit.is_some() || self.audit_sums() {
            return;
        }
        let Some(flight) = &mut self.flight else { return };
        flight.closing = true;
        let (step, attempt) = (flight.step, flight.attempt);
        let learning_rate = self.spec.optimizer.rate(step, self.spec.steps());
        self.actions.push(Action::Close { step, attempt, learning_rate });
    }

    pub(super) fn applied(&mut self, now: Duration, digest: Digest) {
        let Some(flight) = self.flight.take() else { return };
        let step = flight.step;
        let loss = flight.loss();
        let seconds = now.saturating_sub(flight.started).as_secs_f64();
        let workers: Vec<(Session, &Member)> =
            self.members.0.iter().filter(|(_, m)| m.leaves > 0).map(|(&session, m)| (session, m)).collect();
        let last = workers.iter().max_by(|(_, a), (_, b)| a.computed.total_cmp(&b.computed));
        let slowest = last.map_or(0.0, |(_, m)| m.computed);
        let waiting =
            workers.iter().map(|(_, m)| slowest - m.computed).sum::<f64>() / workers.len().max(1) as f64;
        let reduced = flight.reduced.unwrap_or(now).saturating_sub(flight.started).as_secs_f64();
        let transfer = (reduced - slowest).max(0.0);
        self.transfer += 0.25 * (transfer - self.transfer);
        let epoch = self.spec.schedule.position(step).0;
        self.actions.push(Action::Commit(Box::new(Committed {
            step,
            epoch,
            attempt: flight.attempt,
            loss,
            samples: flight.samples,
            workers: workers.len(),
            seconds,
            compute_seconds: slowest,
            transfer_seconds: transfer,
            waiting_seconds: waiting,
            slowest: last.map(|(session, _)| *session),
            learning_rate: self.spec.optimizer.rate(step, self.spec.steps()),
            owners: flight.layout.owners.len(),
            digest,
        })));
        self.auto.committed(&reduce_mode::Step {
            sharded: flight.layout.is_sharded(),
            workers: workers.len(),
            able: self.members.0.values().filter(|member| member.links != LinkAbility::None).count(),
            seconds,
            transfer,
        });
        // What the receipts say was used, leaf by leaf.
        for &leaf in flight.receipts.keys() {
            let ids = self.sampler.leaf_ids(self.spec.tree, step, leaf);
            self.ledger.commit(&ids);
        }
        let tree = self.spec.tree;
        let samples_of =
            |node: &Node| tree.leaves(*node).map(|l| tree.samples(l, flight.samples).len() as u64);
        for member in self.members.0.values_mut() {
            member.samples += member.closed.iter().flat_map(samples_of).sum::<u64>();
        }
        self.measure_the_late(now, flight.started, flight.samples);
        // The step is sound, so a sum that was not was its owner's doing.
        let unsound = flight.unsound;
        if flight.layout.is_sharded() {
            self.layouts.truncate(LAYOUTS - 1);
            self.layouts.push_front((step, flight.layout));
        }
        self.committed = step;
        self.digest = digest;
        self.sums_audit = None;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((step, digest));
        if let Some(session) = self.non_finite.take()
            && self.members.0.get(&session).is_some_and(|member| member.leaves == 0)
        {
            self.evict(now, session, "it found NaN in a gradient where others found none".into(), false);
        }
        for session in unsound {
            self.evict(now, session, "its sums of sound gradients were not sound".into(), false);
        }
        if step.is_multiple_of(self.spec.schedule.steps_per_epoch() as u64) {
            self.ledger.end_epoch();
        }
        self.boundary(now);
    }

    /// A worker broke a rule after a valid header. The sums may contain its chunks, so the attempt is void.
    pub(super) fn violated(&mut self, now: Duration, session: Session, fault: String) {
        if self.injects(FaultInjection::ForgiveViolation) {
            return self.evict(now, session, fault, false);
        }
        self.abort(&fault);
        self.evict(now, session, fault, false);
        self.boundary(now);
    }

    pub(super) fn abort(&mut self, reason: &str) {
        if let Some(flight) = self.flight.take() {
            let (step, attempt) = (flight.step, flight.attempt);
            self.actions.push(Action::Abort { step, attempt, reason: reason.into() });
        }
    }

    pub(super) fn non_finite(&mut self, now: Duration, from: AttemptId, node: Node, tensor: String) {
        let Some((member, _)) = self.current(from) else { return };
        if !member.open.contains(&node) {
            return self.evict(
                now,
                from.session,
                format!("it reported on {node}, which it was not given"),
                false,
            );
        }
        let (session, reason) = (from.session, format!("the gradient of {tensor} is not finite"));
        let alone = self.members.ready().iter().all(|&ready| ready == session);
        if self.non_finite.is_some_and(|before| before != session || alone) {
            // Two workers have found it, or a single worker has found it twice and no other can check.
            return self.diverged(from.step, tensor);
        }
        self.non_finite = Some(session);
        self.abort(&reason);
        self.boundary(now);
    }

    pub(super) fn diverged(&mut self, step: u64, tensor: String) {
        self.abort("the run has diverged");
        if self.committed > 0 {
            self.checkpoint();
        }
        self.finish(RunOutcome::Diverged { step, tensor });
    }
}
