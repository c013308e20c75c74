//! What the parts of a session send each other: the session loop to the compute thread, both to the sender, and the sender to
//! the links.

use bytes::Bytes;
use tally_numerics::layout::Layout;
use tally_proto::v1::{
    ContributionBegin, ContributionEnd, MessageContext, StateChunk, coordinator_message, gradient_down,
};
use tokio::sync::OwnedSemaphorePermit;

/// An input of the compute thread. The permit is returned when the message has been processed.
#[derive(Debug)]
pub enum Input {
    /// From the control stream.
    Control(MessageContext, coordinator_message::Body, OwnedSemaphorePermit),
    /// From the gradient stream.
    Gradient(MessageContext, gradient_down::Body, OwnedSemaphorePermit),
    /// The session is over.
    End,
}

/// A command to the sender.
#[derive(Debug)]
pub enum SendCommand {
    /// A node's contribution begins.
    ContributionBegin {
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// The message.
        header: ContributionBegin,
    },
    /// The next chunk of a node.
    Chunk {
        /// The attempt.
        attempt: u32,
        /// The node.
        node: u32,
        /// The chunk.
        index: u32,
        /// The floats.
        data: Payload,
    },
    /// The node's contribution is complete.
    ContributionEnd {
        /// The attempt.
        attempt: u32,
        /// The message.
        trailer: ContributionEnd,
    },
    /// An attempt is announced: from now on it is known where its chunks go.
    Attempt {
        /// The attempt.
        attempt: u32,
        /// Who adds up which chunk.
        layout: Layout,
    },
    /// The coordinator adds these chunks up from here on.
    TakeBack {
        /// The attempt.
        attempt: u32,
        /// The chunks.
        chunks: Vec<u32>,
    },
    /// A sum that this worker has made whole, for the coordinator. It needs no credit.
    Sum {
        /// The step.
        step: u64,
        /// The attempt.
        attempt: u32,
        /// The chunk.
        index: u32,
        /// The floats.
        data: Bytes,
    },
    /// A chunk of the state that the coordinator asked for. It needs no credit.
    State {
        /// The state's step.
        step: u64,
        /// The message.
        chunk: StateChunk,
    },
    /// The coordinator has summed this chunk.
    Reduced {
        /// The attempt.
        attempt: u32,
        /// The chunk.
        index: u32,
    },
    /// Attempts up to this one are void.
    Void {
        /// The attempt.
        attempt: u32,
    },
}

/// The floats of a chunk.
#[derive(Debug)]
pub enum Payload {
    /// In the message.
    Bytes(Bytes),
    /// In a slot of shared memory.
    Slot(u32),
}

/// A chunk of a node, on its way to its owner or to its machine's combiner.
#[derive(Debug, PartialEq, Eq)]
pub struct PartialSum {
    /// The session of the worker to which it goes.
    pub to: u64,
    /// The step.
    pub step: u64,
    /// The attempt.
    pub attempt: u32,
    /// The node.
    pub node: u32,
    /// The chunk.
    pub index: u32,
    /// The digest of the replica that computed it.
    pub digest: u64,
    /// The floats, as they travel.
    pub data: Bytes,
}
