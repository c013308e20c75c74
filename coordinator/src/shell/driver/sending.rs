//! What the driver sends: to one worker, or to all replicas.

use super::*;

impl Driver {
    pub(super) fn stamp(&self, session: Session, step: u64, attempt: u32) -> Option<v1::Stamp> {
        Some(v1::Stamp { run: self.run, incarnation: self.parts.incarnation, session, step, attempt })
    }

    pub(super) fn control(
        &self,
        to: &Control,
        session: Session,
        step: u64,
        attempt: u32,
        body: coordinator_message::Body,
    ) -> usize {
        let stamp = self.stamp(session, step, attempt);
        to.send(CoordinatorMessage { stamp, body: Some(body) })
    }

    pub(super) fn tell(
        &mut self,
        session: Session,
        step: u64,
        attempt: u32,
        body: coordinator_message::Body,
    ) {
        if let Some(peer) = self.peers.get(&session)
            && self.control(&peer.control, session, step, attempt, body) > MOST_CONTROL
        {
            self.lagging.insert(session);
        }
    }

    /// Queues a message for every replica.
    pub(super) fn broadcast(&mut self, step: u64, attempt: u32, body: &gradient_down::Body) {
        self.send_replicas(step, attempt, |_| body.clone());
    }

    /// Queues a chunk of the sum for every replica: where it lies, for those of this machine.
    pub(super) fn broadcast_sum(&mut self, step: u64, attempt: u32, index: u32, chunk: &Shared) {
        let near = |peer: &Peer| peer.replica && peer.reads_board;
        let any = self.peers.values().any(near);
        let dtype = self.parts.config.wire_dtype;
        let data = floats::encode_shared(dtype, chunk.clone(), &self.pool);
        let place = if any { self.board.write(index, &data) } else { None };
        if place.is_some() {
            let near = self.peers.iter().filter(|(_, peer)| near(peer));
            near.for_each(|(&session, _)| self.board.shown(session, step));
        }
        let sent = self.send_replicas(step, attempt, |peer| {
            let place = place.filter(|_| peer.reads_board);
            let data = if place.is_some() { Bytes::new() } else { data.clone() };
            gradient_down::Body::Reduced(v1::Reduced { index, data, place })
        });
        metrics::sent(data.len() * sent);
    }

    /// Queues a message for each replica and returns how many there are.
    fn send_replicas(
        &mut self,
        step: u64,
        attempt: u32,
        body: impl Fn(&Peer) -> gradient_down::Body,
    ) -> usize {
        let limit = 16 * self.parts.config.tensors.len() + (64 << 20);
        let mut sent = 0;
        for (&session, peer) in self.peers.iter().filter(|(_, peer)| peer.replica) {
            let stamp = self.stamp(session, step, attempt);
            if peer.bulk.send(GradientDown { stamp, body: Some(body(peer)) }) > limit {
                self.lagging.insert(session);
            }
            sent += 1;
        }
        sent
    }

    pub(super) fn tell_replicas(&mut self, step: u64, attempt: u32, body: &coordinator_message::Body) {
        for (&session, peer) in self.peers.iter().filter(|(_, peer)| peer.replica) {
            if self.control(&peer.control, session, step, attempt, body.clone()) > MOST_CONTROL {
                self.lagging.insert(session);
            }
        }
    }

    /// Drops those whose queues hold more than a few models, or more than control messages
    /// ever need; they can join again.
    pub(super) fn drop_laggards(&mut self) {
        while let Some(session) = self.lagging.pop_first() {
            self.lose(session, LAGS.into());
        }
    }

    pub(super) fn send_state(&mut self, session: Session) {
        let (step, digest) = self.parts.core.committed();
        let stamp = self.stamp(session, step, 0);
        let Some(peer) = self.peers.get_mut(&session) else { return };
        peer.replica = true;
        let send = |body| {
            peer.bulk.send(GradientDown { stamp, body: Some(body) });
        };
        let elements = self.parts.config.tensors.len() as u64;
        send(gradient_down::Body::State(v1::State { elements, digest: digest.0 }));
        let snapshot = self.parts.referee.snapshot();
        for momentum in [false, true] {
            for (index, chunk) in snapshot.chunks(momentum).enumerate() {
                let data = floats::share(chunk);
                let chunk = v1::StateChunk { momentum, index: index as u32, data };
                send(gradient_down::Body::StateChunk(chunk));
            }
        }
    }

    /// Sends a newcomer what was broadcast of the step in flight.
    pub(super) fn catch_up(&self, session: Session, during: Option<(u64, u32)>) {
        let (Some((step, attempt)), Some(peer)) = (during, self.peers.get(&session)) else { return };
        let stamp = self.stamp(session, step, attempt);
        let send = |body| peer.bulk.send(GradientDown { stamp, body: Some(body) });
        let rate = self.parts.core.shape().recipe.rate(step, self.parts.core.shape().steps());
        send(gradient_down::Body::Begin(self.begin(rate)));
        for (index, chunk) in self.arena.emitted() {
            let data = floats::encode_shared(self.parts.config.wire_dtype, chunk, &self.pool);
            send(gradient_down::Body::Reduced(v1::Reduced { index, data, place: None }));
        }
    }

    pub(super) fn begin(&self, learning_rate: f32) -> v1::Begin {
        let recipe = &self.parts.config.optimizer;
        v1::Begin { learning_rate, momentum: recipe.momentum, unclipped: recipe.clip_norm.is_none() }
    }

    /// A chunk of a state that a worker was asked for (**RESUME-1**).
    pub(super) fn state_chunk(
        &mut self,
        session: Session,
        step: u64,
        momentum: bool,
        index: u32,
        data: Result<Chunk, String>,
    ) {
        let asked = |u: &&mut Upload| {
            (u.session, u.step) == (session, step) && u.missing.contains(&(momentum, index))
        };
        let Some(upload) = self.upload.as_mut().filter(asked) else {
            return self.lose(session, "it sent a state that it was not asked for".into());
        };
        upload.missing.remove(&(momentum, index));
        let values = match data {
            Ok(values) => values,
            Err(fault) => return self.lose(session, format!("the state that it sent is wrong: {fault}")),
        };
        let into = if momentum { &mut upload.momentum } else { &mut upload.parameters };
        let range = chunk_range(into.len(), index as usize);
        into[range].copy_from_slice(&values);
        if upload.missing.is_empty() {
            let digest = digest::of(0, &upload.parameters, &upload.momentum);
            self.events.push_back(Event::Uploaded { session, step, digest });
        }
    }

    pub(super) fn farewell(&mut self, reason: &str, stopped: bool) {
        let body = coordinator_message::Body::Finished(v1::Finished { reason: reason.into(), stopped });
        let guests = self.guests.iter().map(|(session, guest)| (*session, &guest.control));
        let peers = self.peers.iter().map(|(session, peer)| (*session, &peer.control));
        for (session, control) in guests.chain(peers) {
            self.control(control, session, 0, 0, body.clone());
        }
        self.guests.clear();
        self.peers.clear();
    }
}
