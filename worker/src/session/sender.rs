//! Sends contributions: to the coordinator as far as credits allow, and to owners at once.
//!
//! A chunk may go to the coordinator once it is less than a window ahead of those of the coordinator's chunks that are
//! whole; this bounds the coordinator's memory. Other chunks wait here, node by node, so that a node that waits does not
//! delay another node: a survivor may have to send a lost worker's node before its own can go on (**LIVE-1**).
//!
//! What has gone to an owner is kept until the next attempt, because the coordinator may take the chunk back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tally_numerics::layout::{Layout, OwnChunks};
use tally_numerics::{CREDIT_WINDOW, tree};
use tally_proto::v1::gradient_up::Body;
use tally_proto::v1::{Chunk, ContributionBegin, ContributionEnd, GradientUp, MessageContext, StateChunk};
use tokio::sync::mpsc;

use super::messages::{PartialSum, Payload, SendCommand};
use super::peers::PeerSender;
use super::slots::SlotPool;
use super::timeline::SendTrack;

/// The contribution of one node, as far as it has not left.
#[derive(Debug)]
struct Node {
    node: u32,
    digest: u64,
    header: Option<ContributionBegin>,
    chunks: VecDeque<(u32, Payload)>,
    trailer: Option<ContributionEnd>,
}

/// The contributions of one attempt. Attempts only ever rise, over all steps.
#[derive(Debug)]
struct Outgoing {
    /// This worker's session.
    me: u64,
    step: u64,
    attempt: u32,
    /// Who adds up which chunk, once the attempt is announced.
    layout: Option<Layout>,
    /// The chunks that the coordinator adds up.
    own: OwnChunks,
    nodes: Vec<Node>,
    reduced: Vec<bool>,
    /// What has gone to owners: node, chunk, floats.
    kept: Vec<(u32, u32, Bytes)>,
    /// What goes to the coordinator instead, as credits allow.
    returned: VecDeque<(u32, u32, Bytes)>,
    sums: VecDeque<(u64, u32, u32, Bytes)>,
    state: VecDeque<(u64, StateChunk)>,
    slots: Option<Arc<SlotPool>>,
}

impl Outgoing {
    fn new(me: u64, chunks: usize, slots: Option<Arc<SlotPool>>) -> Self {
        Self {
            me,
            step: 0,
            attempt: 0,
            layout: None,
            own: OwnChunks::new(chunks as u32, &Layout::default()),
            nodes: Vec::new(),
            reduced: vec![false; chunks],
            kept: Vec::new(),
            returned: VecDeque::new(),
            sums: VecDeque::new(),
            state: VecDeque::new(),
            slots,
        }
    }

