//! The inputs of the driver.

use std::net::IpAddr;
use std::time::Instant;

use tally_core::cluster::{DeviceInfo, Session};
use tally_core::events::{AttemptId, Event};
use tally_numerics::digest::Digest;
use tally_numerics::manifest::Manifest;
use tally_numerics::tree::Node;
use tally_proto::pool::Chunk;
use tally_proto::span::Span;
use tally_proto::v1;
use tokio::sync::oneshot;

use super::outbox::{Bulk, Control};

/// A worker's hello.
#[derive(Clone, Debug)]
pub struct Hello {
    /// For people.
    pub name: String,
    /// Threads it computes with.
    pub threads: u32,
    /// Its capabilities.
    pub capabilities: Vec<String>,
    /// Steps of this run whose state it holds, newest first, with their digests.
    pub held: Vec<(u64, Digest)>,
    /// Both ends of its connection, if it has one.
    pub ends: Option<ConnectionEnds>,
}

/// The addresses of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionEnds {
    /// The worker's.
    pub worker: IpAddr,
    /// The coordinator's, as the worker reaches it.
    pub coordinator: IpAddr,
}

/// The inputs of the driver.
#[derive(Debug)]
pub enum Input {
    /// A worker said hello and may come in.
    Hello {
        /// Its new session.
        session: Session,
        /// What it said.
        hello: Hello,
        /// Where to send to.
        control: Control,
        /// Memory that it may put its chunks into, if it is on this machine.
        memory: Option<v1::Segment>,
    },
    /// It has shown its manifest.
    Offer {
        /// Its session.
        session: Session,
        /// The manifest, or what is wrong with it.
        manifest: Result<Manifest, String>,
        /// What it computes with.
        device: DeviceInfo,
        /// Where other workers can reach it.
        peer: Option<v1::PeerEndpoint>,
    },
    /// A worker has committed a step with a digest that is not the commit's, and these sums from owners.
    Differs {
        /// What it said of the step.
        committed: Event,
        /// The checksums of what owners sent it.
        sums: Vec<v1::SumChecksum>,
    },
    /// It cannot go on.
    Failed {
        /// Its session.
        session: Session,
        /// Why, in its own words.
        what: String,
    },
    /// It has opened its gradient stream.
    Attach {
        /// Its session.
        session: Session,
        /// Where to send to.
        bulk: Bulk,
        /// It reads sums from shared memory.
        reads_shared_sums: bool,
        /// Told whether the session is one.
        known: oneshot::Sender<bool>,
    },
    /// A message that needs no translation.
    Event(Event),
    /// A chunk with its floats.
    Chunk {
        /// From whom.
        from: AttemptId,
        /// The node.
        node: Node,
        /// The chunk.
        index: u32,
        /// The floats, or what is wrong with them.
        data: Result<Chunk, String>,
    },
    /// A chunk of the state that a worker was asked for.
    State {
        /// From whom.
        session: Session,
        /// The state's step.
        step: u64,
        /// 0 for the parameters, or a moment's number from 1.
        vector: u32,
        /// The chunk.
        index: u32,
        /// The floats, or what is wrong with them.
        data: Result<Chunk, String>,
    },
    /// A microbatch of the test pass, to be checked against what was asked.
    Evaluated {
        /// From whom.
        session: Session,
        /// The state's step.
        step: u64,
        /// Its losses and metrics.
        evaluated: v1::Evaluated,
    },
    /// Spans of a worker's time, by its clock.
    Spans {
        /// From whom.
        session: Session,
        /// The step that it has committed.
        step: u64,
        /// What it did.
        spans: Vec<Span>,
        /// When this came.
        arrived: Instant,
    },
    /// A worker's answer to a question about its clock.
    Clock {
        /// From whom.
        session: Session,
        /// The question.
        number: u64,
        /// When the question came, by the worker's clock.
        received: f64,
        /// When the answer left, by the worker's clock.
        sent: f64,
        /// When the answer came.
        arrived: Instant,
    },
    /// A request for the status.
    Status(oneshot::Sender<v1::StatusReply>),
    /// The user asks to stop.
    Stop,
}
