//! A few steps of a cluster, played on a virtual clock chunk by chunk: what waits for what is as
//! it is in a run.
//!
//! Chunks of a subtree leave while the last of it is computed, as far as credits reach, and those
//! of the sum while later ones still come. Additions are those of the run's own bookkeeping
//! ([`Reduction`]), and the subtrees those that its workers would be given. What TCP does beside
//! sharing a link evenly is left out: slow start, losses, retransmissions.

use std::collections::VecDeque;

use tally_exact::tree::Node;
use tally_proto::WINDOW;

use super::clockwork::{Clockwork, LaneId, PoolId};
use super::cluster::Cluster;
use super::pieces::{Piece, pieces};
use crate::core::reduction::{Due, Reduction, Verdict};

/// Steps that are played. The last is looked at: it begins as the one before it did.
const STEPS: u32 = 4;
/// Where computing shares cores with everything else it is cut into pieces of so many seconds,
/// since the system lets others in between.
const SLICE: f64 = 2e-3;
/// Bytes of a message without floats.
const SMALL: f64 = 100.0;

/// What came out of the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Played {
    /// Seconds from its plans to the next one's.
    pub seconds: f64,
    /// Seconds in which the coordinator's link carried something in.
    pub link_in: f64,
    /// The same out.
    pub link_out: f64,
    /// Seconds of the coordinator's cores.
    pub cores: f64,
    /// Seconds of the driver.
    pub driver: f64,
    /// The most chunks that waited at once to be added up.
    pub waiting: usize,
}

/// What the coordinator sends.
#[derive(Clone, Copy, Debug)]
enum Down {
    Commit,
    Plan,
    /// So many, of the next step.
    Samples(usize),
    Sum(usize),
    Close,
}

/// What a worker sends.
#[derive(Clone, Copy, Debug)]
enum Up {
    Chunk(Node, usize),
    Committed,
}

/// How far a message has come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The sender has written it.
    Written,
    /// The worker's own link has carried it; downwards, the coordinator's.
    Hop,
    /// Both links have.
    Carried,
    /// It is where it is read.
    Came,
    /// It is read.
    Read,
    /// Whom it is for has woken up.
    Heard,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Down(Stage, usize, Down),
    Up(Stage, usize, Up),
    /// The driver has dealt with a chunk, and perhaps has a chunk of the sum.
    Reduced(Option<usize>),
    /// It has applied the update; it has written the journal and made the next plans.
    Applied,
    Planned,
    /// A worker has begun a step; its core has worked; a piece's time has come; it has updated.
    Begun(usize),
    Computed(usize),
    Due(usize),
    Updated(usize),
    /// Something that nothing waits for.
    Done,
}

#[derive(Debug)]
struct Worker {
    nodes: Vec<Node>,
    pieces: Vec<Piece>,
    samples: usize,
    /// Its connection at the coordinator: reading, writing, and its turns on the links.
    reads: LaneId,
    writes: LaneId,
    turn_in: LaneId,
    turn_out: LaneId,
    /// Its own links, its thread for the network, and the one that computes.
    link_out: LaneId,
    link_in: LaneId,
    net: LaneId,
    compute: LaneId,
    /// Plans, commits, updates and chunks of sums that it has seen; steps it committed and began.
    plans: usize,
    commits: usize,
    updates: usize,
    sums: usize,
    committed: usize,
    begun: usize,
    /// The piece it is at, when what that is of began, and seconds of a core that it still needs.
    at: usize,
    from: f64,
    left: f64,
    /// Chunks that wait for credit, of each node.
    waiting: Vec<VecDeque<usize>>,
}

struct Player<'a> {
    cluster: &'a Cluster,
    chunks: usize,
    clock: Clockwork<Event>,
    workers: Vec<Worker>,
    /// Links in and out, and cores.
    pools: [PoolId; 3],
    driver: LaneId,
    drove: f64,
    reduction: Reduction,
    emitted: usize,
    held: usize,
    most_held: usize,
    step: u32,
    started: f64,
    /// What was busy for how long when the step began.
    before: [f64; 4],
}

/// Plays a few steps and tells of the last.
#[must_use]
pub fn play(cluster: &Cluster) -> Played {
    let mut player = Player::new(cluster);
    player.plan();
    while let Some(event) = player.clock.next() {
        if let Some(played) = player.happens(event) {
            return played;
        }
    }
    Played::default()
}

