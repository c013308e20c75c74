//! The samples of each step, in the order of the schedule (**DATA-2**).

use tally_numerics::digest;
use tally_numerics::order::Schedule;
use tally_numerics::tree::{Node, Tree};

/// The schedule with the orders of the epochs in use, drawn once each.
#[derive(Clone, Debug)]
pub struct EpochSampler {
    schedule: Schedule,
    /// This epoch's order and the next one's; a step's samples travel ahead.
    orders: Vec<(u32, Vec<u32>)>,
}

impl EpochSampler {
    /// A sampler before the first step.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule, orders: Vec::new() }
    }

    /// Samples of a step's batch; the last of an epoch may be short.
    #[must_use]
    pub fn batch_len(&self, step: u64) -> usize {
        self.schedule.batch_range(self.schedule.position(step).1).len()
    }

    fn batch(&mut self, step: u64) -> &[u32] {
        let (epoch, index) = self.schedule.position(step);
        let at = match self.orders.iter().position(|(e, _)| *e == epoch) {
            Some(at) => at,
            None => {
                if self.orders.len() == 2 {
                    self.orders.remove(0);
                }
                self.orders.push((epoch, self.schedule.order(epoch)));
                self.orders.len() - 1
            }
        };
        &self.orders[at].1[self.schedule.batch_range(index)]
    }

    /// The ids of a step's samples.
    pub fn ids(&mut self, step: u64) -> Vec<u32> {
        self.batch(step).to_vec()
    }

    /// The ids of a leaf's samples.
    pub fn leaf_ids(&mut self, tree: Tree, step: u64, leaf: u32) -> Vec<u32> {
        let batch = self.batch(step);
        batch[tree.samples(leaf, batch.len())].to_vec()
    }

    /// The digest of a node's samples, as its header carries it.
    pub fn node_digest(&mut self, tree: Tree, step: u64, node: Node) -> u64 {
        let batch = self.batch(step);
        let leaves = tree.leaves(node);
        let samples =
            tree.samples(leaves.start, batch.len()).start..tree.samples(leaves.end - 1, batch.len()).end;
        digest::of_samples(batch[samples].iter().copied())
    }
}
