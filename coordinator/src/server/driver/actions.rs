//! The core's actions, performed in their order.

use super::*;

impl Driver {
    /// Performs an action of the core. `chunk` has come with the event that the action answers.
    pub(super) fn perform(&mut self, action: Action, chunk: &mut Option<Chunk>) -> anyhow::Result<()> {
        use coordinator_message::Body as Tell;
        match action {
            Action::SendState { session, during } => {
                self.send_state(session);
                self.catch_up(session, during);
            }
            Action::Keep { session, during } => {
                let (step, digest) = self.core.committed();
                if let Some(worker) = self.workers.get_mut(&session) {
                    worker.replica = true;
                }
                self.tell(session, step, 0, Tell::ResumeRetained(v1::ResumeRetained { digest: digest.0 }));
                self.catch_up(session, during);
            }
            Action::Upload { session, step } => {
                let state = State::zeros(&self.config.tensors, self.config.optimizer.moments().len());
                let lengths = state.vectors().map(<[f32]>::len).enumerate();
                let missing = lengths.flat_map(|(vector, length)| {
                    (0..tally_numerics::chunks(length) as u32).map(move |index| (vector as u32, index))
                });
                self.upload = Some(Upload { session, step, missing: missing.collect(), state });
                self.tell(session, step, 0, Tell::SendState(v1::SendState {}));
            }
            Action::Adopt { step } => {
                if let Some(upload) = self.upload.take() {
                    self.master = MasterState::new(&upload.state);
                }
                let tests = self.history.tests.range(..=step);
                self.last_test = tests.last().map(|(_, evaluation)| evaluation.clone());
            }
            Action::SendLeaf { session, step, leaf, ids } => {
                let microbatch = microbatch(&*self.train, &ids)?;
                self.tell(session, step, 0, Tell::Microbatch(microbatch.to_message(leaf, false)));
            }
            Action::SendTestLeaf { session, step, leaf } => {
                let first = leaf as usize * TEST_MICROBATCH;
                let last = (first + TEST_MICROBATCH).min(self.test.len());
                let ids: Vec<u32> = (first as u32..last as u32).collect();
                let microbatch = microbatch(&*self.test, &ids)?;
                self.tell(session, step, 0, Tell::Microbatch(microbatch.to_message(leaf, true)));
            }
            Action::Begin { step, attempt, learning_rate } => {
                self.has_begun.store(true, Ordering::Relaxed);
                self.buffers.reset(self.core.spec().chunks as usize);
                self.digested.clear();
                self.sums.begin();
                self.observe(RunEvent::AttemptBegun);
                let begin = gradient_down::Body::AttemptBegin(self.begin(step, learning_rate));
                self.broadcast(step, attempt, &begin);
            }
            Action::Dial { session, peer } => self.dial(session, peer),
            Action::TakeBack { step, attempt, chunks } => {
                chunks.iter().for_each(|chunk| self.buffers.forget(*chunk));
                let taken = v1::TakeBack { chunks };
                self.broadcast(step, attempt, &gradient_down::Body::TakeBack(taken));
            }
            Action::Resend { session, step, attempt, chunks } => {
                self.resend(session, step, attempt, &chunks);
            }
            Action::Plan { session, step, attempt, samples, nodes, takeover, to_owners } => {
                let digest = self.core.committed().1.0;
                let nodes = nodes.iter().map(|n| n.0).collect();
                self.tell(
                    session,
                    step,
                    attempt,
                    Tell::Plan(v1::Plan {
                        samples: samples as u32,
                        nodes,
                        digest,
                        audit: false,
                        takeover,
                        to_owners,
                    }),
                );
            }
            Action::Audit { session, step, attempt, samples, node } => {
                let (digest, nodes) = (self.core.committed().1.0, vec![node.0]);
                let samples = samples as u32;
                let plan = v1::Plan { samples, nodes, digest, audit: true, ..v1::Plan::default() };
                self.tell(session, step, attempt, Tell::Plan(plan));
            }
            Action::Take { node, index } => {
                if let Some(values) = chunk.take() {
                    let bytes = self.config.wire_dtype.bytes() * values.len();
                    self.observe(RunEvent::Received { bytes });
                    self.buffers.insert(node, index, values);
                }
            }
            Action::DigestSums { chunks } => {
                let sums: Vec<(u32, Shared)> =
                    self.buffers.emitted().filter(|(chunk, _)| chunks.contains(chunk)).collect();
                sums.iter().for_each(|(chunk, sum)| self.push(summed(*chunk, sum)));
                self.digested = chunks;
            }
            Action::Reduce(step) => {
                let whole = self.buffers.apply(step);
                if let Some((index, chunk)) =
                    whole.as_ref().filter(|(index, _)| self.digested.contains(index))
                {
                    self.push(summed(*index, chunk));
                }
                if let Some((index, chunk)) = whole
                    && let Some(flight) = self.core.flight()
                {
                    let (step, attempt) = (flight.step, flight.attempt);
                    self.broadcast_sum(step, attempt, index, &chunk);
                }
            }
            Action::Close { step, attempt, learning_rate } => {
                self.observe(RunEvent::Deadline(self.core.deadline()));
                self.close(step, attempt, learning_rate);
            }
            Action::Commit(committed) => self.commit(*committed)?,
            Action::Abort { step, attempt, reason } => {
                tracing::warn!(step, attempt, "an attempt at the step is void: {reason}");
                self.observe(RunEvent::AttemptVoid { step, attempt, reason: &reason });
                self.record(&Line::Abort { step, attempt, reason: reason.clone() })?;
                self.buffers.reset(0);
                self.tell_replicas(step, attempt, &Tell::Abort(v1::Abort { reason }));
            }
            Action::Evict { session, reason, drifted } => {
                self.observe(RunEvent::Evicted { drifted });
                self.send_evicted(session, &reason);
            }
            Action::Checkpoint { step } => self.checkpoint(step)?,
            Action::TestBegin { epoch, .. } => {
                self.evaluated.clear();
                self.test_started = self.started.elapsed();
                self.observe(RunEvent::TestBegun { epoch });
            }
            Action::TestDone { step, epoch } => self.tested(step, epoch)?,
            Action::Report(event) => self.report(event)?,
            Action::Finish(outcome) => self.outcome = Some(outcome),
        }
        Ok(())
    }

