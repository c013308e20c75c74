//! The events that go into the core, and the actions that come out of it.

use tally_numerics::digest::Digest;
use tally_numerics::schema::Sums;
use tally_numerics::tree::Node;

use super::cluster::{DeviceInfo, LinkAbility, Session};
use tally_numerics::reduction::ReductionStep;

/// What was computed for one leaf.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The leaf.
    pub leaf: u32,
    /// How many samples it has.
    pub samples: u32,
    /// The sums of its samples' losses.
    pub losses: Sums,
}

/// How an audit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditResult {
    /// The same bits.
    Equal,
    /// This worker's bits differed from the others'.
    Alone(Session),
    /// There was no third worker to decide.
    Undecided,
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker has joined; its hello and its manifest were checked.
    Joined {
        /// Its session.
        session: Session,
        /// For people.
        name: String,
        /// What it computes with.
        device: DeviceInfo,
        /// Threads it computes with.
        threads: u32,
        /// Steps of this run whose state it holds, with their digests.
        held: Vec<(u64, Digest)>,
        /// How it can have links with other workers.
        links: LinkAbility,
        /// The machine on which it runs; empty if it is not known.
        machine: String,
    },
    /// The state that a worker was asked for has arrived completely. The server keeps it until [`Action::Adopt`].
    Uploaded {
        /// Its session.
        session: Session,
        /// The state's step.
        step: u64,
        /// The digest of what came.
        digest: Digest,
    },
    /// A worker has loaded the state that it was sent, or has confirmed the state that it holds.
    Loaded {
        /// Its session.
        session: Session,
        /// The state's step.
        step: u64,
        /// The digest it computed.
        digest: Digest,
    },
    /// A contribution is opened.
    Header {
        /// From whom.
        from: AttemptId,
        /// The node.
        node: Node,
        /// Digest of the replica it was computed with.
        digest: Digest,
        /// Digest of the sample ids.
        samples: u64,
    },
    /// A chunk of a contribution has come. The server has scanned its floats.
    Chunk {
        /// From whom.
        from: AttemptId,
        /// The node.
        node: Node,
        /// The chunk.
        index: u32,
        /// The digest of its floats, if [`Core::is_audited`](super::Core::is_audited) asks for it.
        digest: Option<Digest>,
        /// What is wrong with its floats, if anything.
        fault: Option<String>,
    },
    /// A contribution is closed.
    Trailer {
        /// From whom.
        from: AttemptId,
        /// The node.
        node: Node,
        /// What was computed.
        receipts: Vec<Receipt>,
        /// Seconds it took.
        computed: f64,
    },
    /// A worker's gradient has NaN or infinity in it.
    NonFinite {
        /// From whom.
        from: AttemptId,
        /// The node.
        node: Node,
        /// The tensor.
        tensor: String,
    },
    /// The master state has the update of the step that was closed.
    Applied {
        /// Digest of its new state.
        digest: Digest,
    },
    /// The root's norm is NaN or infinite: it must not be applied.
    Diverged,
    /// A worker has committed a step.
    Committed {
        /// Its session.
        session: Session,
        /// The step.
        step: u64,
        /// The digest of its new state.
        digest: Digest,
        /// Seconds it took to apply the update.
        apply: f64,
        /// Seconds from the beginning of its contribution to the last reduced chunk; 0 for a
        /// spare.
        round: f64,
        /// The chunks whose sums were others than the coordinator's; `None` if the coordinator no longer knows its own.
        differing: Option<Vec<u32>>,
    },
    /// A worker has answered a leaf of the test pass; the server keeps the answers.
    Answered {
        /// Its session.
        session: Session,
        /// The state's step.
        step: u64,
        /// The leaf.
        leaf: u32,
    },
    /// A worker has computed a node that another contributes.
    Audited {
        /// From whom.
        from: AttemptId,
        /// The node.
        node: Node,
        /// The digest of the sum it got.
        digest: Digest,
    },
    /// The digest of a chunk of the root that [`Action::DigestSums`] asks for.
    Summed {
        /// The chunk.
        chunk: u32,
        /// The digest of its sum.
        digest: Digest,
    },
    /// A worker has opened the link to another that it was told to open.
    LinkUp {
        /// Who.
        session: Session,
        /// To whom.
        peer: Session,
    },
    /// A link is broken, or could not be opened.
    LinkDown {
        /// Who says so.
        session: Session,
        /// The link's other end.
        peer: Session,
        /// Why, in words.
        reason: String,
    },
    /// A worker lacks sums of a step that is closed.
    Need {
        /// Who, and in which attempt.
        from: AttemptId,
        /// The chunks.
        chunks: Vec<u32>,
    },
    /// Time has passed.
    Tick,
    /// A worker is gone, or has to go.
    Lost {
        /// Its session.
        session: Session,
        /// Why, in words.
        reason: String,
        /// It left on its own request.
        polite: bool,
    },
    /// The server is ready; a resumed run may have nothing left to do.
    Wake,
    /// The run is to stop after the step in flight.
    Stop,
}

