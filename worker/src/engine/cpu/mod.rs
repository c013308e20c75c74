//! The reference network on a CPU, with Tally's own kernels instead of a backend's.
//!
//! Forward and backward pass are one hand-made schedule (`pass`) over the
//! [`kernels`](tally_kernels): activations stay in the kernels' layout from end to end,
//! weights are packed once a step, and the gradients of the deepest layers are handed out
//! first. Every bit of a gradient is the same on every processor and for every number of
//! threads (**SUM-1**); the kernels say why. A network of one's own is Burn's
//! ([`burn`](super::burn)).

mod heads;
mod layers;
mod pass;
#[cfg(test)]
mod tests;
mod weights;

use rayon::ThreadPool;
use tally_data::Samples;
use tally_numerics::digest::Digest;
use tally_numerics::loss::LossParts;
use tally_numerics::manifest::Manifest;
use tally_numerics::update::Update;
use tally_numerics::wire::WireDtype;

use super::burn::Network;
use super::burn::networks::Reference;
use super::replica::Replica;
use super::{Answers, Engine, EngineError, LabelLoss, losses};
use pass::Pass;
use tally_kernels::Simd;
use weights::Weights;

/// How many images are computed with at once, unless a leaf has more: it bounds the memory
/// of a worker that holds a large part of a large batch (0.9 MB an image). No result
/// depends on it.
const AT_ONCE: usize = 128;

/// The reference network on a CPU.
pub struct CpuEngine {
    manifest: Manifest,
    loss: LabelLoss,
    pool: ThreadPool,
    words: String,
    replica: Replica,
    weights: Weights,
    /// Whether `weights` are the committed ones.
    packed: bool,
    pass: Pass,
    /// Gradients of left halves of subtrees that are computed in parts.
    spare: Vec<Vec<f32>>,
}

impl CpuEngine {
    /// An engine whose parameters and momentum are zeros until it is given a state, that
    /// computes on `pool` with the instructions of `simd`. `words` name it in logs.
    #[must_use]
    pub fn new(loss: LabelLoss, pool: ThreadPool, simd: Simd, words: String) -> Self {
        let manifest = Reference.manifest();
        let mut replica = Replica::default();
        replica.load(vec![0.0; manifest.len()], vec![0.0; manifest.len()]);
        Self {
            weights: Weights::new(&manifest, simd),
            pass: Pass::new(simd),
            manifest,
            loss,
            pool,
            words,
            replica,
            packed: false,
            spare: Vec::new(),
        }
    }

    fn pack(&mut self) {
        if !self.packed {
            let Self { weights, replica, pool, .. } = self;
            pool.install(|| weights.pack(replica.parameters()));
            self.packed = true;
        }
    }

    /// The gradient of leaves with at least one sample, all at once.
    fn at_once(
        &mut self,
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Vec<LossParts> {
        let Self { loss, pool, weights, pass, replica, .. } = self;
        let parameters = replica.parameters();
        let outputs = pool.install(|| {
            pass.load(leaves, rounding);
            pass.forward(weights, parameters)
        });
        let mut parts = Vec::with_capacity(leaves.len());
        let mut by_outputs = Vec::with_capacity(outputs.len());
        let mut first = 0;
        for leaf in leaves {
            let end = first + leaf.len() * losses::OUTPUTS;
            let answers = losses::answers(&outputs[first..end]);
            by_outputs.extend(losses::output_gradient(&answers, leaf, *loss, scale));
            parts.push(answers.losses(leaf, *loss));
            first = end;
        }
        pass.backward(weights, parameters, &by_outputs, pool, out, ready);
        parts
    }
}

impl Engine for CpuEngine {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn device(&self) -> String {
        self.words.clone()
    }

    fn kind(&self) -> String {
        // Any instructions, any number of threads.
        "CPU".into()
    }

    fn load(&mut self, parameters: Vec<f32>, momentum: Vec<f32>) -> Digest {
        assert_eq!(parameters.len(), self.manifest.len(), "a state has the manifest's length");
        self.packed = false;
        self.replica.load(parameters, momentum)
    }

    fn state(&mut self) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
        Ok((self.replica.parameters().to_vec(), self.replica.momentum().to_vec()))
    }

    fn before(&mut self) -> Option<(Vec<f32>, Vec<f32>)> {
        self.replica.before().map(|(parameters, momentum)| (parameters.to_vec(), momentum.to_vec()))
    }

    fn gradient(
        &mut self,
        samples: &Samples,
        scale: f32,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<LossParts, EngineError> {
        let parts = self.subtree(&[samples], scale, WireDtype::F32, out, ready)?;
        Ok(parts.into_iter().next().unwrap_or_default())
    }

    fn sums_subtrees(&self, _: WireDtype) -> bool {
        true
    }

    fn subtree(
        &mut self,
        leaves: &[&Samples],
        scale: f32,
        rounding: WireDtype,
        out: &mut [f32],
        ready: &mut dyn FnMut(&[f32]),
    ) -> Result<Vec<LossParts>, EngineError> {
        assert_eq!(out.len(), self.manifest.len(), "a gradient has the manifest's length");
        let images: usize = leaves.iter().map(|leaf| leaf.len()).sum();
        if images == 0 {
            out.fill(0.0);
            ready(out);
            return Ok(vec![LossParts::default(); leaves.len()]);
        }
        self.pack();
        let (left, right) = leaves.split_at(leaves.len() / 2);
        if images <= AT_ONCE || left.is_empty() {
            return Ok(self.at_once(leaves, scale, rounding, out, ready));
        }
        let empty = |half: &[&Samples]| half.iter().all(|leaf| leaf.is_empty());
        if empty(left) || empty(right) {
            // The full half alone; an empty one is not added as zeros.
            let (full, first) = if empty(left) { (right, left.len()) } else { (left, 0) };
            let mut parts = vec![LossParts::default(); leaves.len()];
            let some = self.subtree(full, scale, rounding, out, ready)?;
            parts[first..first + some.len()].copy_from_slice(&some);
            return Ok(parts);
        }
        let mut of_left = self.spare.pop().unwrap_or_default();
        of_left.resize(out.len(), 0.0);
        let mut parts = self.subtree(left, scale, rounding, &mut of_left, &mut |_| ())?;
        parts.extend(self.subtree(right, scale, rounding, out, &mut |_| ())?);
        rounding.add_left(&of_left, out);
        self.spare.push(of_left);
        ready(out);
        Ok(parts)
    }

    fn apply(&mut self, update: Update, first: usize, gradient: &[f32]) -> Digest {
        let Self { pool, replica, .. } = self;
        pool.install(|| replica.apply_in_parallel(update, first, gradient))
    }

    fn commit(&mut self) {
        self.packed = false;
        self.replica.commit();
    }

    fn predict(&mut self, samples: &Samples) -> Result<Answers, EngineError> {
        self.pack();
        let Self { pool, weights, pass, replica, .. } = self;
        let mut outputs = Vec::with_capacity(samples.len() * losses::OUTPUTS);
        pool.install(|| {
            for first in (0..samples.len()).step_by(AT_ONCE) {
                pass.load_stretch(samples, first..samples.len().min(first + AT_ONCE));
                outputs.extend(pass.forward(weights, replica.parameters()));
            }
        });
        Ok(losses::answers(&outputs))
    }
}
