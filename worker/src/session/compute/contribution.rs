//! The contribution of a node of the tree: its microbatches' gradients, added up along its subtree. The sum leaves
//! while the last gradient is still being computed (**SUM-1**). An audit is the same without sending the sum.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use tally_numerics::chunk_range;
use tally_numerics::digest::{self, Digest};
use tally_numerics::node_sum::NodeSum;
use tally_numerics::norm::first_non_finite;
use tally_numerics::schema::Sums;
use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_proto::convert::Microbatch;
use tally_proto::floats;
use tally_proto::pool::{Chunk, Pool};
use tally_proto::span::SpanKind;
use tally_proto::v1::{self, MessageContext, Receipt, WorkerMessage, worker_message};
use tokio::sync::mpsc;

use super::{Compute, ComputeError, GradientTransport, Input};
use crate::session::messages::{Payload, SendCommand};

/// A node to compute in an attempt at a step.
struct NodeTask {
    step: u64,
    attempt: u32,
    node: Node,
    /// Makes a gradient that of the batch's mean loss.
    scale: f32,
    /// The node's microbatches that have samples.
    full: Vec<u32>,
    /// Its chunks go to owners.
    to_owners: bool,
}

/// The result for a node, but for its sum, which has left already.
struct NodeResult {
    losses: Vec<(u32, Sums)>,
    /// The first element of the sum that is NaN or infinite.
    bad: Option<usize>,
    /// The digest of the sum, if this is an audit.
    audit: Option<Digest>,
    seconds: f64,
}

impl Compute {
    pub(super) fn contribute(
        &mut self,
        inbox: &Receiver<Input>,
        step: u64,
        attempt: u32,
        samples: usize,
        node: Node,
        (kind, to_owners): (SpanKind, bool),
    ) -> Result<(), ComputeError> {
        let audit = kind == SpanKind::Audit;
        let (Some(tree), Some((_, digest))) = (self.tree, self.committed) else { return Ok(()) };
        let full: Vec<u32> =
            tree.leaves(node).filter(|&index| !tree.samples(index, samples).is_empty()).collect();
        let mut ids = Vec::new();
        for &index in &full {
            let microbatch = self.microbatches.get(&(step, index));
            let whole = microbatch.filter(|m| m.len() == tree.samples(index, samples).len());
            let whole = whole.ok_or_else(|| {
                ComputeError(format!("the samples of microbatch {index} of step {step} did not come"))
            })?;
            ids.extend_from_slice(whole.ids());
        }
        if !audit {
            let header =
                v1::ContributionBegin { node: node.0, digest: digest.0, samples: digest::of_samples(ids) };
            let _ = self.commands.send(SendCommand::ContributionBegin { step, attempt, header });
        }
        let from = Instant::now();
        self.contribution_began.get_or_insert(from);
        let microbatches = full.len() as u32;
        let task = NodeTask { step, attempt, node, scale: 1.0 / samples as f32, full, to_owners };
        let result = if self.engine.fuses_nodes(self.transport.dtype) {
            Some(self.node_at_once(tree, &task, audit)?)
        } else {
            self.microbatch_by_microbatch(inbox, tree, &task, audit)?
        };
        self.timeline.record(kind, if result.is_some() { microbatches } else { 0 }, from);
        // Without a result the attempt is void or over.
        let Some(result) = result else { return Ok(()) };
        if let Some(digest) = result.audit {
            let context = Some(MessageContext { step, attempt, ..self.context });
            let body = worker_message::Body::AuditDigest(v1::AuditDigest { node: node.0, digest: digest.0 });
            let _ = self.control.send(WorkerMessage { context, body: Some(body) });
            return Ok(());
        }
        if let Some(element) = result.bad {
            return self.not_finite(step, attempt, node, self.tensor_at(element));
        }
        if result.losses.iter().any(|(_, losses)| !losses.is_finite()) {
            return self.not_finite(step, attempt, node, "the loss".into());
        }
        let receipts = result.losses.into_iter().map(|(leaf, Sums(losses))| {
            let samples = tree.samples(leaf, samples).len() as u32;
            Receipt { leaf, samples, losses }
        });
        let (receipts, compute_seconds) = (receipts.collect(), result.seconds);
        let trailer = v1::ContributionEnd { node: node.0, receipts, compute_seconds };
        let _ = self.commands.send(SendCommand::ContributionEnd { attempt, trailer });
        Ok(())
    }