    /// Moves on to `attempt` if it is newer; returns false if it is older.
    fn advance_to_attempt(&mut self, attempt: u32) -> bool {
        if attempt > self.attempt {
            self.attempt = attempt;
            self.layout = None;
            self.nodes.clear();
            self.reduced.fill(false);
            self.kept.clear();
            self.returned.clear();
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
                let (node, digest) = (header.node, header.digest);
                let (header, chunks) = (Some(header), VecDeque::new());
                self.nodes.push(Node { node, digest, header, chunks, trailer: None });
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
                    self.own.became_whole(index);
                    if let Some(slots) = &self.slots {
                        slots.release(attempt, index);
                    }
                }
            }
            SendCommand::Attempt { attempt, layout }
                if self.advance_to_attempt(attempt) && self.layout.is_none() =>
            {
                self.own = OwnChunks::new(self.reduced.len() as u32, &layout);
                self.layout = Some(layout);
            }
            SendCommand::TakeBack { attempt, chunks } if self.advance_to_attempt(attempt) => {
                for chunk in chunks {
                    self.take_back(chunk);
                }
            }
            SendCommand::Sum { step, attempt, index, data } => {
                self.sums.push_back((step, attempt, index, data));
            }
            SendCommand::State { step, chunk } => self.state.push_back((step, chunk)),
            SendCommand::Void { attempt } => {
                self.advance_to_attempt(attempt.saturating_add(1));
            }
            // It belongs to an attempt that is void.
            _ => {}
        }
    }

    /// The coordinator adds this chunk up: what is here of it goes there.
    fn take_back(&mut self, chunk: u32) {
        // A worker that is sent a state is told of all chunks a second time.
        if (chunk as usize) < self.reduced.len() && !self.own.contains(chunk) {
            self.own.push(chunk);
            let kept = self.kept.iter().filter(|(_, index, _)| *index == chunk);
            self.returned.extend(kept.cloned());
        }
    }

    /// The next message that may leave.
    fn next(&mut self) -> Option<Next> {
        if let Some((step, chunk)) = self.state.pop_front() {
            return Some(Next::Coordinator(step, 0, Body::StateChunk(chunk)));
        }
        if let Some((step, attempt, index, data)) = self.sums.pop_front() {
            let body = self.chunk(tree::Node::ROOT.0, index, Payload::Bytes(data));
            return Some(Next::Coordinator(step, attempt, body));
        }
        self.next_of_step()
    }

    fn next_of_step(&mut self) -> Option<Next> {
        let (step, attempt) = (self.step, self.attempt);
        let to_coordinator = |body| Some(Next::Coordinator(step, attempt, body));
        let is_reduced = |reduced: &[bool], index: u32| reduced.get(index as usize) == Some(&true);
        self.returned.retain(|(_, index, _)| !is_reduced(&self.reduced, *index));
        let may = |(_, index, _): &(u32, u32, Bytes)| self.own.has_credit(*index, CREDIT_WINDOW);
        if let Some((node, index, data)) =
            self.returned.iter().position(may).and_then(|at| self.returned.remove(at))
        {
            return to_coordinator(self.chunk(node, index, Payload::Bytes(data)));
        }
        let mut at = 0;
        while at < self.nodes.len() {
            let node = &mut self.nodes[at];
            if let Some(header) = node.header.take() {
                return to_coordinator(Body::ContributionBegin(header));
            }
            // A chunk that is summed already need not be sent.
            while node.chunks.pop_front_if(|(index, _)| is_reduced(&self.reduced, *index)).is_some() {}
            let front = node.chunks.front().map(|(index, _)| *index);
            let to = |index| Some((index, self.layout.as_ref()?.destination(self.me, index)));
            match front.and_then(to) {
                // Where it goes is not known yet.
                None if front.is_some() => {}
                None => {
                    if let Some(trailer) = node.trailer.take() {
                        self.nodes.remove(at);
                        return to_coordinator(Body::ContributionEnd(trailer));
                    }
                }
                Some((index, None)) => {
                    let number = node.node;
                    if self.own.has_credit(index, CREDIT_WINDOW)
                        && let Some((index, data)) = node.chunks.pop_front()
                    {
                        return to_coordinator(self.chunk(number, index, data));
                    }
                }
                Some((_, Some(to))) => {
                    let (number, digest) = (node.node, node.digest);
                    // What goes to owners is never in the slots of the coordinator's memory.
                    let Some((index, Payload::Bytes(data))) = node.chunks.pop_front() else { continue };
                    if self.own.contains(index) {
                        self.returned.push_back((number, index, data));
                        return self.next_of_step();
                    }
                    self.kept.push((number, index, data.clone()));
                    let sum = PartialSum { to, step, attempt, node: number, index, digest, data };
                    return Some(Next::Peer(sum));
                }
            }
            at += 1;
        }
        None
    }

    /// A chunk for the coordinator, in shared memory if there is room: a slot may have become free since it was computed.
    fn chunk(&self, node: u32, index: u32, data: Payload) -> Body {
        let write = |data: &Bytes| self.slots.as_ref()?.write(self.attempt, index, data);
        let (data, slot) = match data {
            Payload::Slot(slot) => (Bytes::new(), Some(slot)),
            Payload::Bytes(data) => match write(&data) {
                Some(slot) => (Bytes::new(), Some(slot)),
                None => (data, None),
            },
        };
        Body::Chunk(Chunk { node, index, data, slot })
    }
}

/// Where a message goes.
#[derive(Debug)]
enum Next {
    /// To the coordinator, with its step and attempt.
    Coordinator(u64, u32, Body),
    /// To another worker.
    Peer(PartialSum),
}