    /// The root is whole: the clip factor goes out, and the master copy is updated.
    fn close(&mut self, step: u64, attempt: u32, learning_rate: f32) {
        self.observe(RunEvent::SumWhole);
        let squared_norm = self.buffers.squared_norm();
        if !squared_norm.is_finite() {
            return self.push(Event::Diverged);
        }
        let means = self.core.flight().map(|flight| flight.loss()).unwrap_or_default();
        let weight = self.config.schema.mean_weight(&means);
        let (clip, norm) = norm::update_factor(squared_norm, self.config.optimizer.clip_norm, weight);
        if !(clip.is_finite() && norm.is_finite()) {
            return self.push(Event::Diverged);
        }
        self.gradient_norm = norm;
        let optimizer = &self.config.optimizer;
        let scale = optimizer.scale(clip);
        let update = optimizer.update(step, learning_rate, clip, self.config.tensors.segments());
        self.broadcast(step, attempt, &gradient_down::Body::AttemptClose(v1::AttemptClose { scale }));
        let started = Instant::now();
        let digest = self.master.apply(&update, self.buffers.root());
        let seconds = started.elapsed().as_secs_f64();
        // Owners may not have reached every replica yet. The coordinator's own messages do.
        let sharded = self.core.flight().is_some_and(|flight| flight.layout.is_sharded());
        self.last_sum = match sharded {
            true => LastSum { step, attempt, root: self.buffers.take_root() },
            false => LastSum::default(),
        };
        self.buffers.reset(0);
        self.observe(RunEvent::Updated { seconds });
        self.push(Event::Applied { digest });
    }

