//! The coordinator's server of the simulation: it performs the core's actions, and checks what they promise.

use super::*;

impl World {
    fn tell(&mut self, to: Session, message: Control) {
        if let Some(worker) = self.worker_of(to) {
            worker.control.push_back(message);
        }
    }

    fn tell_replicas(&mut self, message: &Control) {
        for worker in self.workers.iter_mut().filter(|w| w.session.is_some() && w.replica) {
            worker.control.push_back(message.clone());
        }
    }

    fn broadcast(&mut self, message: &Bulk) {
        for worker in self.workers.iter_mut().filter(|w| w.session.is_some() && w.replica) {
            worker.bulk.push_back(message.clone());
        }
    }

    /// Sends a whole chunk of the sum to every replica that does not get it from its owner.
    fn broadcast_sum(&mut self, index: u32, text: String) {
        let flight = self.core.flight().unwrap();
        let (step, attempt) = (flight.step, flight.attempt);
        let by_owner = flight.reached_by_owner(index);
        let is_mine =
            |worker: &&mut Worker| worker.replica && worker.session.is_some_and(|s| !by_owner.contains(&s));
        for worker in self.workers.iter_mut().filter(is_mine) {
            worker.bulk.push_back(Bulk::Reduced { step, attempt, index, text: text.clone() });
        }
        self.root.insert(index, text);
    }

