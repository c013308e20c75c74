//! Who computes which leaves: contiguous runs of the tree, in proportion to speed.
//!
//! The assignment cannot change a result (**SUM-1**), so it is free to follow speed,
//! failure and arrival.

use std::ops::Range;

use tally_exact::tree::{Node, Tree};

/// One worker as the assignment sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Seconds of work it already has.
    pub busy: f64,
    /// Seconds a leaf takes it.
    pub per_leaf: f64,
}

/// How many of `leaves` leaves each worker gets, so that the last to finish finishes as
/// early as the grain of the tree allows. Ties go to the worker that comes first.
#[must_use]
pub fn quotas(leaves: u32, loads: &[Load]) -> Vec<u32> {
    let mut quota = vec![0u32; loads.len()];
    for _ in 0..leaves {
        let finish = |i: usize| loads[i].busy + f64::from(quota[i] + 1) * loads[i].per_leaf;
        let Some(first) = (0..loads.len()).min_by(|&a, &b| finish(a).total_cmp(&finish(b))) else {
            break;
        };
        quota[first] += 1;
    }
    quota
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
    let mut order: Vec<usize> = (0..quotas.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(quotas[i]));
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
    fn a_busy_worker_gets_less() {
        let mut loads = even(2);
        loads[0].busy = 3.0;
        assert_eq!(quotas(5, &loads), [1, 4]);
        assert_eq!(makespan(&[1, 4], &loads), 4.0);
    }

    proptest! {
        /// LIVE-1: every leaf is given to exactly one worker, whoever there is.
        #[test]
        fn live_1_every_leaf_is_given_once(
            power in 0u32..7, speeds in proptest::collection::vec(0.01f64..10.0, 1..20),
        ) {
            let tree = Tree::new(1 << power).unwrap();
            let loads: Vec<Load> = speeds.iter().map(|s| Load { busy: 0.0, per_leaf: 1.0 / s }).collect();
            let nodes = runs(tree, 0..tree.shards(), &quotas(tree.shards(), &loads));
            let mut leaves: Vec<u32> = nodes.iter().flatten().flat_map(|n| tree.leaves(*n)).collect();
            leaves.sort_unstable();
            prop_assert!(leaves.into_iter().eq(0..tree.shards()));
        }
    }
}
