//! What reaches the driver: checked against what it knows, then told to the core.

use super::*;

impl Driver {
    pub(super) fn input(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                if let Event::Lost { session, reason, polite } = &event {
                    if let Some(guest) = self.guests.remove(session)
                        && !polite
                    {
                        self.in_vain(&guest.hello.name, reason);
                    }
                    if !polite {
                        self.send_away(*session, reason);
                    }
                }
                if matches!(event, Event::Tick) {
                    self.ask_clocks();
                }
                if let Event::Committed { session, step, apply, round, .. } = &event
                    && self.peers.contains_key(session)
                {
                    self.board.confirmed(*session, *step);
                    self.times.worker(*apply, *round);
                    metrics::worker_times(*apply, *round);
                    let member = self.parts.core.members().0.get(session);
                    self.parts.series.confirmed(*session, *step, member.map_or(0, |member| member.samples));
                    self.parts.series.speed(*session, member.and_then(|member| member.per_sample));
                }
                self.events.push_back(event);
            }
            Input::Chunk { from, node, index, data } => {
                let (data, fault) = match data {
                    Ok(data) => (Some(data), None),
                    Err(fault) => (None, Some(fault)),
                };
                let audited = data.as_ref().filter(|_| self.parts.core.is_audited(from, node));
                let digest = audited.map(|values| digest::of(index as usize * CHUNK, values, values));
                self.held = data;
                self.events.push_back(Event::Chunk { from, node, index, digest, fault });
            }
            Input::State { session, step, momentum, index, data } => {
                self.state_chunk(session, step, momentum, index, data);
            }
            Input::Answers { session, step, answers } => {
                let leaf = answers.leaf;
                let member = self.parts.core.members().0.get(&session);
                if step < self.parts.core.committed().0 || self.parts.core.phase() != Phase::Testing {
                    // Others have answered it in the meantime.
                    return;
                }
                if step != self.parts.core.committed().0 || member.is_none_or(|m| !m.testing.contains(&leaf))
                {
                    return self.lose(
                        session,
                        format!("it answered leaf {leaf} of the test pass, which it was not given"),
                    );
                }
                let wanted = self.parts.test.len().saturating_sub(leaf as usize * TEST_LEAF).min(TEST_LEAF);
                match LeafAnswers::from_message(&answers, wanted) {
                    Ok(answers) => {
                        self.answers.entry(leaf).or_insert(answers);
                        self.events.push_back(Event::Answered { session, step, leaf });
                    }
                    Err(error) => self.lose(session, format!("its answers are wrong: {error}")),
                }
            }
            Input::Hello { session, hello, control, memory } => {
                let config = &self.parts.config;
                let welcome = v1::Welcome {
                    protocol: PROTOCOL,
                    build: env!("CARGO_PKG_VERSION").into(),
                    model: config.model.to_string(),
                    label_loss: config.label_loss.to_string(),
                    shards: config.shards,
                    spare: self.peers.len() >= config.shards as usize,
                    down: memory.as_ref().and_then(|_| self.board.offer()),
                    up: memory,
                    wire_dtype: config.wire_dtype.to_string(),
                    spans: self.parts.spans,
                };
                self.control(&control, session, 0, 0, coordinator_message::Body::Welcome(welcome));
                let able =
                    config.wire_dtype == WireDtype::F32 || hello.capabilities.iter().any(|c| c == BF16);
                self.guests.insert(session, Guest { hello, control, bulk: None, device: None });
                if !able {
                    let reason = "this run's gradients travel as bfloat16, which this worker cannot send; run the \
                                  same build of Tally on both sides";
                    self.refuse(session, reason.into());
                }
                if self.guests.len() > MOST_GUESTS {
                    self.refuse(session, "too many workers are joining; try again later".into());
                }
            }
            Input::Offer { session, manifest, device } => self.offer(session, manifest, device),
            Input::Attach { session, bulk, reads_board, known } => {
                let guest = self.guests.get_mut(&session).filter(|guest| guest.bulk.is_none());
                let _ = known.send(guest.is_some());
                if let Some(guest) = guest {
                    guest.bulk = Some((bulk, reads_board));
                    self.let_in(session);
                }
            }
            Input::Spans { session, step, spans, arrived } => self.spans(session, step, &spans, arrived),
            Input::Clock { session, number, received, sent, arrived } => {
                self.clock(session, number, (received, sent), arrived);
            }
            Input::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Input::Stop => {
                self.parts
                    .console
                    .note("stopping after the step in flight (interrupt again to stop at once)");
                self.stopping = true;
                self.events.push_back(Event::Stop);
            }
        }
    }

    /// Tells a worker why its session is over; one whose connection broke does not hear it.
    pub(super) fn send_away(&mut self, session: Session, reason: &str) {
        let evicted = v1::Evicted { reason: reason.into() };
        self.tell(session, 0, 0, coordinator_message::Body::Evicted(evicted));
    }

    pub(super) fn lose(&mut self, session: Session, reason: String) {
        self.send_away(session, &reason);
        self.events.push_back(Event::Lost { session, reason, polite: false });
    }

    pub(super) fn offer(&mut self, session: Session, manifest: Result<Manifest, String>, device: Device) {
        let Some(guest) = self.guests.get_mut(&session) else { return };
        let problem = match manifest {
            Ok(manifest) if manifest == self.parts.config.tensors => None,
            Ok(_) => Some(format!(
                "its network {} has other tensors than this run's; run the same build of Tally on both sides",
                self.parts.config.model
            )),
            Err(error) => Some(format!("its manifest is wrong: {error}")),
        };
        if let Some(reason) = problem {
            return self.refuse(session, reason);
        }
        guest.device = Some(device);
        self.let_in(session);
    }

    pub(super) fn refuse(&mut self, session: Session, reason: String) {
        if let Some(guest) = self.guests.remove(&session) {
            tracing::warn!(worker = guest.hello.name, "refused: {reason}");
            let refused = coordinator_message::Body::Refused(v1::Refused { reason });
            self.control(&guest.control, session, 0, 0, refused);
        }
    }

    /// A guest with a manifest and a gradient stream takes part from now on.
    pub(super) fn let_in(&mut self, session: Session) {
        let complete = self.guests.get(&session).is_some_and(|g| g.bulk.is_some() && g.device.is_some());
        if !complete {
            return;
        }
        let Some(Guest { hello, control, bulk: Some((bulk, reads_board)), device: Some(device) }) =
            self.guests.remove(&session)
        else {
            return;
        };
        let Hello { name, threads, capabilities, held } = hello;
        let time = capabilities.iter().any(|c| c == TIMELINE).then(|| WorkerTime::new(self.now()));
        self.peers.insert(session, Peer { control, bulk, reads_board, replica: false, time });
        self.time_joined(session, &name, &device.words);
        self.events.push_back(Event::Joined { session, name, device, threads, held });
    }
}