/// Which attempt a worker's message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptId {
    /// The sender.
    pub session: Session,
    /// The step it means.
    pub step: u64,
    /// The attempt it means.
    pub attempt: u32,
}

/// An action for the server. Actions are performed in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send a worker the master state, then everything that was broadcast of the step in flight, then all further
    /// broadcasts.
    SendState {
        /// To whom.
        session: Session,
        /// The step and attempt in flight.
        during: Option<(u64, u32)>,
    },
    /// Tell a worker that the state it holds is the committed one. Send it everything that was broadcast of the step
    /// in flight, then all further broadcasts.
    Keep {
        /// Whom.
        session: Session,
        /// The step and attempt in flight.
        during: Option<(u64, u32)>,
    },
    /// Ask a worker for the state of a step.
    Upload {
        /// Whom.
        session: Session,
        /// The step.
        step: u64,
    },
    /// Make the uploaded state the master state.
    Adopt {
        /// Its step.
        step: u64,
    },
    /// Send a worker the samples of a leaf.
    SendLeaf {
        /// To whom.
        session: Session,
        /// The step.
        step: u64,
        /// The leaf.
        leaf: u32,
        /// The samples' ids.
        ids: Vec<u32>,
    },
    /// Send a worker a leaf of the test pass.
    SendTestLeaf {
        /// To whom.
        session: Session,
        /// The state's step.
        step: u64,
        /// The leaf.
        leaf: u32,
    },
    /// Tell every replica that an attempt begins.
    Begin {
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// Its learning rate.
        learning_rate: f32,
    },
    /// Give a worker nodes to contribute.
    Plan {
        /// To whom.
        session: Session,
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// Samples of the whole step.
        samples: usize,
        /// The nodes.
        nodes: Vec<Node>,
        /// They were first assigned to another worker.
        takeover: bool,
        /// Their chunks go to owners.
        to_owners: bool,
    },
    /// Have a worker open a link to another.
    Dial {
        /// Whom.
        session: Session,
        /// To whom.
        peer: Session,
    },
    /// Tell every replica that the coordinator adds these chunks up from here on: workers send it what they have of them. A
    /// sum that was whole counts no longer.
    TakeBack {
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// The chunks.
        chunks: Vec<u32>,
    },
    /// Send a worker sums of the step in flight, or of the one that was committed last, that did not reach it.
    Resend {
        /// To whom.
        session: Session,
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// The chunks.
        chunks: Vec<u32>,
    },
    /// Have a worker compute a node and answer with [`Event::Audited`].
    Audit {
        /// Whom.
        session: Session,
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// Samples of the whole step.
        samples: usize,
        /// The node.
        node: Node,
    },
    /// Tell the digests of these chunks of the root with [`Event::Summed`]: of those that are whole now, and of each that
    /// becomes whole later in the attempt.
    DigestSums {
        /// The chunks.
        chunks: Vec<u32>,
    },
    /// Keep the chunk that was just handled as this node's value.
    Take {
        /// The node.
        node: Node,
        /// The chunk.
        index: u32,
    },
    /// Do an addition of the tree.
    Reduce(ReductionStep),
    /// The root is whole: send the clip factor, apply the update to the master state, then report it with
    /// [`Event::Applied`] or [`Event::Diverged`].
    Close {
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// Its learning rate.
        learning_rate: f32,
    },
    /// Write the step's line to the journal, then tell every replica that it counts.
    Commit(Box<Committed>),
    /// An attempt is void: drop what was reduced, tell every replica.
    Abort {
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// A worker has to go; its session is over.
    Evict {
        /// Who.
        session: Session,
        /// Why.
        reason: String,
        /// Its replica's digest was wrong (**REP-1**).
        drifted: bool,
    },
    /// Write a checkpoint of the master state.
    Checkpoint {
        /// Its step.
        step: u64,
    },
    /// A test pass begins.
    TestBegin {
        /// The state's step.
        step: u64,
        /// The epoch that is over.
        epoch: u32,
    },
    /// Every leaf of the test pass is answered.
    TestDone {
        /// The state's step.
        step: u64,
        /// The epoch that is over.
        epoch: u32,
    },
    /// Something worth a line in the journal and the log.
    Report(ClusterEvent),
    /// The run is over.
    Finish(RunOutcome),
}

