//! What the driver sends: to one worker, or to all replicas.

use super::*;

/// A chunk of the sum, as data or as the slot of it in shared memory.
pub(super) fn sum_chunk(index: u32, data: Bytes, slot: Option<u32>) -> gradient_down::Body {
    gradient_down::Body::SumChunk(v1::SumChunk { index, data, slot, crc: 0 })
}

impl Driver {
    pub(super) fn message_context(
        &self,
        session: Session,
        step: u64,
        attempt: u32,
    ) -> Option<v1::MessageContext> {
        Some(v1::MessageContext { run: self.run, incarnation: self.incarnation, session, step, attempt })
    }

    pub(super) fn control(
        &self,
        to: &Control,
        session: Session,
        step: u64,
        attempt: u32,
        body: coordinator_message::Body,
    ) -> usize {
        let context = self.message_context(session, step, attempt);
        to.send(CoordinatorMessage { context, body: Some(body) })
    }

    pub(super) fn tell(
        &mut self,
        session: Session,
        step: u64,
        attempt: u32,
        body: coordinator_message::Body,
    ) {
        if let Some(worker) = self.workers.get(&session)
            && self.control(&worker.control, session, step, attempt, body) > MAX_CONTROL_BYTES
        {
            self.lagging.insert(session);
        }
    }

    /// Queues a message for every replica.
    pub(super) fn broadcast(&mut self, step: u64, attempt: u32, body: &gradient_down::Body) {
        self.send_replicas(step, attempt, |_, _| Some(body.clone()));
    }

    /// Queues a chunk of the sum for every replica; workers of this machine get its slot in shared memory.
    pub(super) fn broadcast_sum(&mut self, step: u64, attempt: u32, index: u32, chunk: &Shared) {
        let linked = self.core.flight().map_or(&[][..], |flight| flight.reached_by_owner(index));
        let is_mine = |session: Session| !linked.contains(&session);
        let mine: BTreeSet<Session> =
            self.workers.iter().filter(|(s, w)| w.replica && is_mine(**s)).map(|(s, _)| *s).collect();
        if mine.is_empty() {
            return;
        }
        let near = |session: &Session| self.workers.get(session).is_some_and(|w| w.reads_shared_sums);
        let any = mine.iter().any(near);
        let dtype = self.config.wire_dtype;
        let data = floats::encode(dtype, chunk.clone(), &self.pool);
        let slot = if any { self.sums.write(index, &data) } else { None };
        if slot.is_some() {
            let near = mine.iter().filter(|session| near(session));
            near.for_each(|&session| self.sums.published_to(session, step));
        }
        let sent = self.send_replicas(step, attempt, |session, worker| {
            let slot = slot.filter(|_| worker.reads_shared_sums);
            let data = if slot.is_some() { Bytes::new() } else { data.clone() };
            mine.contains(&session).then_some(sum_chunk(index, data, slot))
        });
        self.observe(RunEvent::Sent { bytes: data.len() * sent });
    }

    /// Queues a message for each replica for which there is one, and returns how many there are.
    fn send_replicas(
        &mut self,
        step: u64,
        attempt: u32,
        body: impl Fn(Session, &ConnectedWorker) -> Option<gradient_down::Body>,
    ) -> usize {
        let limit = self.bulk_limit();
        let mut sent = 0;
        for (&session, worker) in self.workers.iter().filter(|(_, worker)| worker.replica) {
            let context = self.message_context(session, step, attempt);
            let Some(body) = body(session, worker) else { continue };
            if worker.bulk.send(GradientDown { context, body: Some(body) }) > limit {
                self.lagging.insert(session);
            }
            sent += 1;
        }
        sent
    }

    /// Bytes that may wait for a worker: a state, two sums that follow it, and some more.
    pub(super) fn bulk_limit(&self) -> usize {
        let models = 3 + self.config.optimizer.moments().len();
        4 * models * self.config.tensors.len() + (64 << 20)
    }

    pub(super) fn tell_replicas(&mut self, step: u64, attempt: u32, body: &coordinator_message::Body) {
        for (&session, worker) in self.workers.iter().filter(|(_, worker)| worker.replica) {
            if self.control(&worker.control, session, step, attempt, body.clone()) > MAX_CONTROL_BYTES {
                self.lagging.insert(session);
            }
        }
    }

