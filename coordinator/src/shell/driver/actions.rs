//! The core's actions, performed in their order.

use super::*;

impl Driver {
    pub(super) fn perform(&mut self, action: Action) -> anyhow::Result<()> {
        use coordinator_message::Body as Tell;
        match action {
            Action::SendState { session, during } => {
                self.send_state(session);
                self.catch_up(session, during);
            }
            Action::Keep { session, during } => {
                let (step, digest) = self.parts.core.committed();
                if let Some(peer) = self.peers.get_mut(&session) {
                    peer.replica = true;
                }
                self.tell(session, step, 0, Tell::Keep(v1::Keep { digest: digest.0 }));
                self.catch_up(session, during);
            }
            Action::Upload { session, step } => {
                let elements = self.parts.config.tensors.len();
                let chunks = self.parts.core.shape().chunks;
                self.upload = Some(Upload {
                    session,
                    step,
                    parameters: vec![0.0; elements],
                    momentum: vec![0.0; elements],
                    missing: [false, true]
                        .into_iter()
                        .flat_map(|m| (0..chunks).map(move |i| (m, i)))
                        .collect(),
                });
                self.tell(session, step, 0, Tell::Upload(v1::Upload {}));
            }
            Action::Adopt { step } => {
                if let Some(upload) = self.upload.take() {
                    self.parts.referee = Referee::new(&upload.parameters, &upload.momentum);
                }
                let tests = self.parts.history.tests.range(..=step);
                self.last_test = tests.last().map(|(_, scores)| scores.clone());
            }
            Action::SendLeaf { session, step, leaf, ids } => {
                let samples = self.parts.train.samples(&ids)?;
                self.tell(session, step, 0, Tell::Leaf(convert::leaf(leaf, false, &samples)));
            }
            Action::SendTestLeaf { session, step, leaf } => {
                let first = leaf as usize * TEST_LEAF;
                let last = (first + TEST_LEAF).min(self.parts.test.len());
                let ids: Vec<u32> = (first as u32..last as u32).collect();
                let samples = self.parts.test.samples(&ids)?;
                self.tell(session, step, 0, Tell::Leaf(convert::leaf(leaf, true, &samples)));
            }
            Action::Begin { step, attempt, learning_rate } => {
                self.parts.started.store(true, Ordering::Relaxed);
                self.arena.reset(self.parts.core.shape().chunks as usize);
                self.board.begin();
                self.time_begin();
                self.show_begin();
                let begin = gradient_down::Body::Begin(self.begin(learning_rate));
                self.broadcast(step, attempt, &begin);
            }
            Action::Plan { session, step, attempt, samples, nodes, takeover } => {
                let digest = self.parts.core.committed().1.0;
                let nodes = nodes.iter().map(|n| n.0).collect();
                self.tell(
                    session,
                    step,
                    attempt,
                    Tell::Plan(v1::Plan { samples: samples as u32, nodes, digest, audit: false, takeover }),
                );
            }
            Action::Audit { session, step, attempt, samples, node } => {
                let (digest, nodes) = (self.parts.core.committed().1.0, vec![node.0]);
                let plan = v1::Plan { samples: samples as u32, nodes, digest, audit: true, takeover: false };
                self.tell(session, step, attempt, Tell::Plan(plan));
            }
            Action::Take { node, index } => {
                if let Some(values) = self.held.take() {
                    metrics::received(self.parts.config.wire_dtype.bytes() * values.len());
                    self.arena.put(node, index, values);
                }
            }
            Action::Reduce(due) => {
                if let Some((index, chunk)) = self.arena.perform(due)
                    && let Some(flight) = self.parts.core.flight()
                {
                    let (step, attempt) = (flight.step, flight.attempt);
                    self.broadcast_sum(step, attempt, index, &chunk);
                }
            }
            Action::Close { step, attempt, learning_rate } => {
                metrics::deadline(self.parts.core.deadline());
                self.close(step, attempt, learning_rate);
            }
            Action::Commit(committed) => self.commit(*committed)?,
            Action::Abort { step, attempt, reason } => {
                tracing::warn!(step, attempt, "an attempt at the step is void: {reason}");
                metrics::aborted();
                self.time_abort(step, attempt, &reason);
                self.show_abort();
                self.record(&Line::Abort { step, attempt, reason: reason.clone() })?;
                self.arena.reset(0);
                self.tell_replicas(step, attempt, &Tell::Abort(v1::Abort { reason }));
            }
            Action::Evict { session, reason, drifted } => {
                metrics::evicted(drifted);
                self.send_away(session, &reason);
            }
            Action::Checkpoint { step } => self.checkpoint(step)?,
            Action::TestBegin { epoch, .. } => {
                self.answers.clear();
                self.show_time(Part::Committing);
                self.test_started = self.started.elapsed();
                self.parts.console.test_begins(epoch);
            }
            Action::TestDone { step, epoch } => self.tested(step, epoch)?,
            Action::Note(note) => self.note(note)?,
            Action::Finish(outcome) => self.outcome = Some(outcome),
        }
        Ok(())
    }

