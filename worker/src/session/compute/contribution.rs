//! The contribution of a subtree: leaf after leaf, added up along the tree, on its way out
//! while the last leaf is still being computed (**SUM-1**). An audit is the same without
//! the sending.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use tally_data::Samples;
use tally_exact::chunk_range;
use tally_exact::digest::{self, Digest};
use tally_exact::loss::LossParts;
use tally_exact::norm::first_non_finite;
use tally_exact::sum::Fold;
use tally_exact::tree::{Node, Tree};
use tally_exact::wire::WireDtype;
use tally_proto::floats;
use tally_proto::pool::{Chunk, Pool};
use tally_proto::span::SpanKind;
use tally_proto::v1::{self, Receipt, Stamp, WorkerMessage, worker_message};
use tokio::sync::mpsc;

use super::{Compute, Failure, Input, Travel};
use crate::session::sender::{Item, Payload};

/// The leaves of a node that hold samples, in a step.
struct Work {
    step: u64,
    attempt: u32,
    node: Node,
    /// A gradient is that of the batch's mean loss.
    scale: f32,
    full: Vec<u32>,
}

/// What was computed for a node, while its sum went out.
struct Summed {
    losses: Vec<(u32, LossParts)>,
    /// The first element that is NaN or infinite.
    bad: Option<usize>,
    /// The digest of the sum, if only that was wanted.
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
        kind: SpanKind,
    ) -> Result<(), Failure> {
        let audit = kind == SpanKind::Audit;
        let (Some(tree), Some((_, digest))) = (self.tree, self.committed) else { return Ok(()) };
        let full: Vec<u32> =
            tree.leaves(node).filter(|&leaf| !tree.samples(leaf, samples).is_empty()).collect();
        let mut ids = Vec::new();
        for &leaf in &full {
            let dealt =
                self.leaves.get(&(step, leaf)).filter(|s| s.len() == tree.samples(leaf, samples).len());
            let dealt = dealt
                .ok_or_else(|| Failure(format!("the samples of leaf {leaf} of step {step} did not come")))?;
            ids.extend_from_slice(dealt.ids());
        }
        if !audit {
            let header = v1::Header { node: node.0, digest: digest.0, samples: digest::of_samples(ids) };
            let _ = self.items.send(Item::Header { step, attempt, header });
        }
        let from = Instant::now();
        self.began_at.get_or_insert(from);
        let leaves = full.len() as u32;
        let work = Work { step, attempt, node, scale: 1.0 / samples as f32, full };
        let summed = if self.engine.sums_subtrees(self.travel.dtype) {
            Some(self.at_once(tree, &work, audit)?)
        } else {
            self.leaf_by_leaf(inbox, tree, &work, audit)?
        };
        self.timeline.did(kind, if summed.is_some() { leaves } else { 0 }, from);
        // It may not be wanted any more.
        let Some(summed) = summed else { return Ok(()) };
        if let Some(digest) = summed.audit {
            let stamp = Some(Stamp { step, attempt, ..self.stamp });
            let body = worker_message::Body::Audited(v1::Audited { node: node.0, digest: digest.0 });
            let _ = self.control.send(WorkerMessage { stamp, body: Some(body) });
            return Ok(());
        }
        if let Some(element) = summed.bad {
            return self.not_finite(step, attempt, node, self.tensor_at(element));
        }
        if summed.losses.iter().any(|(_, losses)| !losses.is_finite()) {
            return self.not_finite(step, attempt, node, "the loss".into());
        }
        let receipts = summed.losses.into_iter().map(|(leaf, losses)| {
            let samples = tree.samples(leaf, samples).len() as u32;
            Receipt { leaf, samples, losses: Some(losses.into()) }
        });
        let (receipts, compute_seconds) = (receipts.collect(), summed.seconds);
        let trailer = v1::Trailer { node: node.0, receipts, compute_seconds };
        let _ = self.items.send(Item::Trailer { attempt, trailer });
        Ok(())
    }

    /// All leaves in one go, by an engine that adds them up itself.
    fn at_once(&mut self, tree: Tree, work: &Work, audit: bool) -> Result<Summed, Failure> {
        let started = Instant::now();
        let mut out = self.buffer();
        let empty = Samples::default();
        let of = |leaf: u32| self.leaves.get(&(work.step, leaf)).filter(|_| work.full.contains(&leaf));
        let leaves: Vec<&Samples> = tree.leaves(work.node).map(|leaf| of(leaf).unwrap_or(&empty)).collect();
        let mut stream = Stream::new(&self.items, &self.pool, &self.travel, work, audit);
        let elements = out.len();
        let mut ready = |prefix: &[f32]| stream.send(prefix, elements, &[]);
        let losses =
            self.engine.subtree_as_ready(&leaves, work.scale, self.travel.dtype, &mut out, &mut ready);
        let losses = losses.map_err(|e| Failure(e.to_string()))?;
        let (bad, audit) = (stream.bad, stream.audit);
        self.buffers.push(out);
        let losses = tree.leaves(work.node).zip(losses).filter(|(leaf, _)| work.full.contains(leaf));
        Ok(Summed { losses: losses.collect(), bad, audit, seconds: started.elapsed().as_secs_f64() })
    }

    /// Leaf after leaf; `None` if the attempt is void or over before the last.
    fn leaf_by_leaf(
        &mut self,
        inbox: &Receiver<Input>,
        tree: Tree,
        work: &Work,
        audit: bool,
    ) -> Result<Option<Summed>, Failure> {
        let last = tree.leaves(work.node).end - 1;
        let mut fold = Fold::default();
        let mut summed = Summed {
            losses: Vec::with_capacity(work.full.len()),
            bad: None,
            audit: audit.then(Digest::default),
            seconds: 0.0,
        };
        for leaf in tree.leaves(work.node) {
            let mut out = self.buffer();
            let Some(samples) = self.leaves.get(&(work.step, leaf)).filter(|_| work.full.contains(&leaf))
            else {
                self.buffers.push(out);
                fold.push(None, add_buffers(self.travel.dtype, &mut self.buffers));
                continue;
            };
            let started = Instant::now();
            let elements = out.len();
            // The last leaf's gradient goes straight on through the left children that wait
            // for it, and leaves chunk by chunk while the rest of it is computed.
            let mut stream = Stream::new(&self.items, &self.pool, &self.travel, work, audit);
            let losses = {
                let pending: Vec<&Vec<f32>> =
                    if leaf == last { fold.pending().collect() } else { Vec::new() };
                let mut ready = |prefix: &[f32]| {
                    if leaf == last {
                        stream.send(prefix, elements, &pending);
                    }
                };
                self.engine.gradient(samples, work.scale, &mut out, &mut ready)
            };
            summed.losses.push((leaf, losses.map_err(|e| Failure(e.to_string()))?));
            if leaf == last {
                (summed.bad, summed.audit) = (stream.bad, stream.audit);
                self.buffers.push(out);
            } else {
                self.travel.dtype.round(&mut out);
                fold.push(Some(out), add_buffers(self.travel.dtype, &mut self.buffers));
            }
            summed.seconds += started.elapsed().as_secs_f64();
            // Between two leaves, see whether the attempt still stands.
            self.drain(inbox)?;
            if !self.wanted(work.step, work.attempt) {
                self.buffers.extend(fold.drain());
                return Ok(None);
            }
        }
        if work.full.contains(&last) {
            self.buffers.extend(fold.drain());
        } else if let Some(sum) = fold.finish() {
            let mut stream = Stream::new(&self.items, &self.pool, &self.travel, work, audit);
            stream.send(&sum, sum.len(), &[]);
            (summed.bad, summed.audit) = (stream.bad, stream.audit);
            self.buffers.push(sum);
        }
        Ok(Some(summed))
    }

    /// A full-length buffer with anything in it.
    fn buffer(&mut self) -> Vec<f32> {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.resize(self.engine.manifest().len(), 0.0);
        buffer
    }

    fn tensor_at(&self, element: usize) -> String {
        let manifest = self.engine.manifest();
        let at = (0..manifest.tensors().len()).find(|&i| manifest.range(i).contains(&element));
        at.map_or_else(|| "the gradient".into(), |i| manifest.tensors()[i].name.clone())
    }

    fn not_finite(&mut self, step: u64, attempt: u32, node: Node, tensor: String) -> Result<(), Failure> {
        tracing::warn!(step, "NaN or infinity in {tensor}");
        let stamp = Some(Stamp { step, attempt, ..self.stamp });
        let body = worker_message::Body::NonFinite(v1::NonFinite { node: node.0, tensor });
        let _ = self.control.send(WorkerMessage { stamp, body: Some(body) });
        Ok(())
    }
}

