//! The assignment of leaves to workers: contiguous runs, in proportion to speed.
//!
//! The assignment cannot change a result (**SUM-1**), so it is free to follow speed, failure and arrival. A run that
//! begins and ends anywhere needs many nodes, and each node is a whole gradient on the wire. So runs are cut as
//! coarsely as makes the step shortest.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

use tally_numerics::tree::{Node, Tree};

/// One worker as the assignment sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Seconds of work it already has.
    pub busy: f64,
    /// Its seconds for a leaf.
    pub per_leaf: f64,
}

/// When a worker would be done with one leaf more.
#[derive(PartialEq)]
struct Finish {
    at: f64,
    worker: usize,
}

impl Eq for Finish {}

impl PartialOrd for Finish {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Finish {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.worker.cmp(&other.worker))
    }
}

/// How many of `leaves` leaves each worker gets, so that the last to finish finishes as
/// early as the grain of the tree allows. Ties go to the worker that comes first.
#[must_use]
pub fn quotas(leaves: u32, loads: &[Load]) -> Vec<u32> {
    let mut quota = vec![0u32; loads.len()];
    let finish = |worker: usize, quota: u32| {
        let load = &loads[worker];
        Reverse(Finish { at: load.busy + f64::from(quota + 1) * load.per_leaf, worker })
    };
    let mut next: BinaryHeap<_> = (0..loads.len()).map(|worker| finish(worker, 0)).collect();
    for _ in 0..leaves {
        let Some(Reverse(Finish { worker, .. })) = next.pop() else { break };
        quota[worker] += 1;
        next.push(finish(worker, quota[worker]));
    }
    quota
}

/// The quotas of a whole step, where each subtree takes `per_node` seconds to come: those of the grain with which
/// computing and coming together are shortest. A worker that gets work when single leaves are dealt always gets some
/// work, so that its speed is measured.
#[must_use]
pub fn shares(tree: Tree, loads: &[Load], per_node: f64) -> Vec<u32> {
    let mut best = quotas(tree.microbatches(), loads);
    let working: Vec<bool> = best.iter().map(|quota| *quota > 0).collect();
    let mut least = seconds(tree, &best, loads, per_node);
    // With a coarser grain a worker that has work now would have none.
    let coarsest = tree.microbatches() / working.iter().filter(|works| **works).count().max(1) as u32;
    let mut grain = 2;
    while grain <= coarsest {
        let coarse: Vec<Load> =
            loads.iter().map(|load| Load { per_leaf: load.per_leaf * f64::from(grain), ..*load }).collect();
        let mut quotas = quotas(tree.microbatches() / grain, &coarse);
        quotas.iter_mut().for_each(|quota| *quota *= grain);
        let all_work = working.iter().zip(&quotas).all(|(works, quota)| !works || *quota > 0);
        let seconds = seconds(tree, &quotas, loads, per_node);
        if all_work && seconds <= least {
            (best, least) = (quotas, seconds);
        }
        grain *= 2;
    }
    best
}

/// Seconds of computing with these quotas, and until all subtrees have come.
#[must_use]
pub fn seconds(tree: Tree, quotas: &[u32], loads: &[Load], per_node: f64) -> f64 {
    let nodes: usize = runs(tree, 0..tree.microbatches(), quotas).iter().map(Vec::len).sum();
    makespan(quotas, loads) + per_node * nodes as f64
}

/// When the last worker finishes under these quotas, in seconds.
#[must_use]
pub fn makespan(quotas: &[u32], loads: &[Load]) -> f64 {
    let finish = quotas.iter().zip(loads).filter(|(q, _)| **q > 0);
    finish.map(|(&q, load)| load.busy + f64::from(q) * load.per_leaf).fold(0.0, f64::max)
}

/// Cuts `leaves` into one contiguous run for each quota and covers each run with whole
/// subtrees. Large quotas come first, so that aligned runs need few subtrees.
#[must_use]
pub fn runs(tree: Tree, leaves: Range<u32>, quotas: &[u32]) -> Vec<Vec<Node>> {
    runs_in_groups(tree, leaves, quotas, |i| i)
}

