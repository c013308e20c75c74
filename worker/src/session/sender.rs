//! Sends contributions, as far as credits allow.
//!
//! A chunk may leave once it is less than a window ahead of the number of chunks already
//! reduced; this bounds the coordinator's memory. Other chunks wait here, node by node, so that a node that
//! waits does not delay another node: a survivor may have to send a lost worker's node before its own can go on
//! (**LIVE-1**).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tally_numerics::CREDIT_WINDOW;
use tally_proto::v1::gradient_up::Body;
use tally_proto::v1::{Chunk, ContributionBegin, ContributionEnd, GradientUp, MessageContext, StateChunk};
use tokio::sync::mpsc;

use super::slots::SlotPool;
use super::timeline::SendTrack;

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

/// The contribution of one node, as far as it has not left.
#[derive(Debug)]
struct Node {
    node: u32,
    header: Option<ContributionBegin>,
    chunks: VecDeque<(u32, Payload)>,
    trailer: Option<ContributionEnd>,
}

/// The contributions of one attempt. Attempts only ever rise, over all steps.
#[derive(Debug)]
struct Outgoing {
    step: u64,
    attempt: u32,
    nodes: Vec<Node>,
    reduced: Vec<bool>,
    credits: usize,
    state: VecDeque<(u64, StateChunk)>,
    slots: Option<Arc<SlotPool>>,
}

impl Outgoing {
    fn new(chunks: usize, slots: Option<Arc<SlotPool>>) -> Self {
        Self {
            step: 0,
            attempt: 0,
            nodes: Vec::new(),
            reduced: vec![false; chunks],
            credits: CREDIT_WINDOW,
            state: VecDeque::new(),
            slots,
        }
    }

    /// Moves on to `attempt` if it is newer; returns false if it is older.
    fn advance_to_attempt(&mut self, attempt: u32) -> bool {
        if attempt > self.attempt {
            self.attempt = attempt;
            self.nodes.clear();
            self.reduced.fill(false);
            self.credits = CREDIT_WINDOW;
            if let Some(slots) = &self.slots {
                slots.release_before(attempt);
            }
        }
        attempt == self.attempt
    }

    fn take(&mut self, command: SendCommand) {
        match command {
            SendCommand::ContributionBegin { step, attempt, header } if self.advance_to_attempt(attempt) => {
                self.step = step;
                let node = header.node;
                self.nodes.push(Node { node, header: Some(header), chunks: VecDeque::new(), trailer: None });
            }
            SendCommand::Chunk { attempt, node, index, data } if self.advance_to_attempt(attempt) => {
                if let Some(node) = self.nodes.iter_mut().find(|n| n.node == node) {
                    node.chunks.push_back((index, data));
                }
            }
            SendCommand::ContributionEnd { attempt, trailer } if self.advance_to_attempt(attempt) => {
                if let Some(node) = self.nodes.iter_mut().find(|n| n.node == trailer.node) {
                    node.trailer = Some(trailer);
                }
            }
            SendCommand::Reduced { attempt, index } if self.advance_to_attempt(attempt) => {
                if let Some(reduced) = self.reduced.get_mut(index as usize)
                    && !std::mem::replace(reduced, true)
                {
                    self.credits += 1;
                    if let Some(slots) = &self.slots {
                        slots.release(attempt, index);
                    }
                }
            }
            SendCommand::State { step, chunk } => self.state.push_back((step, chunk)),
            SendCommand::Void { attempt } => {
                self.advance_to_attempt(attempt.saturating_add(1));
            }
            // It belongs to an attempt that is void.
            _ => {}
        }
    }

    /// The next message that may leave, with the step and attempt it belongs to.
    fn next(&mut self) -> Option<(u64, u32, Body)> {
        if let Some((step, chunk)) = self.state.pop_front() {
            return Some((step, 0, Body::StateChunk(chunk)));
        }
        let body = self.next_of_step()?;
        Some((self.step, self.attempt, body))
    }

    fn next_of_step(&mut self) -> Option<Body> {
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            if let Some(header) = node.header.take() {
                return Some(Body::ContributionBegin(header));
            }
            // A chunk that is summed already need not be sent.
            while node
                .chunks
                .front()
                .is_some_and(|(index, _)| self.reduced.get(*index as usize) == Some(&true))
            {
                node.chunks.pop_front();
            }
            if let Some((index, data)) =
                node.chunks.pop_front_if(|(index, _)| (*index as usize) < self.credits)
            {
                // A slot may have become free since the chunk was computed.
                let write = |data: &Bytes| self.slots.as_ref()?.write(self.attempt, index, data);
                let (data, slot) = match data {
                    Payload::Slot(slot) => (Bytes::new(), Some(slot)),
                    Payload::Bytes(data) => match write(&data) {
                        Some(slot) => (Bytes::new(), Some(slot)),
                        None => (data, None),
                    },
                };
                return Some(Body::Chunk(Chunk { node: node.node, index, data, slot }));
            }
            if node.chunks.is_empty()
                && let Some(trailer) = node.trailer.take()
            {
                self.nodes.remove(at);
                return Some(Body::ContributionEnd(trailer));
            }
        }
        None
    }
}