    pub(super) fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::SendState { session, during } => {
                let (step, digest) = self.core.committed();
                if let Some(worker) = self.worker_of(session) {
                    worker.replica = true;
                    worker.bulk.push_back(Bulk::State { step, digest });
                }
                self.catch_up(session, during);
            }
            Action::Keep { session, during } => {
                let (step, digest) = self.core.committed();
                if let Some(worker) = self.worker_of(session) {
                    worker.replica = true;
                    worker.control.push_back(Control::Keep { step, digest });
                }
                self.catch_up(session, during);
            }
            Action::Upload { session, step } => self.tell(session, Control::Upload { step }),
            Action::Adopt { .. } => self.master = self.core.committed(),
            Action::Begin { step, attempt, .. } => {
                if let Some(best) = self.offered.values().max() {
                    assert!(
                        step > *best,
                        "RESUME-1: step {best} is held by a worker, yet {step} is computed again"
                    );
                }
                self.offered.clear();
                self.waiting.clear();
                self.root.clear();
                self.digested.clear();
                let flight = self.core.flight().unwrap();
                self.counts.sharded += u32::from(flight.layout.is_sharded());
                let (samples, layout, digest) =
                    (flight.samples, flight.layout.clone(), self.core.committed().1);
                self.broadcast(&Bulk::Begin { step, attempt, samples, layout, digest });
            }
            Action::Dial { session, peer } => self.tell(session, Control::Dial { peer }),
            Action::TakeBack { attempt, chunks, .. } => {
                self.counts.taken_back += 1;
                chunks.iter().for_each(|chunk| drop(self.root.remove(chunk)));
                self.broadcast(&Bulk::TakeBack { attempt, chunks });
            }
            Action::Resend { session, step, attempt, chunks } => {
                self.counts.resent += 1;
                let flight = self.core.flight().map(|f| (f.step, f.attempt));
                let (of, root) = match flight == Some((step, attempt)) {
                    true => ((step, attempt), &self.root),
                    false => (self.last_root.0, &self.last_root.1),
                };
                let sums = chunks.iter().filter_map(|index| Some((*index, root.get(index)?.clone())));
                let sums: Vec<(u32, String)> = sums.filter(|_| of == (step, attempt)).collect();
                if let Some(worker) = self.worker_of(session) {
                    let sums = sums.into_iter();
                    worker.bulk.extend(sums.map(|(index, text)| Bulk::Reduced {
                        step,
                        attempt,
                        index,
                        text,
                    }));
                }
            }
            Action::Plan { session, step, attempt, samples, nodes, .. } => {
                self.tell(session, Control::Plan { step, attempt, samples, nodes, audit: false });
            }
            Action::Audit { session, step, attempt, samples, node } => {
                self.tell(session, Control::Plan { step, attempt, samples, nodes: vec![node], audit: true });
            }
            Action::Take { node, index } => {
                let text = self.held.take().expect("a chunk is taken once");
                self.waiting.insert(node, index, text);
            }
            Action::DigestSums { chunks } => {
                for &chunk in &chunks {
                    if let Some(sum) = self.root.get(&chunk) {
                        events.push_back(Event::Summed { chunk, digest: digest_of(chunk, sum) });
                    }
                }
                self.digested = chunks;
            }
            Action::Reduce(due) => {
                if let Some((_, index, text)) = self.waiting.apply(due) {
                    if self.digested.contains(&index) {
                        events.push_back(Event::Summed { chunk: index, digest: digest_of(index, &text) });
                    }
                    self.broadcast_sum(index, text);
                }
            }
            Action::Close { step, attempt, .. } => {
                // Whatever happened before, this is the tree's sum.
                let samples = self.sampler.batch_len(step);
                for chunk in 0..self.shape().chunks {
                    let expect = sum_of(self.shape().tree, step, samples, Node::ROOT, chunk);
                    let sum = self.root.get(&chunk).map(|text| text.replace('%', ":"));
                    assert_eq!(sum, expect, "SUM-1 at step {step}");
                }
                self.last_root = ((step, attempt), self.root.clone());
                self.master = (step, next_digest(self.master.1, &self.root));
                events.push_back(Event::Applied { digest: self.master.1 });
            }
            Action::Commit(c) => {
                assert_eq!((c.step, c.digest), self.master, "REP-1: the commit is the master state");
                assert_eq!(c.samples, self.sampler.batch_len(c.step), "LIVE-1: no batch shrinks");
                match self.disk.journal.get(&c.step) {
                    Some(recorded) => {
                        self.counts.recomputed += 1;
                        assert_eq!(*recorded, c.digest, "RESUME-1: a step computed again has its bits");
                    }
                    None => {
                        let last = self.disk.journal.last_key_value().map_or(0, |(step, _)| *step);
                        assert_eq!(c.step, last + 1, "LIVE-1: no step is skipped or repeated");
                        self.disk.journal.insert(c.step, c.digest);
                    }
                }
                if self.crash_in_commit {
                    self.crashed = true;
                    return;
                }
                self.tell_replicas(&Control::Commit { step: c.step, digest: c.digest });
            }
            Action::Abort { step, attempt, ref reason } if reason.contains("different bits") => {
                self.counts.void += 1;
                self.tell_replicas(&Control::Abort { step, attempt });
            }
            Action::Abort { step, attempt, .. } => self.tell_replicas(&Control::Abort { step, attempt }),
            Action::Evict { session, drifted, reason } => {
                self.counts.drifted += u32::from(drifted);
                self.offered.remove(&session);
                if let Some(worker) = self.worker_of(session) {
                    assert!(
                        worker.faulty,
                        "LIVE-1: a worker that did what it was told is sent away: {reason}"
                    );
                    worker.disconnect();
                }
                self.cut_links(session, None);
            }
            Action::SendTestLeaf { session, step, leaf } => {
                self.tell(session, Control::TestLeaf { step, leaf });
            }
            Action::TestDone { step, .. } => {
                self.disk.tests.insert(step);
            }
            Action::Checkpoint { step } => {
                assert_eq!(step, self.master.0, "CKPT-1: a checkpoint is of a committed step");
                self.disk.checkpoints.insert(step, self.master.1);
            }
            Action::Report(ClusterEvent::Adopted { .. }) => self.counts.adopted += 1,
            Action::Report(ClusterEvent::Late { .. }) => self.counts.late += 1,
            Action::Report(ClusterEvent::Audited { result, node, .. }) => {
                self.counts.audits.push(result);
                self.counts.sums_audited += u32::from(node.is_none());
            }
            Action::Finish(outcome) => self.outcome = Some(outcome),
            Action::SendLeaf { .. } | Action::TestBegin { .. } | Action::Report(_) => {}
        }
    }

    /// Sends a newcomer what was broadcast of the step in flight.
    fn catch_up(&mut self, session: Session, during: Option<(u64, u32)>) {
        let Some((step, attempt)) = during else { return };
        let reduced: Vec<(u32, String)> =
            self.root.iter().map(|(index, text)| (*index, text.clone())).collect();
        let flight = self.core.flight().unwrap();
        let (samples, layout) = (flight.samples, flight.layout.clone());
        let own = if layout.is_sharded() { flight.own.order().to_vec() } else { Vec::new() };
        let digest = self.core.committed().1;
        let Some(worker) = self.worker_of(session) else { return };
        worker.bulk.push_back(Bulk::Begin { step, attempt, samples, layout, digest });
        worker.bulk.push_back(Bulk::TakeBack { attempt, chunks: own });
        for (index, text) in reduced {
            worker.bulk.push_back(Bulk::Reduced { step, attempt, index, text });
        }
    }
}