impl<'a> Player<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let mut clock = Clockwork::default();
        let pools = [1, 1, cluster.cores.max(1)].map(|servers| clock.pool(servers));
        let [link_in, link_out, cores] = pools;
        let mut workers = Vec::with_capacity(cluster.workers);
        for nodes in cluster.layout() {
            let own = if cluster.one_machine { cores } else { clock.pool(usize::MAX) };
            let [up, down] = [clock.pool(1), clock.pool(1)];
            workers.push(Worker {
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
            });
        }
        Self {
            chunks: cluster.chunks(),
            driver: clock.lane(cores),
            reduction: Reduction::new(cluster.tree, cluster.chunks() as u32, cluster.batch_size),
            cluster,
            clock,
            workers,
            pools,
            drove: 0.0,
            emitted: 0,
            held: 0,
            most_held: 0,
            step: 0,
            started: 0.0,
            before: [0.0; 4],
        }
    }

    fn drive(&mut self, seconds: f64, event: Event) {
        self.drove += seconds;
        self.clock.work(self.driver, seconds, event);
    }

    fn busy(&self) -> [f64; 4] {
        let [link_in, link_out, cores] = self.pools.map(|pool| self.clock.busy(pool));
        [link_in, link_out, cores, self.drove]
    }

    // ---- The coordinator ----

    /// The driver commits a step, if there was one, and makes the next one's plans.
    fn plan(&mut self) {
        let costs = &self.cluster.costs;
        self.step += 1;
        self.started = self.clock.now();
        self.before = self.busy();
        self.reduction = Reduction::new(self.cluster.tree, self.chunks as u32, self.cluster.batch_size);
        (self.emitted, self.most_held) = (0, 0);
        // A commit, a beginning, a plan and samples for each.
        let told = 4.0 * costs.driver_message * self.workers.len() as f64;
        self.drive(costs.driver_step + told, Event::Planned);
    }

    fn planned(&mut self) {
        for at in 0..self.workers.len() {
            if self.step > 1 {
                self.send(at, Down::Commit);
            }
            self.send(at, Down::Plan);
            if self.workers[at].samples > 0 {
                self.send(at, Down::Samples(self.workers[at].samples));
            }
        }
    }

    /// A worker's chunk has come to the driver.
    fn chunk(&mut self, node: Node, chunk: usize) {
        let costs = self.cluster.costs;
        let elements = self.cluster.elements(chunk) as f64;
        let mut seconds = costs.driver_message * self.around(chunk);
        let mut emitted = None;
        if let Verdict::Take(dues) = self.reduction.contribute(node, chunk as u32) {
            self.held += 1;
            for due in dues {
                match due {
                    Due::Add { .. } => {
                        self.held -= 1;
                        seconds += costs.add_element * elements;
                    }
                    Due::Rise { .. } => {}
                    Due::Emit { .. } => {
                        self.held -= 1;
                        seconds += costs.norm_element * elements;
                        seconds += costs.driver_message * self.workers.len() as f64;
                        emitted = Some(chunk);
                    }
                }
                self.most_held = self.most_held.max(self.held);
            }
            self.most_held = self.most_held.max(self.held);
        }
        self.drive(seconds, Event::Reduced(emitted));
    }

    /// Messages that a chunk makes: a header goes before the first and a trailer after the last.
    fn around(&self, chunk: usize) -> f64 {
        1.0 + f64::from(u8::from(chunk == 0)) + f64::from(u8::from(chunk + 1 == self.chunks))
    }

    fn reduced(&mut self, chunk: usize) {
        for at in 0..self.workers.len() {
            self.send(at, Down::Sum(chunk));
        }
        self.emitted += 1;
        if self.emitted == self.chunks {
            for at in 0..self.workers.len() {
                self.send(at, Down::Close);
            }
            let seconds = self.cluster.costs.update_element * self.cluster.parameters as f64;
            self.drive(seconds, Event::Applied);
        }
    }

    /// The step counts; if it was the last, this is what came out of it.
    fn applied(&mut self) -> Option<Played> {
        if self.step < STEPS {
            self.plan();
            return None;
        }
        let now = self.busy();
        let [link_in, link_out, cores, driver] = std::array::from_fn(|what| now[what] - self.before[what]);
        let seconds = self.clock.now() - self.started;
        Some(Played { seconds, link_in, link_out, cores, driver, waiting: self.most_held })
    }

    // ---- What travels ----

    /// Bytes of floats, and of everything.
    fn down_bytes(&self, what: Down) -> (f64, f64) {
        let floats = match what {
            Down::Sum(chunk) => self.chunk_bytes(chunk),
            _ => 0.0,
        };
        let samples = match what {
            Down::Samples(samples) => samples as f64 * self.cluster.sample_bytes,
            _ => 0.0,
        };
        (floats, floats + samples + SMALL)
    }

    fn up_bytes(&self, what: Up) -> (f64, f64) {
        match what {
            Up::Chunk(_, chunk) => {
                let floats = self.chunk_bytes(chunk);
                (floats, floats + SMALL * self.around(chunk))
            }
            Up::Committed => (0.0, SMALL),
        }
    }

    fn chunk_bytes(&self, chunk: usize) -> f64 {
        (self.cluster.elements(chunk) * self.cluster.wire_dtype.bytes()) as f64
    }

    /// Messages that something is.
    fn messages(&self, what: Up) -> f64 {
        match what {
            Up::Chunk(_, chunk) => self.around(chunk),
            Up::Committed => 1.0,
        }
    }

    fn send(&mut self, at: usize, what: Down) {
        let costs = &self.cluster.costs;
        let seconds = costs.message + costs.send_byte * self.down_bytes(what).0;
        self.clock.work(self.workers[at].writes, seconds, Event::Down(Stage::Written, at, what));
    }

    fn contribute(&mut self, at: usize, what: Up) {
        let costs = &self.cluster.costs;
        let seconds =
            costs.worker_message * self.messages(what) + costs.worker_send_byte * self.up_bytes(what).0;
        self.clock.work(self.workers[at].net, seconds, Event::Up(Stage::Written, at, what));
    }

    fn down(&mut self, stage: Stage, at: usize, what: Down) {
        let (floats, bytes) = self.down_bytes(what);
        let (network, costs, worker) = (self.cluster.network, self.cluster.costs, &self.workers[at]);
        let next = |stage| Event::Down(stage, at, what);
        match stage {
            Stage::Written => {
                self.clock.work(worker.turn_out, bytes / network.coordinator_out, next(Stage::Hop));
            }
            // A link that is no narrower than the one before it takes no time of its own.
            Stage::Hop if network.worker_in < network.coordinator_out => {
                self.clock.work(worker.link_in, bytes / network.worker_in, next(Stage::Carried));
            }
            Stage::Hop | Stage::Carried => {
                self.clock.after(0.5 * network.round_trip + costs.wake, next(Stage::Came));
            }
            Stage::Came => {
                let seconds = costs.worker_message + costs.worker_receive_byte * floats;
                self.clock.work(worker.net, seconds, next(Stage::Read));
            }
            Stage::Read => self.clock.after(costs.wake, next(Stage::Heard)),
            Stage::Heard => self.told(at, what),
        }
    }

    fn up(&mut self, stage: Stage, at: usize, what: Up) {
        let (floats, bytes) = self.up_bytes(what);
        let messages = self.messages(what);
        let (network, costs, worker) = (self.cluster.network, self.cluster.costs, &self.workers[at]);
        let next = |stage| Event::Up(stage, at, what);
        match stage {
            Stage::Written if network.worker_out < network.coordinator_in => {
                self.clock.work(worker.link_out, bytes / network.worker_out, next(Stage::Hop));
            }
            Stage::Written | Stage::Hop => {
                self.clock.work(worker.turn_in, bytes / network.coordinator_in, next(Stage::Carried));
            }
            Stage::Carried => self.clock.after(0.5 * network.round_trip + costs.wake, next(Stage::Came)),
            Stage::Came => {
                let seconds = costs.message * messages + costs.receive_byte * floats;
                self.clock.work(worker.reads, seconds, next(Stage::Read));
            }
            Stage::Read => self.clock.after(costs.wake, next(Stage::Heard)),
            Stage::Heard => match what {
                Up::Chunk(node, chunk) => self.chunk(node, chunk),
                Up::Committed => self.drive(costs.driver_message, Event::Done),
            },
        }
    }

    // ---- A worker ----

    fn told(&mut self, at: usize, what: Down) {
        let apply = self.cluster.costs.apply_element;
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

    fn commit(&mut self, at: usize) {
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

    fn piece(&mut self, at: usize) {
        let now = self.clock.now();
        let worker = &mut self.workers[at];
        let Some(piece) = worker.pieces.get(worker.at) else { return };
        if piece.begins {
            worker.from = now;
        }
        worker.left = piece.cpu;
        self.slice(at);
    }

    fn slice(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if worker.left > 0.0 {
            let slice = if self.cluster.one_machine { worker.left.min(SLICE) } else { worker.left };
            worker.left -= slice;
            self.clock.work(worker.compute, slice, Event::Computed(at));
        } else {
            let due = worker.pieces.get(worker.at).map_or(0.0, |piece| piece.due);
            let wait = (worker.from + due - self.clock.now()).max(0.0);
            self.clock.after(wait, Event::Due(at));
        }
    }

    fn due(&mut self, at: usize) {
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
        let credits = WINDOW + worker.sums.saturating_sub(before);
        let mut leaving = Vec::new();
        for (node, waiting) in worker.nodes.iter().zip(&mut worker.waiting) {
            while let Some(chunk) = waiting.pop_front_if(|chunk| *chunk < credits) {
                leaving.push(Up::Chunk(*node, chunk));
            }
        }
        leaving.into_iter().for_each(|what| self.contribute(at, what));
    }

    fn happens(&mut self, event: Event) -> Option<Played> {
        match event {
            Event::Down(stage, at, what) => self.down(stage, at, what),
            Event::Up(stage, at, what) => self.up(stage, at, what),
            Event::Reduced(Some(chunk)) => self.reduced(chunk),
            Event::Applied => return self.applied(),
            Event::Planned => self.planned(),
            Event::Begun(at) => self.piece(at),
            Event::Computed(at) => self.slice(at),
            Event::Due(at) => self.due(at),
            Event::Updated(at) => {
                self.workers[at].updates += 1;
                self.commit(at);
            }
            Event::Reduced(None) | Event::Done => {}
        }
        None
    }
}
