//! What a worker does in a step: computes piece by piece, sends what credits allow, updates and commits.

use std::collections::VecDeque;

use tally_numerics::CREDIT_WINDOW;
use tally_numerics::tree::Node;

use super::{Down, Event, Player, Up};
use crate::cluster::Cluster;
use crate::event_simulation::{EventSimulation, LaneId, PoolId};
use crate::pieces::{Piece, pieces};

/// Where computing shares cores with everything else it is cut into pieces of so many seconds,
/// since the system lets others in between.
const SLICE: f64 = 2e-3;

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) nodes: Vec<Node>,
    pub(super) pieces: Vec<Piece>,
    pub(super) samples: usize,
    /// Its connection at the coordinator: reading, writing, and its turns on the links.
    pub(super) reads: LaneId,
    pub(super) writes: LaneId,
    pub(super) turn_in: LaneId,
    pub(super) turn_out: LaneId,
    /// Its own links, its thread for the network, and the one that computes.
    pub(super) link_out: LaneId,
    pub(super) link_in: LaneId,
    pub(super) net: LaneId,
    pub(super) compute: LaneId,
    /// Plans, commits, updates and chunks of sums that it has seen; steps it committed and began.
    pub(super) plans: usize,
    pub(super) commits: usize,
    pub(super) updates: usize,
    pub(super) sums: usize,
    pub(super) committed: usize,
    pub(super) begun: usize,
    /// The piece it is at, when what that is of began, and seconds of a core that it still needs.
    pub(super) at: usize,
    pub(super) from: f64,
    pub(super) left: f64,
    /// Chunks that wait for credit, of each node.
    pub(super) waiting: Vec<VecDeque<usize>>,
}

impl Worker {
    /// One that has these nodes, whose own threads run on `own`. The other pools are the
    /// coordinator's links in and out, and its cores.
    pub(super) fn new(
        cluster: &Cluster,
        nodes: Vec<Node>,
        clock: &mut EventSimulation<Event>,
        [link_in, link_out, cores]: [PoolId; 3],
        own: PoolId,
    ) -> Self {
        let [up, down] = [clock.pool(1), clock.pool(1)];
        Self {
            pieces: pieces(cluster, &nodes),
            samples: nodes.iter().map(|&node| cluster.samples(node)).sum(),
            waiting: vec![VecDeque::new(); nodes.len()],
            nodes,
            reads: clock.lane(cores),
            writes: clock.lane(cores),
            turn_in: clock.lane(link_in),
            turn_out: clock.lane(link_out),
            link_out: clock.lane(up),
            link_in: clock.lane(down),
            net: clock.lane(own),
            compute: clock.lane(own),
            plans: 0,
            commits: 0,
            updates: 0,
            sums: 0,
            committed: 0,
            begun: 0,
            at: 0,
            from: 0.0,
            left: 0.0,
        }
    }
}

impl Player<'_> {
    pub(super) fn told(&mut self, at: usize, what: Down) {
        let unpacking = if self.rounds() { self.cluster.costs.unpack_element } else { 0.0 };
        let apply = self.cluster.costs.apply_element + unpacking;
        let worker = &mut self.workers[at];
        match what {
            Down::Commit => {
                worker.commits += 1;
                self.commit(at);
            }
            Down::Plan => {
                worker.plans += 1;
                self.begin(at);
            }
            Down::Samples(_) => {}
            Down::Sum(chunk) => {
                worker.sums += 1;
                if !self.cluster.clipped {
                    let seconds = apply * self.cluster.elements(chunk) as f64;
                    self.clock.work(worker.compute, seconds, Event::Done);
                }
                self.pump(at);
            }
            Down::Close => {
                let elements = if self.cluster.clipped { self.cluster.parameters } else { 0 };
                self.clock.work(worker.compute, apply * elements as f64, Event::Updated(at));
            }
        }
    }

    pub(super) fn commit(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if worker.commits.min(worker.updates) > worker.committed {
            worker.committed += 1;
            self.contribute(at, Up::Committed);
            self.begin(at);
        }
    }

    fn begin(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if worker.plans > worker.begun && worker.committed == worker.begun {
            worker.begun += 1;
            worker.at = 0;
            self.clock.work(worker.compute, self.cluster.costs.worker_step, Event::Begun(at));
        }
    }

    pub(super) fn piece(&mut self, at: usize) {
        let now = self.clock.now();
        let worker = &mut self.workers[at];
        let Some(piece) = worker.pieces.get(worker.at) else { return };
        if piece.begins {
            worker.from = now;
        }
        worker.left = piece.cpu;
        self.slice(at);
    }

    pub(super) fn slice(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if worker.left > 0.0 {
            let slice = if self.cluster.one_machine { worker.left.min(SLICE) } else { worker.left };
            worker.left -= slice;
            self.clock.work(worker.compute, slice, Event::Computed(at));
        } else {
            let due = worker.pieces.get(worker.at).map_or(0.0, |piece| piece.due);
            let wait = (worker.from + due - self.clock.now()).max(0.0);
            let oversleep = if wait > 0.0 { self.cluster.computing.oversleep } else { 0.0 };
            self.clock.after(wait + oversleep, Event::PieceDue(at));
        }
    }

    pub(super) fn due(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        let ready = worker.pieces.get(worker.at).and_then(|piece| piece.ready);
        worker.at += 1;
        if let Some((node, chunk)) = ready {
            worker.waiting[node].push_back(chunk);
            self.pump(at);
        }
        self.piece(at);
    }

    /// Sends what credits allow.
    fn pump(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        let before = self.chunks * worker.begun.saturating_sub(1);
        let credits = CREDIT_WINDOW + worker.sums.saturating_sub(before);
        let mut leaving = Vec::new();
        for (node, waiting) in worker.nodes.iter().zip(&mut worker.waiting) {
            while let Some(chunk) = waiting.pop_front_if(|chunk| *chunk < credits) {
                leaving.push(Up::Chunk(*node, chunk));
            }
        }
        leaving.into_iter().for_each(|what| self.contribute(at, what));
    }
}
