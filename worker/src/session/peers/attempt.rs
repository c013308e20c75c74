//! The chunks that this worker owns or combines in an attempt: what contributors send is added along the tree (**SUM-1**).

use std::collections::BTreeMap;
use std::sync::Mutex;

use tally_numerics::layout::Layout;
use tally_numerics::reduction::{Contribution, Reduction};
use tally_numerics::tree::{Node, Tree};
use tally_numerics::wire::WireDtype;
use tally_proto::partial_sums::PartialSums;
use tally_proto::pool::Chunk;

use super::lock;

/// An attempt that the coordinator has announced.
#[derive(Debug, Default)]
pub struct Attempt {
    /// Its step.
    pub step: u64,
    /// Its number.
    pub attempt: u32,
    /// Who owns what.
    pub layout: Layout,
    /// The digest of the replicas that contribute.
    pub digest: u64,
    /// The chunks that this worker owns or combines.
    sums: BTreeMap<u32, Mutex<ChunkSum>>,
}

#[derive(Debug)]
struct ChunkSum {
    reduction: Reduction,
    partial: PartialSums,
}

impl Attempt {
    /// An attempt of which nothing has come. `shape` is the tree, the chunks of a gradient and the samples of the step.
    #[must_use]
    pub fn new(
        (step, attempt): (u64, u32),
        layout: Layout,
        digest: u64,
        me: u64,
        (tree, chunks, samples): (Tree, usize, usize),
        dtype: WireDtype,
    ) -> Self {
        let sum = |chunk: u32| {
            let reduction = Reduction::of(tree, 1, samples, layout.outputs(me, chunk)?.to_vec());
            Some((chunk, Mutex::new(ChunkSum { reduction, partial: PartialSums::new(dtype) })))
        };
        let sums = (0..chunks as u32).filter_map(sum).collect();
        Self { step, attempt, layout, digest, sums }
    }

    /// Adds a node's chunk that this worker owns or combines. Returns the sum that is whole now, if one is, with its node:
    /// the root for an owner, one of its machine's for a combiner.
    pub fn add(&self, node: Node, index: u32, values: Chunk) -> Option<(Node, Chunk)> {
        let ChunkSum { reduction, partial } = &mut *lock(self.sums.get(&index)?);
        let Contribution::Take(due) = reduction.contribute(node, 0) else { return None };
        partial.insert(node, 0, values);
        due.into_iter().filter_map(|step| partial.apply(step)).map(|(node, _, sum)| (node, sum)).next()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tally_numerics::layout::Machine;
    use tally_proto::pool::Pool;

    use super::*;

    /// Adds a chunk whose elements have this value; returns the sum that became whole, by its node and an element of it.
    fn add(attempt: &Attempt, node: u32, index: u32, value: f32) -> Option<(u32, f32)> {
        let mut values = Pool::default().take(2);
        values.fill(value);
        attempt.add(Node(node), index, values).map(|(node, sum)| (node.0, sum[0]))
    }

    #[test]
    fn sum_1_an_owner_adds_along_the_tree_whatever_comes_first_and_twice() {
        let layout = Layout { owners: vec![4, 7, 9], linked: vec![4, 7, 9], ..Layout::default() };
        let shape = (Tree::new(4).unwrap(), 8, 64);
        let attempt = Attempt::new((1, 1), layout, 0, 7, shape, WireDtype::F32);
        assert_eq!(attempt.sums.len(), 3, "chunks 1, 4 and 7");
        let add = |node, index, value| add(&attempt, node, index, value).map(|(_, sum)| sum);
        for index in [7, 1] {
            assert_eq!(add(5, index, 1e8), None);
            assert_eq!(add(5, index, 1e8), None, "twice");
            assert_eq!(add(3, index, -1e8), None);
            // (1 + 1e8) - 1e8 in float32.
            assert_eq!(add(4, index, 1.0), Some(0.0));
            assert_eq!(add(2, index, 5.0), None, "the sum is whole");
        }
    }

    #[test]
    fn sum_1_a_combiner_adds_up_what_its_machine_was_given() {
        let owners = vec![4, 7, 9];
        let machine = Machine::new(vec![7, 8], &owners, vec![Node(2)]);
        let layout = Layout { linked: vec![4, 7, 8, 9], owners, machines: vec![machine] };
        let shape = (Tree::new(4).unwrap(), 8, 64);
        let attempt = Attempt::new((1, 1), layout, 0, 7, shape, WireDtype::F32);
        assert_eq!(attempt.sums.len(), 8, "it is its machine's only owner");
        let add = |node, index, value| add(&attempt, node, index, value);
        assert_eq!(add(5, 0, 2.0), None);
        assert_eq!(add(7, 0, 9.0), None, "node 7 is another machine's");
        assert_eq!(add(4, 0, 1.0), Some((2, 3.0)));
        // Chunk 1 is its own.
        assert_eq!(add(3, 1, 2.0), None);
        assert_eq!(add(2, 1, 1.0), Some((1, 3.0)));
    }
}
