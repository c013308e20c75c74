//! A few steps of a cluster, simulated chunk by chunk on a virtual clock, with the dependencies of a real run.
//!
//! Chunks of a subtree leave while the last of it is computed, as far as credits reach, and those
//! of the sum while later ones still come. Additions are those of the run's own bookkeeping
//! ([`Reduction`]), and the subtrees those that its workers would be given. What TCP does beside
//! sharing a link evenly is left out: slow start, losses, retransmissions.

mod travel;
mod worker;

use tally_numerics::tree::Node;
use tally_numerics::wire::WireDtype;

use super::cluster::Cluster;
use super::event_simulation::{EventSimulation, LaneId, PoolId};
use tally_numerics::reduction::{Contribution, Reduction, ReductionStep};
use worker::Worker;

/// Steps that are played. The last is looked at: it begins as the one before it did.
const STEPS: u32 = 3;

/// The result of the last step.
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
    /// Seconds of the driver, and of all of the coordinator.
    pub driver: f64,
    /// See `driver`.
    pub coordinator: f64,
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
    PieceDue(usize),
    Updated(usize),
    /// Something that nothing waits for.
    Done,
}

struct Player<'a> {
    cluster: &'a Cluster,
    chunks: usize,
    clock: EventSimulation<Event>,
    workers: Vec<Worker>,
    /// Links in and out, and cores.
    pools: [PoolId; 3],
    driver: LaneId,
    drove: f64,
    /// Seconds of the coordinator's other threads.
    served: f64,
    reduction: Reduction,
    emitted: usize,
    step: u32,
    started: f64,
    /// What was busy for how long when the step began.
    before: [f64; 5],
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
        let mut clock = EventSimulation::default();
        let pools = [1, 1, cluster.cores.max(1)].map(|servers| clock.pool(servers));
        let [.., cores] = pools;
        let mut workers = Vec::with_capacity(cluster.workers);
        for nodes in cluster.layout() {
            let own = if cluster.one_machine { cores } else { clock.pool(usize::MAX) };
            workers.push(Worker::new(cluster, nodes, &mut clock, pools, own));
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
            served: 0.0,
            emitted: 0,
            step: 0,
            started: 0.0,
            before: [0.0; 5],
        }
    }

    /// Gradients travel as something that floats are rounded to.
    fn rounds(&self) -> bool {
        self.cluster.wire_dtype != WireDtype::F32
    }

    fn drive(&mut self, seconds: f64, event: Event) {
        self.drove += seconds;
        self.clock.work(self.driver, seconds, event);
    }

    fn busy(&self) -> [f64; 5] {
        let [link_in, link_out, cores] = self.pools.map(|pool| self.clock.busy(pool));
        [link_in, link_out, cores, self.drove, self.drove + self.served]
    }

    // ---- The coordinator ----

    /// The driver commits a step, if there was one, and makes the next one's plans.
    fn plan(&mut self) {
        let costs = &self.cluster.costs;
        self.step += 1;
        self.started = self.clock.now();
        self.before = self.busy();
        self.reduction = Reduction::new(self.cluster.tree, self.chunks as u32, self.cluster.batch_size);
        self.emitted = 0;
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
        let rounding = if self.rounds() { costs.round_element } else { 0.0 };
        let mut seconds = costs.driver_message * self.around(chunk);
        let mut emitted = None;
        if let Contribution::Take(dues) = self.reduction.contribute(node, chunk as u32) {
            for due in dues {
                match due {
                    ReductionStep::Add { .. } => {
                        seconds += (costs.add_element + rounding) * elements;
                    }
                    ReductionStep::Promote { .. } => {}
                    ReductionStep::Ready { .. } => {
                        seconds += (costs.norm_element + rounding) * elements;
                        seconds += costs.driver_message * self.workers.len() as f64;
                        emitted = Some(chunk);
                    }
                }
            }
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
        let [link_in, link_out, cores, driver, coordinator] =
            std::array::from_fn(|what| now[what] - self.before[what]);
        let seconds = self.clock.now() - self.started;
        Some(Played { seconds, link_in, link_out, cores, driver, coordinator })
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
            Event::PieceDue(at) => self.due(at),
            Event::Updated(at) => {
                self.workers[at].updates += 1;
                self.commit(at);
            }
            Event::Reduced(None) | Event::Done => {}
        }
        None
    }
}