/// `left + right` of two full-length buffers; the right one is free again.
fn add_buffers(
    dtype: WireDtype,
    free: &mut Vec<Vec<f32>>,
) -> impl FnMut(Vec<f32>, Vec<f32>) -> Vec<f32> + '_ {
    move |mut left, right| {
        dtype.add(&mut left, &right);
        free.push(right);
        left
    }
}

/// A node's sum on its way to the sender, chunk by chunk.
struct Stream<'a> {
    items: &'a mpsc::UnboundedSender<Item>,
    pool: &'a Pool,
    travel: &'a Travel,
    attempt: u32,
    node: Node,
    next: usize,
    /// The first element that is NaN or infinite; nothing is sent from there on.
    bad: Option<usize>,
    /// Nothing is sent at all, only the digest is taken: others contribute the node.
    audit: Option<Digest>,
}

impl<'a> Stream<'a> {
    fn new(
        items: &'a mpsc::UnboundedSender<Item>,
        pool: &'a Pool,
        travel: &'a Travel,
        work: &Work,
        audit: bool,
    ) -> Self {
        let audit = audit.then(Digest::default);
        Self { items, pool, travel, attempt: work.attempt, node: work.node, next: 0, bad: None, audit }
    }

    /// Sends the chunks that `prefix` completes, the waiting left children added on the way.
    fn send(&mut self, prefix: &[f32], elements: usize, pending: &[&Vec<f32>]) {
        while self.bad.is_none() {
            let range = chunk_range(elements, self.next);
            if range.is_empty() || range.end > prefix.len() {
                return;
            }
            let last = &prefix[range.clone()];
            let dtype = self.travel.dtype;
            // What an engine has summed is rounded already, which rounding again leaves as it is.
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
                *digest = digest.and(digest::of(range.start, values, values));
            } else {
                let (attempt, node, index) = (self.attempt, self.node.0, self.next as u32);
                let data = self.payload(index, last, sum);
                let _ = self.items.send(Item::Chunk { attempt, node, index, data });
            }
            self.next += 1;
        }
    }

    /// A chunk to be sent: `sum`, or, if that is none, `last` as it is.
    fn payload(&self, index: u32, last: &[f32], sum: Option<Chunk>) -> Payload {
        let Travel { dtype, places, .. } = self.travel;
        let places = places.as_deref();
        let put = |bytes: &[u8]| Some(Payload::Place(places?.put(self.attempt, index, bytes)?));
        if let Some(sum) = sum {
            let bytes = floats::encode(*dtype, sum, self.pool);
            put(&bytes).unwrap_or(Payload::Bytes(bytes))
        } else {
            let send = || Payload::Bytes(floats::encode(*dtype, self.copy(last), self.pool));
            put(bytemuck::cast_slice(last)).unwrap_or_else(send)
        }
    }

    fn copy(&self, values: &[f32]) -> Chunk {
        let mut chunk = self.pool.take(values.len());
        chunk.copy_from_slice(values);
        chunk
    }
}