    /// All microbatches at once, by an engine that adds them up itself.
    fn node_at_once(&mut self, tree: Tree, task: &NodeTask, audit: bool) -> Result<NodeResult, ComputeError> {
        let started = Instant::now();
        let mut out = self.buffers.pop().unwrap_or_default();
        out.resize(self.engine.manifest().trained_len(), 0.0);
        let empty = Microbatch::default();
        let full =
            |leaf: u32| self.microbatches.get(&(task.step, leaf)).filter(|_| task.full.contains(&leaf));
        let microbatches: Vec<&Microbatch> =
            tree.leaves(task.node).map(|leaf| full(leaf).unwrap_or(&empty)).collect();
        let mut stream = NodeStream::new(&self.commands, &self.pool, &self.transport, task, audit);
        let elements = out.len();
        let mut ready = |prefix: &[f32]| stream.send(prefix, elements, &[]);
        let dtype = self.transport.dtype;
        let losses =
            self.engine.node_gradient_as_ready(&microbatches, task.scale, dtype, &mut out, &mut ready)?;
        let (bad, audit) = (stream.bad, stream.audit);
        self.buffers.push(out);
        let losses = tree.leaves(task.node).zip(losses).filter(|(leaf, _)| task.full.contains(leaf));
        Ok(NodeResult { losses: losses.collect(), bad, audit, seconds: started.elapsed().as_secs_f64() })
    }

    /// One microbatch after the other; `None` if the attempt is void or over before the last.
    fn microbatch_by_microbatch(
        &mut self,
        inbox: &Receiver<Input>,
        tree: Tree,
        task: &NodeTask,
        audit: bool,
    ) -> Result<Option<NodeResult>, ComputeError> {
        let last = tree.leaves(task.node).end - 1;
        let elements = self.engine.manifest().trained_len();
        let mut sum = NodeSum::with_buffers(self.transport.dtype, std::mem::take(&mut self.buffers));
        let mut result = NodeResult {
            losses: Vec::with_capacity(task.full.len()),
            bad: None,
            audit: audit.then(Digest::default),
            seconds: 0.0,
        };
        for leaf in tree.leaves(task.node) {
            let samples = self.microbatches.get(&(task.step, leaf));
            let Some(samples) = samples.filter(|_| task.full.contains(&leaf)) else {
                sum.push_empty();
                continue;
            };
            let started = Instant::now();
            let mut out = sum.buffer(elements);
            // The last gradient is added to the left siblings that wait for it, chunk by chunk, and the chunks leave
            // while the rest of it is computed.
            let mut stream = NodeStream::new(&self.commands, &self.pool, &self.transport, task, audit);
            let losses = {
                let pending: Vec<&Vec<f32>> = if leaf == last { sum.pending().collect() } else { Vec::new() };
                let mut ready = |prefix: &[f32]| {
                    if leaf == last {
                        stream.send(prefix, elements, &pending);
                    }
                };
                self.engine.gradient(samples, task.scale, &mut out, &mut ready)?
            };
            result.losses.push((leaf, losses));
            if leaf == last {
                (result.bad, result.audit) = (stream.bad, stream.audit);
                self.buffers.push(out);
            } else {
                sum.push(out);
            }
            result.seconds += started.elapsed().as_secs_f64();
            // A message that came meanwhile may have ended the attempt.
            self.drain(inbox)?;
            if !self.wanted(task.step, task.attempt) {
                self.buffers.extend(sum.drain());
                return Ok(None);
            }
        }
        if !task.full.contains(&last)
            && let Some(whole) = sum.pending().next()
        {
            let mut stream = NodeStream::new(&self.commands, &self.pool, &self.transport, task, audit);
            stream.send(whole, elements, &[]);
            (result.bad, result.audit) = (stream.bad, stream.audit);
        }
        self.buffers.extend(sum.drain());
        Ok(Some(result))
    }