    /// A step counts: its line is written before any worker is told (**RESUME-1**).
    fn commit(&mut self, committed: Committed) -> anyhow::Result<()> {
        let step = committed.step;
        let line = self.step_line(&committed);
        let recorded = self.history.digests.get(&step);
        match recorded {
            // It was computed before, and lost after its checkpoint, so the result must be the same.
            Some(recorded) if *recorded != committed.digest => bail!(
                "step {step} was recomputed and has digest {} where the journal has {recorded}: these workers do \
                 not compute the bits that the run had; resume on workers of the same numerics class",
                committed.digest
            ),
            Some(_) => {}
            None => self.journal.append(&Line::Step(line.clone()))?,
        }
        let recomputed = recorded.is_some();
        let body = coordinator_message::Body::Commit(v1::Commit { digest: committed.digest.0 });
        self.tell_replicas(step, committed.attempt, &body);
        let smooth = if self.step_seconds == 0.0 { 1.0 } else { 0.1 };
        self.step_seconds += smooth * (committed.seconds - self.step_seconds);
        self.totals.trained_seconds += committed.seconds;
        self.totals.trained_samples += committed.samples as u64;
        self.times.step(&committed);
        self.observe(RunEvent::Committed { step: &committed, line: &line, recomputed });
        self.last_step = Some(committed);
        Ok(())
    }

    fn step_line(&self, c: &Committed) -> StepLine {
        StepLine {
            step: c.step,
            epoch: c.epoch,
            loss: self.config.schema.named_losses(&c.loss),
            samples: c.samples,
            workers: c.workers,
            seconds: c.seconds,
            compute_seconds: c.compute_seconds,
            transfer_seconds: c.transfer_seconds,
            waiting_seconds: c.waiting_seconds,
            attempt: c.attempt,
            owners: c.owners,
            learning_rate: c.learning_rate,
            gradient_norm: self.gradient_norm,
            digest: c.digest,
        }
    }

    /// Hands a snapshot to the thread that writes checkpoints (**CKPT-1**).
    pub(super) fn checkpoint(&mut self, step: u64) -> anyhow::Result<()> {
        // The journal is synced first, so that it never ends before its checkpoints.
        self.journal.sync()?;
        let snapshot = self.master.snapshot();
        let config = &self.config;
        let meta = Meta {
            version: tally_checkpoint::VERSION,
            run: config.run.clone(),
            program: config.program.clone(),
            step,
            epoch: self.core.spec().schedule.position(step.max(1)).0,
            digest: self.core.committed().1,
            // Computed by the thread that writes.
            parameters_sha256: String::new(),
            tensors: config.tensors.clone(),
            moments: config.optimizer.moments(),
            config: serde_json::to_value(config).context("cannot describe the run")?,
        };
        self.heartbeat.during_slow_work(|| self.checkpointer.write(meta, snapshot));
        self.observe(RunEvent::CheckpointBegun);
        Ok(())
    }

    /// Reports checkpoints that were written since; at the end, waits for the last.
    pub(super) fn after_checkpoints(&mut self, last: bool) {
        let done = if last { self.checkpointer.finish() } else { self.checkpointer.poll() };
        for done in done {
            let (step, from, to) = (done.step, done.from, done.to);
            let result = done.result.as_deref().map_err(String::as_str);
            self.observe(RunEvent::Checkpoint { step, from, to, result });
            match done.result {
                Ok(path) => {
                    let path = path.display().to_string();
                    tracing::info!(step, path, "checkpoint");
                    if let Err(error) = self.record(&Line::Checkpoint { step, path }) {
                        tracing::warn!("{error}");
                    }
                }
                // Training goes on: the older checkpoints are intact, and so is the run.
                Err(error) => {
                    self.observe(RunEvent::Warning(&format!("no checkpoint at step {step}: {error}")));
                    self.unsaved = Some((step, error));
                }
            }
        }
    }