/// Sends until the session ends. Chunks go into `slots` where there are some.
pub async fn run(
    context: MessageContext,
    chunks: usize,
    mut commands: mpsc::UnboundedReceiver<SendCommand>,
    up: mpsc::Sender<GradientUp>,
    slots: Option<Arc<SlotPool>>,
    sends: SendTrack,
) {
    let mut outgoing = Outgoing::new(chunks, slots);
    while let Some(command) = commands.recv().await {
        outgoing.take(command);
        let mut from = None;
        loop {
            while let Ok(command) = commands.try_recv() {
                outgoing.take(command);
            }
            let Some((step, attempt, body)) = outgoing.next() else { break };
            from.get_or_insert_with(Instant::now);
            let context = MessageContext { step, attempt, ..context };
            if up.send(GradientUp { context: Some(context), body: Some(body) }).await.is_err() {
                return;
            }
        }
        if let Some(from) = from {
            sends.record(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contribute(out: &mut Outgoing, attempt: u32, node: u32, chunks: u32) {
        out.take(SendCommand::ContributionBegin {
            step: 1,
            attempt,
            header: ContributionBegin { node, digest: 0, samples: 0 },
        });
        for index in 0..chunks {
            out.take(SendCommand::Chunk { attempt, node, index, data: Payload::Bytes(Bytes::new()) });
        }
        out.take(SendCommand::ContributionEnd {
            attempt,
            trailer: ContributionEnd { node, ..Default::default() },
        });
    }

    /// `h2` a header, `2.0` chunk 0 of node 2, `t2` a trailer.
    fn drain(out: &mut Outgoing) -> String {
        let mut sent = Vec::new();
        while let Some((_, _, body)) = out.next() {
            sent.push(match body {
                Body::ContributionBegin(h) => format!("h{}", h.node),
                Body::Chunk(c) => format!("{}.{}", c.node, c.index),
                Body::ContributionEnd(t) => format!("t{}", t.node),
                Body::StateChunk(c) => format!("s{}", c.index),
                Body::StreamOpen(_) => "open".into(),
            });
        }
        sent.join(" ")
    }

    #[test]
    fn chunks_leave_as_credits_come() {
        let mut out = Outgoing::new(CREDIT_WINDOW + 2, None);
        contribute(&mut out, 1, 2, CREDIT_WINDOW as u32 + 2);
        assert_eq!(drain(&mut out), "h2 2.0 2.1 2.2 2.3 2.4 2.5 2.6 2.7");
        out.take(SendCommand::Reduced { attempt: 1, index: 0 });
        out.take(SendCommand::Reduced { attempt: 1, index: 0 });
        assert_eq!(drain(&mut out), "2.8");
        out.take(SendCommand::Reduced { attempt: 1, index: 1 });
        assert_eq!(drain(&mut out), "2.9 t2");
    }

    #[test]
    fn live_1_a_node_that_waits_delays_no_other_and_a_summed_chunk_is_not_sent() {
        let mut out = Outgoing::new(10, None);
        contribute(&mut out, 1, 2, 10);
        drain(&mut out);
        out.take(SendCommand::Reduced { attempt: 1, index: 0 });
        // Node 3's owner died; its other chunks have to come from here before node 2 goes on.
        contribute(&mut out, 1, 3, 10);
        assert_eq!(drain(&mut out), "2.8 h3 3.1 3.2 3.3 3.4 3.5 3.6 3.7 3.8");
    }

    #[test]
    fn a_void_attempt_is_not_sent() {
        let mut out = Outgoing::new(10, None);
        contribute(&mut out, 1, 2, 10);
        out.next();
        out.take(SendCommand::Void { attempt: 1 });
        assert_eq!(drain(&mut out), "");
        contribute(&mut out, 1, 3, 1);
        assert_eq!(drain(&mut out), "");
        contribute(&mut out, 2, 3, 1);
        assert_eq!(drain(&mut out), "h3 3.0 t3");
    }
}