/// A committed step, as the journal records it.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The step, from 1.
    pub step: u64,
    /// Its epoch, from 1.
    pub epoch: u32,
    /// The attempt that counted.
    pub attempt: u32,
    /// Means over the batch.
    pub loss: Sums,
    /// Samples of the batch.
    pub samples: usize,
    /// Workers that contributed.
    pub workers: usize,
    /// Wall time from the plans to the commit.
    pub seconds: f64,
    /// Seconds the slowest worker computed.
    pub compute_seconds: f64,
    /// Seconds from there until the root was whole.
    pub transfer_seconds: f64,
    /// Average seconds that workers waited for the slowest.
    pub waiting_seconds: f64,
    /// The worker that computed longest.
    pub slowest: Option<Session>,
    /// Its learning rate.
    pub learning_rate: f32,
    /// Workers that added chunks up; 0 in the star.
    pub owners: usize,
    /// Digest of the new master state.
    pub digest: Digest,
}

/// Something that happened to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterEvent {
    /// A worker is ready for work.
    Ready {
        /// Who.
        session: Session,
    },
    /// A worker is gone.
    Lost {
        /// Who.
        session: Session,
        /// Its name.
        name: String,
        /// Why.
        reason: String,
        /// It left on its own request.
        polite: bool,
        /// It has been ready for work before.
        was_ready: bool,
    },
    /// A restarted coordinator continues from the state that a worker held.
    Adopted {
        /// Who held it.
        session: Session,
        /// Its step.
        step: u64,
    },
    /// A worker is past its deadline: its leaves were assigned to others as well.
    Late {
        /// Who.
        session: Session,
        /// The step.
        step: u64,
        /// How many leaves.
        leaves: u32,
    },
    /// From this step on gradients are added up in another way.
    Reduction {
        /// The step.
        step: u64,
        /// How many workers add up; 0 for the star.
        owners: usize,
        /// Why.
        reason: String,
    },
    /// The coordinator adds up chunks that workers owned.
    TakenBack {
        /// The step.
        step: u64,
        /// How many chunks.
        chunks: usize,
        /// Why.
        reason: String,
    },
    /// Two workers have computed the same node, or the coordinator has added up what an owner did.
    Audited {
        /// The step.
        step: u64,
        /// The node; `None` if an owner's sums were audited.
        node: Option<Node>,
        /// Who contributed it, or added up, by name.
        owner: String,
        /// Who checked it first, by name.
        checker: String,
        /// The worker whose bits differed, by name.
        alone: Option<String>,
        /// How it ended.
        result: AuditResult,
    },
    /// Leaves of a lost or late worker were assigned to others in the same step.
    TakenOver {
        /// The step.
        step: u64,
        /// How many leaves.
        leaves: u32,
        /// By whom, and how many leaves each (a late worker's may go to several).
        by: Vec<(Session, u32)>,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// All epochs are done.
    Done,
    /// It was asked to stop.
    Stopped,
    /// The loss or a gradient became NaN or infinite at this step.
    Diverged {
        /// The step.
        step: u64,
        /// The tensor in which it was found.
        tensor: String,
    },
}