/// Sends until the session ends. Chunks for the coordinator go into `slots` where there are some.
pub async fn run(
    context: MessageContext,
    chunks: usize,
    mut commands: mpsc::UnboundedReceiver<SendCommand>,
    up: mpsc::Sender<GradientUp>,
    peers: Option<PeerSender>,
    slots: Option<Arc<SlotPool>>,
    sends: SendTrack,
) {
    let mut outgoing = Outgoing::new(context.session, chunks, slots);
    while let Some(command) = commands.recv().await {
        outgoing.take(command);
        let mut from = None;
        loop {
            while let Ok(command) = commands.try_recv() {
                outgoing.take(command);
            }
            let Some(next) = outgoing.next() else { break };
            from.get_or_insert_with(Instant::now);
            let (step, attempt, body) = match next {
                Next::Coordinator(step, attempt, body) => (step, attempt, body),
                Next::Peer(sum) => {
                    if let Some(peers) = &peers {
                        peers.send(sum).await;
                    }
                    continue;
                }
            };
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
        out.take(SendCommand::Attempt { attempt, layout: Layout::default() });
        compute(out, attempt, node, chunks);
    }

    fn compute(out: &mut Outgoing, attempt: u32, node: u32, chunks: u32) {
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

    /// `h2` a header, `2.0` chunk 0 of node 2, `2.0>7` the same to owner 7, `t2` a trailer.
    fn drain(out: &mut Outgoing) -> String {
        let mut sent = Vec::new();
        while let Some(next) = out.next() {
            sent.push(match next {
                Next::Coordinator(_, _, Body::ContributionBegin(h)) => format!("h{}", h.node),
                Next::Coordinator(_, _, Body::Chunk(c)) => format!("{}.{}", c.node, c.index),
                Next::Coordinator(_, _, Body::ContributionEnd(t)) => format!("t{}", t.node),
                Next::Coordinator(_, _, Body::StateChunk(c)) => format!("s{}", c.index),
                Next::Coordinator(_, _, Body::StreamOpen(_)) => "open".into(),
                Next::Peer(sum) => format!("{}.{}>{}", sum.node, sum.index, sum.to),
            });
        }
        sent.join(" ")
    }

    /// `2.0 2.1 …`, as many as credits allow from the first on.
    fn window(node: u32, first: u32) -> String {
        let all: Vec<String> = (first..CREDIT_WINDOW as u32).map(|index| format!("{node}.{index}")).collect();
        all.join(" ")
    }

    #[test]
    fn chunks_leave_as_credits_come() {
        let mut out = Outgoing::new(9, CREDIT_WINDOW + 2, None);
        contribute(&mut out, 1, 2, CREDIT_WINDOW as u32 + 2);
        assert_eq!(drain(&mut out), format!("h2 {}", window(2, 0)));
        out.take(SendCommand::Reduced { attempt: 1, index: 0 });
        out.take(SendCommand::Reduced { attempt: 1, index: 0 });
        assert_eq!(drain(&mut out), format!("2.{CREDIT_WINDOW}"));
        out.take(SendCommand::Reduced { attempt: 1, index: 1 });
        assert_eq!(drain(&mut out), format!("2.{} t2", CREDIT_WINDOW + 1));
    }

    #[test]
    fn live_1_what_went_to_owners_is_kept_and_goes_to_the_coordinator_if_that_takes_it_back() {
        let mut out = Outgoing::new(9, 4, None);
        compute(&mut out, 1, 2, 4);
        assert_eq!(
            drain(&mut out),
            "h2",
            "before the attempt is announced nobody knows whose the chunks are"
        );
        let layout = Layout { owners: vec![7, 8], linked: vec![7, 8], ..Layout::default() };
        out.take(SendCommand::Attempt { attempt: 1, layout: layout.clone() });
        assert_eq!(drain(&mut out), "2.0>7 2.1>8 2.2>7 2.3>8 t2");
        out.take(SendCommand::TakeBack { attempt: 1, chunks: vec![1, 3] });
        out.take(SendCommand::TakeBack { attempt: 1, chunks: vec![1, 3] });
        assert_eq!(drain(&mut out), "2.1 2.3");
        // A node that is computed now, for a lost worker, goes there at once.
        compute(&mut out, 1, 3, 4);
        assert_eq!(drain(&mut out), "h3 3.0>7 3.1 3.2>7 3.3 t3");
        // A sum that is here need not be sent, and the next attempt knows nothing of this one.
        out.take(SendCommand::Reduced { attempt: 1, index: 0 });
        out.take(SendCommand::TakeBack { attempt: 1, chunks: vec![0] });
        assert_eq!(drain(&mut out), "");
        out.take(SendCommand::Attempt { attempt: 2, layout });
        out.take(SendCommand::TakeBack { attempt: 2, chunks: vec![0] });
        assert_eq!(drain(&mut out), "");
    }

    #[test]
    fn live_1_credits_of_what_is_taken_back_count_that_alone() {
        let chunks = 3 * CREDIT_WINDOW as u32;
        let mut out = Outgoing::new(9, chunks as usize, None);
        out.take(SendCommand::Attempt {
            attempt: 1,
            layout: Layout { owners: vec![7], linked: vec![7], ..Layout::default() },
        });
        compute(&mut out, 1, 2, chunks);
        drain(&mut out);
        let last: Vec<u32> = (chunks - 1 - CREDIT_WINDOW as u32..chunks).collect();
        out.take(SendCommand::TakeBack { attempt: 1, chunks: last.clone() });
        let sent = drain(&mut out);
        assert_eq!(sent.split(' ').count(), CREDIT_WINDOW, "{sent}");
        out.take(SendCommand::Reduced { attempt: 1, index: last[0] });
        assert_eq!(drain(&mut out), format!("2.{}", chunks - 1));
    }

    #[test]
    fn live_1_a_node_that_waits_delays_no_other_and_a_summed_chunk_is_not_sent() {
        let chunks = CREDIT_WINDOW as u32 + 2;
        let mut out = Outgoing::new(9, chunks as usize, None);
        contribute(&mut out, 1, 2, chunks);
        drain(&mut out);
        out.take(SendCommand::Reduced { attempt: 1, index: 0 });
        // Node 3's worker died; its other chunks have to come from here before node 2 goes on.
        contribute(&mut out, 1, 3, chunks);
        assert_eq!(drain(&mut out), format!("2.{CREDIT_WINDOW} h3 {} 3.{CREDIT_WINDOW}", window(3, 1)));
    }

    #[test]
    fn a_void_attempt_is_not_sent() {
        let mut out = Outgoing::new(9, 10, None);
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