    pub(super) fn close(&mut self, step: u64, attempt: u32, learning_rate: f32) {
        let recipe = self.parts.config.optimizer;
        self.time_whole();
        self.squared_norm = self.arena.squared_norm();
        if !self.squared_norm.is_finite() {
            return self.events.push_back(Event::Diverged);
        }
        let clip = norm::clip_factor(self.squared_norm, recipe.clip_norm);
        self.broadcast(step, attempt, &gradient_down::Body::Close(v1::Close { clip }));
        let update = Update { learning_rate, momentum: recipe.momentum, clip };
        let started = Instant::now();
        let digest = self.parts.referee.apply(update, self.arena.root());
        self.updating = started.elapsed().as_secs_f64();
        self.arena.reset(0);
        self.time_applied();
        self.events.push_back(Event::Applied { digest });
    }

    pub(super) fn commit(&mut self, committed: Committed) -> anyhow::Result<()> {
        let step = committed.step;
        let line = self.step_line(&committed);
        match self.parts.history.digests.get(&step) {
            // Computed before, and lost with its checkpoint: it must have come out the same.
            Some(recorded) if *recorded != committed.digest => bail!(
                "step {step} was recomputed and has digest {} where the journal has {recorded}: this machine does \
                 not compute the bits of the one that ran before; resume on workers of the same kind",
                committed.digest
            ),
            Some(_) => metrics::recomputed(),
            None => self.parts.journal.append(&Line::Step(line.clone()))?,
        }
        let body = coordinator_message::Body::Commit(v1::Commit { digest: committed.digest.0 });
        self.tell_replicas(step, committed.attempt, &body);
        self.time_commit(step, committed.attempt);
        let smooth = if self.step_seconds == 0.0 { 1.0 } else { 0.1 };
        self.step_seconds += smooth * (committed.seconds - self.step_seconds);
        self.trained_seconds += committed.seconds;
        self.trained_samples += committed.samples as u64;
        self.times.step(&committed);
        metrics::step(&committed, line.gradient_norm, &self.parts.core);
        if let Some(slowest) = committed.slowest {
            self.parts.series.waited_for(slowest, committed.waiting_seconds);
        }
        let left = self.seconds_left();
        self.parts.console.step(&committed, &self.parts.core, left);
        self.show_step(&committed, &line);
        self.last_step = Some(committed);
        Ok(())
    }

    pub(super) fn step_line(&self, c: &Committed) -> StepLine {
        StepLine {
            step: c.step,
            epoch: c.epoch,
            loss: c.loss.into(),
            samples: c.samples,
            workers: c.workers,
            seconds: c.seconds,
            compute_seconds: c.compute_seconds,
            transfer_seconds: c.transfer_seconds,
            waiting_seconds: c.waiting_seconds,
            attempt: c.attempt,
            learning_rate: c.learning_rate,
            gradient_norm: self.squared_norm.sqrt(),
            digest: c.digest,
        }
    }

    pub(super) fn checkpoint(&mut self, step: u64) -> anyhow::Result<()> {
        self.show_time(Part::Committing);
        // The journal is made to last first, so that it never ends before its checkpoints.
        self.parts.journal.sync()?;
        let snapshot = self.parts.referee.snapshot();
        let config = &self.parts.config;
        let meta = Meta {
            version: tally_checkpoint::VERSION,
            run: config.run.clone(),
            model: config.model.to_string(),
            label_loss: config.label_loss.to_string(),
            step,
            epoch: self.parts.core.shape().schedule.position(step.max(1)).0,
            digest: self.parts.core.committed().1,
            // Computed by the thread that writes.
            parameters_sha256: String::new(),
            tensors: config.tensors.clone(),
            config: serde_json::to_value(config).context("cannot describe the run")?,
        };
        self.parts.pulse.patiently(|| self.checkpointer.write(meta, snapshot));
        self.show_time(Part::Checkpointing);
        Ok(())
    }

    /// Tells of checkpoints that were written since; at the end, waits for the last.
    pub(super) fn after_checkpoints(&mut self, last: bool) {
        let done = if last { self.checkpointer.finish() } else { self.checkpointer.poll() };
        for done in done {
            self.time_checkpoint(&done);
            match done.result {
                Ok(path) => {
                    metrics::checkpoint(true, done.step);
                    self.show_checkpoint(done.step);
                    let path = path.display().to_string();
                    tracing::info!(step = done.step, path, "checkpoint");
                    if let Err(error) = self.record(&Line::Checkpoint { step: done.step, path }) {
                        tracing::warn!("{error}");
                    }
                }
                Err(error) => {
                    // Training goes on: the older checkpoints are intact, and so is the run.
                    metrics::checkpoint(false, done.step);
                    let told = format!("no checkpoint at step {}: {error}", done.step);
                    self.parts.console.warn(&told);
                    self.show_warning(told);
                    self.unsaved = Some((done.step, error));
                }
            }
        }
    }

