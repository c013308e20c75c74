//! The contribution of a subtree: leaf after leaf, added up along the tree, on its way out
//! while the last leaf is still being computed (**SUM-1**). An audit is the same without
//! the sending.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use tally_exact::chunk_range;
use tally_exact::digest::{self, Digest};
use tally_exact::norm::first_non_finite;
use tally_exact::sum::{self, Fold};
use tally_exact::tree::Node;
use tally_proto::floats;
use tally_proto::pool::Pool;
use tally_proto::v1::{self, Receipt, Stamp, WorkerMessage, worker_message};
use tokio::sync::mpsc;

use super::{Compute, Failure, Input};
use crate::session::sender::Item;

impl Compute {
    pub(super) fn contribute(
        &mut self,
        inbox: &Receiver<Input>,
        step: u64,
        attempt: u32,
        samples: usize,
        node: Node,
        audit: bool,
    ) -> Result<(), Failure> {
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

        self.began_at.get_or_insert_with(Instant::now);
        let elements = self.engine.manifest().len();
        let last = tree.leaves(node).end - 1;
        let mut receipts = Vec::with_capacity(full.len());
        let mut fold = Fold::default();
        let mut computed = 0.0;
        let mut sent = false;
        let mut audited = audit.then(Digest::default);
        for leaf in tree.leaves(node) {
            let Some(samples_of_leaf) = self.leaves.get(&(step, leaf)).filter(|_| full.contains(&leaf))
            else {
                fold.push(None, add_buffers(&mut self.buffers));
                continue;
            };
            let started = Instant::now();
            let mut out = self.buffers.pop().unwrap_or_default();
            out.resize(elements, 0.0);
            let scale = 1.0 / samples as f32;
            // The last leaf's gradient goes straight on through the left children that wait
            // for it, and leaves chunk by chunk while the rest of it is computed.
            let mut stream = Stream {
                items: &self.items,
                pool: &self.pool,
                attempt,
                node,
                next: 0,
                bad: None,
                audit: audited,
            };
            let losses = {
                let pending: Vec<&Vec<f32>> =
                    if leaf == last { fold.pending().collect() } else { Vec::new() };
                let mut ready = |prefix: &[f32]| {
                    if leaf == last {
                        stream.send(prefix, elements, &pending);
                    }
                };
                self.engine.gradient(samples_of_leaf, scale, &mut out, &mut ready)
            };
            let losses = losses.map_err(|e| Failure(e.to_string()))?;
            let bad = stream.bad;
            audited = stream.audit;
            sent |= leaf == last;
            if let Some(element) = bad.filter(|_| !audit) {
                return self.not_finite(step, attempt, node, self.tensor_at(element));
            }
            if !losses.is_finite() && !audit {
                return self.not_finite(step, attempt, node, "the loss".into());
            }
            let count = samples_of_leaf.len() as u32;
            receipts.push(Receipt { leaf, samples: count, losses: Some(losses.into()) });
            if leaf == last {
                self.buffers.push(out);
            } else {
                fold.push(Some(out), add_buffers(&mut self.buffers));
            }
            computed += started.elapsed().as_secs_f64();
            // Between two leaves, see whether the attempt still stands.
            self.drain(inbox)?;
            if !self.wanted(step, attempt) {
                self.buffers.extend(fold.drain());
                return Ok(());
            }
        }
        if sent {
            self.buffers.extend(fold.drain());
        } else if let Some(sum) = fold.finish() {
            let mut stream = Stream {
                items: &self.items,
                pool: &self.pool,
                attempt,
                node,
                next: 0,
                bad: None,
                audit: audited,
            };
            stream.send(&sum, elements, &[]);
            audited = stream.audit;
            if let Some(element) = stream.bad.filter(|_| !audit) {
                return self.not_finite(step, attempt, node, self.tensor_at(element));
            }
            self.buffers.push(sum);
        }
        if let Some(digest) = audited {
            let stamp = Some(Stamp { step, attempt, ..self.stamp });
            let body = worker_message::Body::Audited(v1::Audited { node: node.0, digest: digest.0 });
            let _ = self.control.send(WorkerMessage { stamp, body: Some(body) });
            return Ok(());
        }
        let trailer = v1::Trailer { node: node.0, receipts, compute_seconds: computed };
        let _ = self.items.send(Item::Trailer { attempt, trailer });
        Ok(())
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
fn add_buffers(free: &mut Vec<Vec<f32>>) -> impl FnMut(Vec<f32>, Vec<f32>) -> Vec<f32> + '_ {
    |mut left, right| {
        sum::add(&mut left, &right);
        free.push(right);
        left
    }
}

/// A node's sum on its way to the sender, chunk by chunk.
struct Stream<'a> {
    items: &'a mpsc::UnboundedSender<Item>,
    pool: &'a Pool,
    attempt: u32,
    node: Node,
    next: usize,
    /// The first element that is NaN or infinite; nothing is sent from there on.
    bad: Option<usize>,
    /// Nothing is sent at all, only the digest is taken: others contribute the node.
    audit: Option<Digest>,
}

impl Stream<'_> {
    /// Sends the chunks that `prefix` completes, the waiting left children added on the way.
    fn send(&mut self, prefix: &[f32], elements: usize, pending: &[&Vec<f32>]) {
        while self.bad.is_none() {
            let range = chunk_range(elements, self.next);
            if range.is_empty() || range.end > prefix.len() {
                return;
            }
            let mut chunk = self.pool.take(range.len());
            chunk.copy_from_slice(&prefix[range.clone()]);
            for left in pending {
                sum::add_left(&left[range.clone()], &mut chunk);
            }
            if let Some(at) = first_non_finite(&chunk) {
                self.bad = Some(range.start + at);
                return;
            }
            if let Some(digest) = &mut self.audit {
                *digest = digest.and(digest::of(range.start, &chunk, &chunk));
            } else {
                let (attempt, node, index) = (self.attempt, self.node.0, self.next as u32);
                let _ = self.items.send(Item::Chunk { attempt, node, index, data: floats::share(chunk) });
            }
            self.next += 1;
        }
    }
}