    fn tested(&mut self, step: u64, epoch: u32) -> anyhow::Result<()> {
        let mut evaluated = std::mem::take(&mut self.evaluated);
        let microbatches = tally_core::test_pass::microbatches(self.test.len());
        let sums = (0..microbatches).map(|leaf| evaluated.remove(&leaf));
        let evaluation = self.config.schema.evaluation(self.test.len(), sums);
        let seconds = (self.started.elapsed() - self.test_started).as_secs_f64();
        self.observe(RunEvent::Tested { step, epoch, seconds, evaluation: &evaluation });
        for metric in &evaluation.undefined {
            tracing::warn!(
                "the metric {metric} has a denominator of 0 over the whole test set, and is shown as 0: the test set has nothing \
                 that it counts"
            );
        }
        let score = self.config.schema.score(&evaluation);
        if self.best.is_none_or(|(best, _)| score > best) {
            self.best = Some((score, step));
            self.heartbeat.during_slow_work(|| self.checkpointer.best(step));
        }
        if !self.history.tests.contains_key(&step) {
            self.record(&Line::Test { step, epoch, seconds, evaluation: evaluation.clone() })?;
        }
        self.last_test = Some(evaluation);
        Ok(())
    }

    /// The cluster has changed: a line for the journal, and an event for the observers.
    fn report(&mut self, event: ClusterEvent) -> anyhow::Result<()> {
        self.observe(RunEvent::Cluster(&event));
        let step = self.core.committed().0;
        match event {
            ClusterEvent::Ready { session } => {
                self.totals.joined += 1;
                if let Some(member) = self.core.members().0.get(&session) {
                    let worker = member.name.clone();
                    let DeviceInfo { name: device, numerics_class } = member.device.clone();
                    self.record(&Line::Join { step, session, worker, device, numerics_class })?;
                }
            }
            ClusterEvent::Lost { session, was_ready: false, name, reason, polite } => {
                self.forget(session);
                if !polite {
                    self.unproductive_session(&name, &reason);
                }
            }
            ClusterEvent::Lost { session, name, reason, polite, .. } => {
                self.forget(session);
                if reason == LAGS_BEHIND {
                    self.unproductive_session(&name, &reason);
                } else {
                    self.rejoins.productive(&name);
                }
                self.totals.lost += u64::from(!polite);
                self.record(&Line::Lost { step, session, worker: name, reason, polite })?;
            }
            ClusterEvent::Adopted { session, step } => {
                let worker = self.context().worker_name(session);
                self.record(&Line::Adopt { step, session, worker })?;
            }
            ClusterEvent::Late { session, step, leaves } => {
                let worker = self.context().worker_name(session);
                self.record(&Line::Straggler { step, session, worker, leaves })?;
            }
            ClusterEvent::Audited { step, node, owner, checker, alone, result } => {
                if result != AuditResult::Equal {
                    let node = node.map(|node| node.0);
                    self.record(&Line::Audit { step, node, owner, checker, alone })?;
                }
            }
            ClusterEvent::Reduction { step, owners, reason } => {
                self.record(&Line::Reduction { step, owners, reason })?;
            }
            ClusterEvent::TakenBack { step, chunks, reason } => {
                tracing::info!(step, chunks, "the coordinator adds up what workers had to add up: {reason}");
                self.record(&Line::TakenBack { step, chunks, reason })?;
            }
            ClusterEvent::TakenOver { step, leaves, by } => {
                let workers = by.len();
                tracing::info!(step, leaves, workers, "a worker's microbatches are computed by others");
                self.record(&Line::Takeover { step, leaves, workers })?;
            }
        }
        Ok(())
    }

    /// A worker was lost before it had done a step, or because its link is too slow.
    pub(super) fn unproductive_session(&mut self, name: &str, reason: &str) {
        self.observe(RunEvent::UnproductiveSession);
        if let Some(times) = self.rejoins.unproductive(name, Instant::now()) {
            let cause = slow_link::likely_cause(
                4 * (1 + self.config.optimizer.moments().len()) * self.config.tensors.len(),
            );
            self.observe(RunEvent::Warning(&format!(
                "worker {name} has joined and was lost {times} times before it had done a step: {reason}; {cause}"
            )));
        }
    }

    fn forget(&mut self, session: Session) {
        self.workers.remove(&session);
        self.sums.remove_reader(session);
    }
}

/// What an audit of sums is told of one.
fn summed(chunk: u32, Shared(sum): &Shared) -> Event {
    Event::Summed { chunk, digest: chunk_digest(chunk, sum) }
}