    pub(super) fn tested(&mut self, step: u64, epoch: u32) -> anyhow::Result<()> {
        let scores = scores::score(&self.parts.test, &self.answers);
        self.answers.clear();
        let seconds = (self.started.elapsed() - self.test_started).as_secs_f64();
        metrics::test(&scores, seconds);
        self.time_tested(step, seconds);
        self.parts.console.tested(epoch, &scores, seconds);
        self.show_test(step, epoch, &scores);
        if self.best.is_none_or(|(best, _)| scores.all_correct > best) {
            self.best = Some((scores.all_correct, step));
            self.parts.pulse.patiently(|| self.checkpointer.best(step));
        }
        if !self.parts.history.tests.contains_key(&step) {
            self.record(&Line::Test { step, epoch, seconds, scores: scores.clone() })?;
        }
        self.last_test = Some(scores);
        Ok(())
    }

    pub(super) fn note(&mut self, note: Note) -> anyhow::Result<()> {
        self.show_note(&note);
        self.time_note(&note);
        let step = self.parts.core.committed().0;
        match note {
            Note::Ready { session } => {
                self.joined += 1;
                if let Some(member) = self.parts.core.members().0.get(&session) {
                    let (worker, device) = (member.name.clone(), member.device.words.clone());
                    self.parts.console.joined(&worker, &device, &self.parts.core);
                    self.record(&Line::Join { step, session, worker, device })?;
                }
                metrics::joined();
            }
            Note::Lost { session, met: false, name, reason, polite } => {
                self.forget(session);
                if !polite {
                    self.in_vain(&name, &reason);
                }
            }
            Note::Lost { session, name, reason, polite, .. } => {
                self.forget(session);
                if reason == LAGS {
                    self.in_vain(&name, &reason);
                } else {
                    self.returns.took_part(&name);
                }
                self.told_late.remove(&session);
                self.lost += u64::from(!polite);
                metrics::lost(polite);
                self.parts.console.lost(&name, &reason, &self.parts.core);
                self.record(&Line::Lost { step, session, worker: name, reason, polite })?;
            }
            Note::Adopted { session, step } => {
                let worker = self.name_of(session);
                self.parts.console.note(&format!("going on from step {step}, which worker {worker} held"));
                self.record(&Line::Adopt { step, session, worker })?;
            }
            Note::Late { session, step, leaves } => {
                let worker = self.name_of(session);
                let due = self.parts.core.deadline().unwrap_or_default().as_secs_f64();
                metrics::late(leaves);
                let told = format!(
                    "worker {worker} is late at step {step}: all was due {due:.2} s after its beginning; others compute \
                     its {leaves} micro-shards too"
                );
                // A worker that is late again and again is told of once.
                if self.told_late.insert(session) {
                    self.parts.console.note(&told);
                } else {
                    tracing::info!("{told}");
                }
                self.record(&Line::Hedge { step, session, worker, leaves })?;
            }
            Note::Audited { step, node, owner, checker, alone, finding } => {
                let line = Line::Audit { step, node: node.0, owner, checker, alone };
                self.audited(line, finding == Finding::Equal)?;
            }
            Note::TakenOver { step, leaves, by } => {
                let workers = by.len();
                metrics::taken_over(leaves);
                tracing::info!(step, leaves, workers, "a worker's micro-shards are computed by others");
                self.record(&Line::Takeover { step, leaves, workers })?;
            }
        }
        metrics::workers(&self.parts.core);
        Ok(())
    }

    /// A worker has come and gone, and nothing came of it.
    pub(super) fn in_vain(&mut self, name: &str, reason: &str) {
        metrics::in_vain();
        if let Some(times) = self.returns.in_vain(name, Instant::now()) {
            let state = 8 * self.parts.config.tensors.len();
            let told = format!(
                "worker {name} has come and gone {times} times, and nothing came of it: {reason}; {}",
                cause(state)
            );
            self.parts.console.warn(&told);
            self.show_warning(told);
        }
    }

    fn forget(&mut self, session: Session) {
        self.peers.remove(&session);
        self.board.gone(session);
    }

    pub(super) fn name_of(&self, session: Session) -> String {
        self.parts.core.members().0.get(&session).map_or_else(|| format!("{session:x}"), |m| m.name.clone())
    }

    pub(super) fn audited(&mut self, line: Line, equal: bool) -> anyhow::Result<()> {
        metrics::audited(equal);
        let Line::Audit { step, node, owner, checker, alone } = &line else { return Ok(()) };
        if equal {
            return Ok(());
        }
        let verdict = alone.as_ref().map_or_else(
            || "nobody could decide".to_string(),
            |name| format!("a third worker decided: {name} is sent away"),
        );
        self.parts.console.warn(&format!(
            "audit of step {step}: workers {owner} and {checker} got different bits for node {node}; {verdict}"
        ));
        Ok(self.record(&line)?)
    }
}