/// The same, where the runs of each group of workers are next to each other. A group is named by one of its workers.
#[must_use]
pub fn runs_in_groups(
    tree: Tree,
    leaves: Range<u32>,
    quotas: &[u32],
    group: impl Fn(usize) -> usize,
) -> Vec<Vec<Node>> {
    let mut totals = vec![0; quotas.len()];
    (0..quotas.len()).for_each(|i| totals[group(i)] += quotas[i]);
    let mut order: Vec<usize> = (0..quotas.len()).collect();
    order.sort_by_key(|&i| (Reverse(totals[group(i)]), group(i), Reverse(quotas[i])));
    let mut nodes = vec![Vec::new(); quotas.len()];
    let mut at = leaves.start;
    for i in order {
        let end = (at + quotas[i]).min(leaves.end);
        nodes[i] = tree.cover(at..end);
        at = end;
    }
    nodes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn even(n: usize) -> Vec<Load> {
        vec![Load { busy: 0.0, per_leaf: 1.0 }; n]
    }

    /// One line a case: relative speeds, then what each worker gets of eight leaves.
    #[test]
    fn eight_leaves_follow_speed() {
        let tree = Tree::new(8).unwrap();
        let cases: [(&[f64], &str); 6] = [
            (&[1.0], "[[node 1]]"),
            (&[1.0, 1.0], "[[node 2], [node 3]]"),
            (&[1.0, 1.0, 1.0], "[[node 4, node 10], [node 11, node 6], [node 7]]"),
            (&[1.0, 3.0], "[[node 7], [node 2, node 6]]"),
            (&[1.0, 100.0], "[[], [node 1]]"),
            (&[1.0; 4], "[[node 4], [node 5], [node 6], [node 7]]"),
        ];
        for (speeds, expect) in cases {
            let loads: Vec<Load> = speeds.iter().map(|s| Load { busy: 0.0, per_leaf: 1.0 / s }).collect();
            let nodes = runs(tree, 0..8, &quotas(8, &loads));
            assert_eq!(format!("{nodes:?}"), expect, "{speeds:?}");
        }
    }

    #[test]
    fn the_runs_of_a_group_are_next_to_each_other() {
        let tree = Tree::new(8).unwrap();
        // Workers 0 and 3 are a group, and so are 1 and 2.
        let nodes = runs_in_groups(tree, 0..8, &[1, 1, 3, 3], |i| [0, 1, 1, 0][i]);
        assert_eq!(format!("{nodes:?}"), "[[node 11], [node 15], [node 6, node 14], [node 4, node 10]]");
    }

    #[test]
    fn a_busy_worker_gets_less() {
        let mut loads = even(2);
        loads[0].busy = 3.0;
        assert_eq!(quotas(5, &loads), [1, 4]);
        assert_eq!(makespan(&[1, 4], &loads), 4.0);
    }

    /// Sixteen workers that are not quite equally fast: dealt by single leaves, their runs begin
    /// anywhere and need many subtrees.
    #[test]
    fn subtrees_that_take_long_to_come_are_few() {
        let tree = Tree::new(1024).unwrap();
        let loads: Vec<Load> =
            (0..16).map(|i| Load { busy: 0.0, per_leaf: 1.0 + 0.01 * f64::from(i % 5) }).collect();
        let nodes = |per_node| {
            let shares = shares(tree, &loads, per_node);
            assert_eq!(shares.iter().sum::<u32>(), 1024);
            runs(tree, 0..1024, &shares).iter().map(Vec::len).sum::<usize>()
        };
        assert_eq!(shares(tree, &loads, 0.0), quotas(1024, &loads));
        assert!(shares(tree, &[], 1.0).is_empty());
        assert!(nodes(0.0) > 60, "{}", nodes(0.0));
        assert_eq!(nodes(1.0), 16);
        // Three workers of eight leaves: a third node each is worth a leaf's computing, or is not.
        let (tree, three) = (Tree::new(8).unwrap(), even(3));
        assert_eq!(shares(tree, &three, 0.4), [3, 3, 2]);
        assert_eq!(shares(tree, &three, 0.6), [4, 2, 2]);
    }

    proptest! {
        /// LIVE-1: every leaf is given to exactly one worker, for any set of workers.
        #[test]
        fn live_1_every_leaf_is_given_once(
            power in 0u32..7, speeds in proptest::collection::vec(0.01f64..10.0, 1..20), per_node in 0f64..10.0,
        ) {
            let tree = Tree::new(1 << power).unwrap();
            let loads: Vec<Load> = speeds.iter().map(|s| Load { busy: 0.0, per_leaf: 1.0 / s }).collect();
            let nodes = runs(tree, 0..tree.microbatches(), &shares(tree, &loads, per_node));
            let mut leaves: Vec<u32> = nodes.iter().flatten().flat_map(|n| tree.leaves(*n)).collect();
            leaves.sort_unstable();
            prop_assert!(leaves.into_iter().eq(0..tree.microbatches()));
        }
    }
}
