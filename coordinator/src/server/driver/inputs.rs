//! The driver's inputs: checked against its state, then passed to the core.

use super::*;

impl Driver {
    pub(super) fn input(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                if let Event::Lost { session, reason, polite } = &event {
                    if let Some(pending) = self.pending.remove(session)
                        && !polite
                    {
                        self.unproductive_session(&pending.hello.name, reason);
                    }
                    if !polite {
                        self.send_evicted(*session, reason);
                    }
                }
                if matches!(event, Event::Tick) {
                    self.ask_clocks();
                }
                if let Event::Committed { session, step, apply, round, .. } = event
                    && self.workers.contains_key(&session)
                {
                    self.sums.confirmed(session, step);
                    self.times.worker(apply, round);
                    self.observe(RunEvent::Confirmed { session, step, apply, round });
                }
                self.push(event);
            }
            Input::Chunk { from, node, index, data } => {
                let (data, fault) = match data {
                    Ok(data) => (Some(data), None),
                    Err(fault) => (None, Some(fault)),
                };
                let audited = data.as_ref().filter(|_| self.core.is_audited(from, node));
                let digest = audited.map(|values| chunk_digest(index, values));
                self.events.push_back((Event::Chunk { from, node, index, digest, fault }, data));
            }
            Input::State { session, step, vector, index, data } => {
                self.state_chunk(session, step, vector, index, data);
            }
            Input::Evaluated { session, step, evaluated } => self.evaluated(session, step, evaluated),
            Input::Hello { session, hello, control, memory } => {
                let secret = self.link_secret(&hello);
                let config = &self.config;
                let welcome = v1::Welcome {
                    protocol: PROTOCOL,
                    build: env!("CARGO_PKG_VERSION").into(),
                    program: config.program.name.clone(),
                    arguments: config.program.arguments.to_string(),
                    microbatches: config.microbatches,
                    spare: self.workers.len() >= config.microbatches as usize,
                    down: memory.as_ref().and_then(|_| self.sums.offer()),
                    up: memory,
                    wire_dtype: config.wire_dtype.to_string(),
                    spans: self.spans,
                    link_secret: secret
                        .as_ref()
                        .map(LinkSecret::as_bytes)
                        .unwrap_or_default()
                        .to_vec()
                        .into(),
                };
                self.control(&control, session, 0, 0, coordinator_message::Body::Welcome(welcome));
                let dtype = config.wire_dtype;
                let able =
                    capability_of(dtype).is_none_or(|wanted| hello.capabilities.iter().any(|c| c == wanted));
                let pending = PendingWorker { hello, control, bulk: None, device: None, peer: None, secret };
                self.pending.insert(session, pending);
                if !able {
                    let reason = format!(
                        "this run's gradients travel as {dtype}, which this worker cannot send; run the same build of Tally on \
                         both sides"
                    );
                    self.refuse(session, reason);
                }
                if self.pending.len() > MAX_PENDING_WORKERS {
                    self.refuse(session, "too many workers are joining; try again later".into());
                }
            }
            Input::Offer { session, manifest, device, peer } => {
                let pending = self.pending.get_mut(&session);
                if let (Some(pending), Some(endpoint)) = (pending, peer) {
                    pending.peer = pending.hello.ends.map(|ends| PeerAddress { endpoint, ends });
                }
                self.offer(session, manifest, device);
            }
            Input::Differs { committed, sums } => self.differs(committed, &sums),
            Input::Failed { session, what } => {
                if let Some(worker) = self.core.members().0.get(&session) {
                    let (step, _) = self.core.committed();
                    self.failures.note(step, &worker.name, &what);
                }
                let reason = format!("it failed: {what}");
                self.input(Input::Event(Event::Lost { session, reason, polite: false }));
            }
            Input::Attach { session, bulk, reads_shared_sums, known } => {
                let pending = self.pending.get_mut(&session).filter(|pending| pending.bulk.is_none());
                let _ = known.send(pending.is_some());
                if let Some(pending) = pending {
                    pending.bulk = Some((bulk, reads_shared_sums));
                    self.admit(session);
                }
            }
            Input::Spans { session, step, spans, arrived } => {
                self.worker_spans(session, step, &spans, arrived)
            }
            Input::Clock { session, number, received, sent, arrived } => {
                self.clock_answer(session, number, (received, sent), arrived);
            }
            Input::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Input::Stop => {
                self.stopping = true;
                self.observe(RunEvent::Note(
                    "stopping after the step in flight (interrupt again to stop at once)",
                ));
                self.push(Event::Stop);
            }
        }
    }

    /// Tells a worker why its session is over; one whose connection broke does not hear it.
    pub(super) fn send_evicted(&mut self, session: Session, reason: &str) {
        let evicted = v1::Evicted { reason: reason.into() };
        self.tell(session, 0, 0, coordinator_message::Body::Evicted(evicted));
    }

    pub(super) fn disconnect(&mut self, session: Session, reason: String) {
        self.send_evicted(session, &reason);
        self.push(Event::Lost { session, reason, polite: false });
    }

    pub(super) fn offer(&mut self, session: Session, manifest: Result<Manifest, String>, device: DeviceInfo) {
        let Some(pending) = self.pending.get_mut(&session) else { return };
        let problem = match manifest {
            Ok(manifest) if manifest == self.config.tensors => None,
            Ok(_) => Some(format!(
                "its model {} has other tensors than this run's; run the same build on both sides",
                self.config.program.variant
            )),
            Err(error) => Some(format!("its manifest is wrong: {error}")),
        };
        if let Some(reason) = problem {
            return self.refuse(session, reason);
        }
        pending.device = Some(device);
        self.admit(session);
    }

    pub(super) fn refuse(&mut self, session: Session, reason: String) {
        if let Some(pending) = self.pending.remove(&session) {
            tracing::warn!(worker = pending.hello.name, "refused: {reason}");
            let refused = coordinator_message::Body::Refused(v1::Refused { reason });
            self.control(&pending.control, session, 0, 0, refused);
        }
    }

    /// A pending worker with a manifest and a gradient stream takes part from now on.
    pub(super) fn admit(&mut self, session: Session) {
        let complete = self.pending.get(&session).is_some_and(|g| g.bulk.is_some() && g.device.is_some());
        if !complete {
            return;
        }
        let Some(PendingWorker {
            hello,
            control,
            bulk: Some((bulk, reads_shared_sums)),
            device: Some(device),
            peer,
            secret,
        }) = self.pending.remove(&session)
        else {
            return;
        };
        let Hello { name, threads, capabilities, held, .. } = hello;
        let peer = peer.zip(secret);
        let links = match &peer {
            None => LinkAbility::None,
            Some((address, _)) if address.endpoint.port == 0 => LinkAbility::Dials,
            Some(_) => LinkAbility::Listens,
        };
        let machine = peer.as_ref().map_or(String::new(), |(address, _)| address.endpoint.machine.clone());
        let time = capabilities.iter().any(|c| c == TIMELINE).then(|| WorkerTime::new(self.clock.unix()));
        self.workers.insert(
            session,
            ConnectedWorker { control, bulk, reads_shared_sums, replica: false, time, peer },
        );
        self.observe(RunEvent::Connected { session, name: &name, device: &device.name });
        self.ask_clocks();
        self.push(Event::Joined { session, name, device, threads, held, links, machine });
    }

    /// A worker has evaluated a microbatch of the test pass.
    fn evaluated(&mut self, session: Session, step: u64, evaluated: v1::Evaluated) {
        let leaf = evaluated.leaf;
        let (committed, _) = self.core.committed();
        if step < committed || self.core.phase() != Phase::Testing {
            // Others have evaluated it in the meantime.
            return;
        }
        let member = self.core.members().0.get(&session);
        if step != committed || member.is_none_or(|member| !member.testing.contains(&leaf)) {
            let reason = format!("it evaluated microbatch {leaf} of the test pass, which it was not given");
            return self.disconnect(session, reason);
        }
        match convert::evaluated(evaluated.sums, &self.config.schema) {
            Ok(sums) => {
                self.evaluated.entry(leaf).or_insert(sums);
                self.push(Event::Answered { session, step, leaf });
            }
            Err(error) => self.disconnect(session, format!("its evaluation is wrong: {error}")),
        }
    }

    // ---- Clocks ----

    /// Sends a question to each worker whose clock is due for a comparison.
    fn ask_clocks(&mut self) {
        let now = self.clock.unix();
        let is_due =
            |worker: &ConnectedWorker| worker.time.as_ref().is_some_and(|time| time.clock.is_due(now));
        let due = self.workers.iter().filter(|(_, worker)| is_due(worker));
        for session in due.map(|(&session, _)| session).collect::<Vec<_>>() {
            // The moment of each question counts, not of the first.
            let now = self.clock.unix();
            let time = self.workers.get_mut(&session).and_then(|worker| worker.time.as_mut());
            if let Some(number) = time.map(|time| time.clock.ask(now)) {
                let question = v1::ClockQuestion { number };
                self.tell(session, 0, 0, coordinator_message::Body::Clock(question));
            }
        }
    }

    /// A worker has said what its clock shows.
    fn clock_answer(&mut self, session: Session, number: u64, read: (f64, f64), arrived: Instant) {
        let arrived = self.clock.at(arrived);
        let Some(time) = self.workers.get_mut(&session).and_then(|worker| worker.time.as_mut()) else {
            return;
        };
        time.clock.answered(number, read.0, read.1, arrived);
        if let Some(offset) = time.clock.offset(arrived) {
            self.observe(RunEvent::Clock { session, offset });
        }
    }

    /// A worker has told what it did; before its clock is known, that says nothing.
    fn worker_spans(&mut self, session: Session, step: u64, spans: &[Span], arrived: Instant) {
        let arrived = self.clock.at(arrived);
        let time = self.workers.get_mut(&session).and_then(|worker| worker.time.as_mut());
        if let Some(lane) = time.and_then(|time| time.lane(session, step, spans, arrived)) {
            self.observe(RunEvent::Lane(&lane));
        }
    }
}
