//! Sharded attempts: who dials whom where, and sums that did not reach a replica.

use super::sending::sum_chunk;
use super::*;

/// Where other workers reach a worker.
#[derive(Clone, Debug)]
pub(super) struct PeerAddress {
    /// What it says of itself.
    pub(super) endpoint: v1::PeerEndpoint,
    /// The addresses of its connection to the coordinator.
    pub(super) ends: ConnectionEnds,
}

impl PeerAddress {
    /// The addresses at which a worker with these connection ends can try to reach it.
    fn seen_from(&self, dialler: &ConnectionEnds) -> Vec<String> {
        if !self.endpoint.address.is_empty() {
            return vec![self.endpoint.address.clone()];
        }
        let port = self.endpoint.port.min(u32::from(u16::MAX)) as u16;
        // Whoever is on the coordinator's machine, and says so by a loopback address, is where others reach the
        // coordinator.
        let ip = match (self.ends.worker.is_loopback(), dialler.worker.is_loopback()) {
            (true, false) => dialler.coordinator,
            _ => self.ends.worker,
        };
        vec![std::net::SocketAddr::new(ip, port).to_string()]
    }
}

/// The sum of the step that was closed last.
#[derive(Debug, Default)]
pub(super) struct LastSum {
    pub(super) step: u64,
    pub(super) attempt: u32,
    pub(super) root: Vec<Option<Shared>>,
}

impl Driver {
    /// A secret for a worker that can have links, if they may be wanted in this run.
    pub(super) fn link_secret(&self, hello: &Hello) -> Option<LinkSecret> {
        let wanted = self.core.spec().reduce != ReduceMode::Star;
        let able = hello.ends.is_some() && hello.capabilities.iter().any(|capability| capability == LINKS);
        if wanted && able { LinkSecret::random() } else { None }
    }

    /// Has a worker open a link to another.
    pub(super) fn dial(&mut self, session: Session, peer: Session) {
        let of = |session: Session| self.workers.get(&session)?.peer.clone();
        let (Some((dialler, _)), Some((address, secret))) = (of(session), of(peer)) else { return };
        let dial = v1::Dial {
            peer,
            addresses: address.seen_from(&dialler.ends),
            token: secret.token(session, peer).to_vec().into(),
            certificate: address.endpoint.certificate,
        };
        self.tell(session, 0, 0, coordinator_message::Body::Dial(dial));
    }

    /// Sends a worker sums of the step in flight, or of the one that was closed last.
    pub(super) fn resend(&mut self, session: Session, step: u64, attempt: u32, chunks: &[u32]) {
        let in_flight = self.core.flight().is_some_and(|f| (f.step, f.attempt) == (step, attempt));
        let is_last = (self.last_sum.step, self.last_sum.attempt) == (step, attempt);
        let sums: Vec<(u32, Shared)> = if in_flight {
            self.buffers.emitted().filter(|(index, _)| chunks.contains(index)).collect()
        } else if is_last {
            let sum = |index: &u32| Some((*index, self.last_sum.root.get(*index as usize)?.clone()?));
            chunks.iter().filter_map(sum).collect()
        } else {
            Vec::new()
        };
        let (context, limit) = (self.message_context(session, step, attempt), self.bulk_limit());
        let Some(worker) = self.workers.get(&session) else { return };
        for (index, sum) in sums {
            let data = floats::encode(self.config.wire_dtype, sum, &self.pool);
            if worker.bulk.send(GradientDown { context, body: Some(sum_chunk(index, data, None)) }) > limit {
                self.lagging.insert(session);
            }
        }
    }

    /// A replica has another digest, and says what owners sent it: was that what they sent here?
    pub(super) fn differs(&mut self, committed: Event, sums: &[v1::SumChecksum]) {
        let Event::Committed { session, step, digest, apply, round, .. } = committed else { return };
        let differing = (self.last_sum.step == step).then(|| {
            let differs = |sum: &&v1::SumChecksum| {
                let own = self.last_sum.root.get(sum.index as usize).cloned().flatten();
                own.is_some_and(|own| {
                    crc32c::crc32c(&floats::encode(self.config.wire_dtype, own, &self.pool)) != sum.crc
                })
            };
            sums.iter().filter(differs).map(|sum| sum.index).collect()
        });
        self.push(Event::Committed { session, step, digest, apply, round, differing });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_beside_the_coordinator_is_reached_where_the_coordinator_is() {
        let ends = |worker: [u8; 4], coordinator: [u8; 4]| ConnectionEnds {
            worker: worker.into(),
            coordinator: coordinator.into(),
        };
        let beside = ends([127, 0, 0, 1], [127, 0, 0, 1]);
        let far = ends([10, 0, 0, 7], [10, 0, 0, 1]);
        let endpoint = v1::PeerEndpoint { port: 4000, ..v1::PeerEndpoint::default() };
        let at = |ends| PeerAddress { endpoint: endpoint.clone(), ends };
        assert_eq!(at(beside).seen_from(&far), ["10.0.0.1:4000"]);
        assert_eq!(at(beside).seen_from(&beside), ["127.0.0.1:4000"]);
        assert_eq!(at(far).seen_from(&beside), ["10.0.0.7:4000"]);
        let told = v1::PeerEndpoint { address: "node7:50052".into(), ..endpoint.clone() };
        assert_eq!(PeerAddress { endpoint: told, ends: far }.seen_from(&beside), ["node7:50052"]);
    }
}