    /// Drops workers whose queues hold more than a few models, or more than control messages ever need. They can join
    /// again.
    pub(super) fn disconnect_lagging(&mut self) {
        while let Some(session) = self.lagging.pop_first() {
            self.disconnect(session, LAGS_BEHIND.into());
        }
    }

    pub(super) fn send_state(&mut self, session: Session) {
        let (step, digest) = self.core.committed();
        let context = self.message_context(session, step, 0);
        let Some(worker) = self.workers.get_mut(&session) else { return };
        worker.replica = true;
        let send = |body| {
            worker.bulk.send(GradientDown { context, body: Some(body) });
        };
        let snapshot = self.master.snapshot();
        let (elements, moments) = (self.config.tensors.len() as u64, snapshot.moments() as u32);
        send(gradient_down::Body::State(v1::State { elements, digest: digest.0, moments }));
        for vector in 0..=moments {
            for (index, chunk) in snapshot.chunks(vector as usize).enumerate() {
                let data = floats::share(chunk);
                let chunk = v1::StateChunk { vector, index: index as u32, data };
                send(gradient_down::Body::StateChunk(chunk));
            }
        }
    }

    /// Sends a newcomer what was broadcast of the step in flight.
    pub(super) fn catch_up(&self, session: Session, during: Option<(u64, u32)>) {
        let (Some((step, attempt)), Some(worker)) = (during, self.workers.get(&session)) else { return };
        let context = self.message_context(session, step, attempt);
        let send = |body| worker.bulk.send(GradientDown { context, body: Some(body) });
        let rate = self.core.spec().optimizer.rate(step, self.core.spec().steps());
        send(gradient_down::Body::AttemptBegin(self.begin(step, rate)));
        if let Some(flight) = self.core.flight().filter(|flight| flight.layout.is_sharded()) {
            let chunks = flight.own.order().to_vec();
            send(gradient_down::Body::TakeBack(v1::TakeBack { chunks }));
        }
        for (index, chunk) in self.buffers.emitted() {
            let data = floats::encode(self.config.wire_dtype, chunk, &self.pool);
            send(sum_chunk(index, data, None));
        }
    }

    pub(super) fn begin(&self, step: u64, learning_rate: f32) -> v1::AttemptBegin {
        let optimizer = &self.config.optimizer;
        let unscaled = optimizer.is_unscaled() && !self.config.schema.is_weighted();
        let rules = optimizer.rules(step, learning_rate);
        let rules = rules.iter().map(update::to_message).collect();
        let flight = self.core.flight();
        let layout = flight.map(|flight| flight.layout.clone()).unwrap_or_default();
        v1::AttemptBegin {
            unscaled,
            rules,
            limit: optimizer.limit(),
            machines: convert::machines(&layout),
            owners: layout.owners,
            linked: layout.linked,
            samples: flight.map_or(0, |flight| flight.samples as u32),
            digest: self.core.committed().1.0,
        }
    }

    /// A chunk of a state that a worker was asked for (**RESUME-1**).
    pub(super) fn state_chunk(
        &mut self,
        session: Session,
        step: u64,
        vector: u32,
        index: u32,
        data: Result<Chunk, String>,
    ) {
        let asked =
            |u: &&mut Upload| (u.session, u.step) == (session, step) && u.missing.contains(&(vector, index));
        let Some(upload) = self.upload.as_mut().filter(asked) else {
            return self.disconnect(session, "it sent a state that it was not asked for".into());
        };
        upload.missing.remove(&(vector, index));
        let values = match data {
            Ok(values) => values,
            Err(fault) => {
                return self.disconnect(session, format!("the state that it sent is wrong: {fault}"));
            }
        };
        let Some(into) = upload.state.vector_mut(vector as usize) else { return };
        let range = chunk_range(into.len(), index as usize);
        into[range].copy_from_slice(&values);
        if upload.missing.is_empty() {
            let digest = upload.state.digest();
            self.push(Event::Uploaded { session, step, digest });
        }
    }

    pub(super) fn broadcast_finished(&mut self, reason: &str, stopped: bool) {
        let body = coordinator_message::Body::Finished(v1::Finished { reason: reason.into(), stopped });
        let pending = self.pending.iter().map(|(session, pending)| (*session, &pending.control));
        let workers = self.workers.iter().map(|(session, worker)| (*session, &worker.control));
        for (session, control) in pending.chain(workers) {
            self.control(control, session, 0, 0, body.clone());
        }
        self.pending.clear();
        self.workers.clear();
    }
}