    fn tensor_at(&self, element: usize) -> String {
        let manifest = self.engine.manifest();
        let at = (0..manifest.tensors().len()).find(|&i| manifest.range(i).contains(&element));
        at.map_or_else(|| "the gradient".into(), |i| manifest.tensors()[i].name.clone())
    }

    fn not_finite(
        &mut self,
        step: u64,
        attempt: u32,
        node: Node,
        tensor: String,
    ) -> Result<(), ComputeError> {
        tracing::warn!(step, "NaN or infinity in {tensor}");
        let context = Some(MessageContext { step, attempt, ..self.context });
        let body = worker_message::Body::NonFinite(v1::NonFinite { node: node.0, tensor });
        let _ = self.control.send(WorkerMessage { context, body: Some(body) });
        Ok(())
    }
}

/// A node's sum on its way to the sender, chunk by chunk.
struct NodeStream<'a> {
    commands: &'a mpsc::UnboundedSender<SendCommand>,
    pool: &'a Pool,
    transport: &'a GradientTransport,
    attempt: u32,
    node: Node,
    to_owners: bool,
    next: usize,
    /// The first element that is NaN or infinite; nothing is sent from there on.
    bad: Option<usize>,
    /// In an audit nothing is sent, since another worker contributes the node; only the digest is taken.
    audit: Option<Digest>,
}

impl<'a> NodeStream<'a> {
    fn new(
        commands: &'a mpsc::UnboundedSender<SendCommand>,
        pool: &'a Pool,
        transport: &'a GradientTransport,
        task: &NodeTask,
        audit: bool,
    ) -> Self {
        let audit = audit.then(Digest::default);
        let &NodeTask { attempt, node, to_owners, .. } = task;
        Self { commands, pool, transport, attempt, node, to_owners, next: 0, bad: None, audit }
    }

    /// Sends the chunks that `prefix` completes, after adding the pending left siblings to them.
    fn send(&mut self, prefix: &[f32], elements: usize, pending: &[&Vec<f32>]) {
        while self.bad.is_none() {
            let range = chunk_range(elements, self.next);
            if range.is_empty() || range.end > prefix.len() {
                return;
            }
            let last = &prefix[range.clone()];
            let dtype = self.transport.dtype;
            // A sum that an engine made is rounded already; rounding it again does not change it.
            let sum = (!pending.is_empty() || dtype != WireDtype::F32).then(|| {
                let mut sum = self.copy(last);
                dtype.round(&mut sum);
                pending.iter().for_each(|left| dtype.add_left(&left[range.clone()], &mut sum));
                sum
            });
            let values = sum.as_deref().unwrap_or(last);
            if let Some(at) = first_non_finite(values) {
                self.bad = Some(range.start + at);
                return;
            }
            if let Some(digest) = &mut self.audit {
                *digest = digest.and(digest::of(range.start, values, &[values]));
            } else {
                let (attempt, node, index) = (self.attempt, self.node.0, self.next as u32);
                let data = self.payload(index, last, sum);
                let _ = self.commands.send(SendCommand::Chunk { attempt, node, index, data });
            }
            self.next += 1;
        }
    }

    /// The payload of a chunk: `sum`, or `last` as it is if there is no sum.
    fn payload(&self, index: u32, last: &[f32], sum: Option<Chunk>) -> Payload {
        let GradientTransport { dtype, slots, .. } = self.transport;
        // The slots are memory of the coordinator's.
        let slots = slots.as_deref().filter(|_| !self.to_owners);
        let write = |bytes: &[u8]| Some(Payload::Slot(slots?.write(self.attempt, index, bytes)?));
        if let Some(sum) = sum {
            let bytes = floats::encode(*dtype, sum, self.pool);
            write(&bytes).unwrap_or(Payload::Bytes(bytes))
        } else {
            let send = || Payload::Bytes(floats::encode(*dtype, self.copy(last), self.pool));
            write(bytemuck::cast_slice(last)).unwrap_or_else(send)
        }
    }

    fn copy(&self, values: &[f32]) -> Chunk {
        let mut chunk = self.pool.take(values.len());
        chunk.copy_from_slice(values);
        chunk
    }
}
