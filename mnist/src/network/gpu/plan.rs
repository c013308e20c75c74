//! In what order a subtree's leaves are computed, and where their gradients lie: worked out before
//! anything is given to the device.
//!
//! A leaf is cut into pieces of at most [`PIECE`] samples, and a piece into stretches whose gradients by
//! weights are summed by one block each; sums are added in that order. Both depend on the leaf's length
//! alone, so that its bits do (**SUM-1**). Pieces of several leaves are computed at once, in passes.
//! Gradients of leaves lie in slots; a node of the tree takes its left child's, and the right one's is free again.

use tally_numerics::sum::Fold;

/// The most samples of a piece. Another number is another sum.
pub const PIECE: usize = 1024;
/// The most samples of a pass: what the device has room for at once. No result depends on it.
pub const AT_ONCE: usize = 4096;
/// The most leaves of a pass, for the room of their gradients. No result depends on it.
const LEAVES: usize = 16;

/// Samples of one leaf that are computed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The leaf, counted from 0.
    pub leaf: usize,
    /// Its samples before this piece.
    pub first: usize,
    /// Samples of the piece.
    pub count: usize,
    /// Where the leaf's gradient lies.
    pub slot: usize,
    /// Whether it is the leaf's last.
    pub last: bool,
}

/// Slots of a left and a right child.
pub type Pair = (usize, usize);

/// What is computed at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// The pieces, in the order of their leaves.
    pub pieces: Vec<Piece>,
    /// Nodes of the tree that can be added up after it: each list after the one before.
    pub nodes: Vec<Vec<Pair>>,
}

/// A subtree's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One after the other.
    pub passes: Vec<Pass>,
    /// Slots that are needed.
    pub slots: usize,
    /// The slot of the sum; none if all leaves are empty.
    pub result: Option<usize>,
}

/// A gradient in a slot: there after so many lists of nodes of a pass.
#[derive(Clone, Copy)]
struct Node {
    slot: usize,
    pass: usize,
    after: usize,
}

/// Slots: those in use, those free, and those free once the pass is over.
#[derive(Default)]
struct Slots {
    all: usize,
    free: Vec<usize>,
    soon: Vec<usize>,
}

impl Plan {
    /// The order for `2^k` leaves of so many samples, with at most `at_once` samples a pass, which is [`PIECE`] or more.
    #[must_use]
    pub fn new(leaves: &[usize], at_once: usize) -> Self {
        let mut passes = Vec::new();
        let mut pass = Pass::default();
        let mut fold: Fold<Node> = Fold::default();
        let mut slots = Slots::default();
        let (mut samples, mut ended) = (0, 0);
        for (leaf, &length) in leaves.iter().enumerate() {
            let mut own = None;
            for first in (0..length).step_by(PIECE) {
                let count = PIECE.min(length - first);
                if samples + count > at_once || ended == LEAVES {
                    passes.push(std::mem::take(&mut pass));
                    (samples, ended) = (0, 0);
                    slots.free.append(&mut slots.soon);
                }
                let slot = *own.get_or_insert_with(|| slots.take());
                let last = first + count == length;
                pass.pieces.push(Piece { leaf, first, count, slot, last });
                samples += count;
                ended += usize::from(last);
            }
            let own = own.map(|slot| Node { slot, pass: passes.len(), after: 0 });
            fold.push(own, |left, right| {
                slots.soon.push(right.slot);
                pass.add(passes.len(), left, right)
            });
        }
        let result = fold.finish().map(|node| node.slot);
        passes.extend((!pass.pieces.is_empty()).then_some(pass));
        Self { passes, slots: slots.all, result }
    }
}

impl Pass {
    /// Has two children added up as soon as both are there, in the pass of this number.
    fn add(&mut self, number: usize, left: Node, right: Node) -> Node {
        let there = |node: Node| if node.pass == number { node.after } else { 0 };
        let list = there(left).max(there(right));
        if self.nodes.len() <= list {
            self.nodes.resize(list + 1, Vec::new());
        }
        self.nodes[list].push((left.slot, right.slot));
        Node { slot: left.slot, pass: number, after: list + 1 }
    }

    /// Samples of all pieces.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.pieces.iter().map(|piece| piece.count).sum()
    }
}

impl Slots {
    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.all += 1;
            self.all - 1
        })
    }
}

/// How the kernels are told: stretches of at most so many samples, and the leaves that they make up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// First sample in the pass and count.
    pub stretches: Vec<[i32; 2]>,
    /// Of each leaf: its first stretch, their number, how many of them a piece has but the last, its slot, whether pieces of earlier
    /// passes are in it, whether it is to be rounded.
    pub leaves: Vec<[i32; 6]>,
}

impl Table {
    /// Of a pass whose leaves are `rounded` when they are whole.
    #[must_use]
    pub fn new(pass: &Pass, longest: usize, rounded: bool) -> Self {
        let mut table = Self::default();
        let mut start = 0;
        // Pieces of one leaf follow each other, and no two leaves of a pass have one slot.
        for pieces in pass.pieces.chunk_by(|a, b| a.leaf == b.leaf) {
            let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { continue };
            let before = table.stretches.len();
            for piece in pieces {
                table.stretches.extend((0..piece.count).step_by(longest).map(|at| {
                    let count = longest.min(piece.count - at);
                    [small(start + at), small(count)]
                }));
                start += piece.count;
            }
            let flags = [first.first > 0, last.last && rounded].map(i32::from);
            let stretches = table.stretches.len() - before;
            let [before, stretches, per_piece, slot] =
                [before, stretches, PIECE.div_ceil(longest), first.slot].map(small);
            table.leaves.push([before, stretches, per_piece, slot, flags[0], flags[1]]);
        }
        table
    }
}

/// A number of samples or slots: far from the type's end.
fn small(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every sample's id as a gradient: a list, in the order in which it would be summed.
    fn run(leaves: &[usize], at_once: usize) -> Option<String> {
        let plan = Plan::new(leaves, at_once);
        let mut slots = vec![String::new(); plan.slots];
        for pass in &plan.passes {
            assert!(pass.samples() <= at_once && pass.samples() > 0);
            for piece in &pass.pieces {
                let text = format!("{}:{}+{} ", piece.leaf, piece.first, piece.count);
                if piece.first == 0 {
                    slots[piece.slot] = text;
                } else {
                    slots[piece.slot].push_str(&text);
                }
                if piece.last {
                    slots[piece.slot] = format!("round({})", slots[piece.slot]);
                }
            }
            for list in &pass.nodes {
                // What is added at once must not be read and written by two.
                let mut touched: Vec<usize> = list.iter().flat_map(|&(left, right)| [left, right]).collect();
                touched.sort_unstable();
                assert!(touched.windows(2).all(|two| two[0] != two[1]), "{list:?}");
                for &(left, right) in list {
                    slots[left] = format!("({} {})", slots[left], slots[right]);
                    slots[right] = "gone".into();
                }
            }
        }
        plan.result.map(|slot| slots[slot].clone())
    }

    /// What it must be: leaves in pieces, then the tree.
    fn wanted(leaves: &[usize]) -> Option<String> {
        let leaf = |(leaf, &length): (usize, &usize)| {
            (length > 0).then(|| {
                let pieces = (0..length).step_by(PIECE);
                let pieces = pieces.map(|first| format!("{leaf}:{first}+{} ", PIECE.min(length - first)));
                format!("round({})", pieces.collect::<String>())
            })
        };
        let leaves = leaves.iter().enumerate().map(leaf);
        tally_numerics::sum::along_tree(leaves, |left, right| format!("({left} {right})"))
    }

    proptest! {
        /// SUM-1: pieces and tree are the leaves' own, however many samples fit in a pass.
        #[test]
        fn sum_1_the_order_is_the_trees(
            power in 0u32..7,
            sizes in proptest::collection::vec(prop_oneof![Just(0usize), 1usize..40, 900usize..5000], 64),
            at_once in PIECE..3 * PIECE,
        ) {
            let leaves = &sizes[..1 << power];
            prop_assert_eq!(run(leaves, at_once), wanted(leaves));
            // A slot has one row of blocks in each pass, or two would add to it in any order.
            for pass in Plan::new(leaves, at_once).passes {
                let table = Table::new(&pass, 64, true);
                let mut slots: Vec<i32> = table.leaves.iter().map(|leaf| leaf[3]).collect();
                slots.sort_unstable();
                prop_assert!(slots.windows(2).all(|two| two[0] != two[1]), "{:?}", table.leaves);
                let samples: i32 = table.stretches.iter().map(|[_, count]| count).sum();
                prop_assert_eq!(samples as usize, pass.samples());
            }
        }
    }

    #[test]
    fn gradients_of_many_leaves_need_few_slots() {
        assert_eq!(Plan::new(&[8; 16], AT_ONCE).slots, 16);
        assert!(Plan::new(&[8; 1024], AT_ONCE).slots <= 2 * LEAVES + 10);
        assert_eq!(Plan::new(&[0; 4], AT_ONCE), Plan::default());
    }

    #[test]
    fn a_leaf_is_cut_into_stretches_piece_by_piece() {
        let plan = Plan::new(&[PIECE + 5, 3], 4 * PIECE);
        let table = Table::new(&plan.passes[0], 512, true);
        assert_eq!(table.stretches, [[0, 512], [512, 512], [1024, 5], [1029, 3]]);
        assert_eq!(table.leaves, [[0, 3, 2, 0, 0, 1], [3, 1, 2, 1, 0, 1]]);
        // The same leaf over two passes.
        let plan = Plan::new(&[PIECE + 5, 3], PIECE);
        let tables: Vec<Table> = plan.passes.iter().map(|pass| Table::new(pass, 512, true)).collect();
        assert_eq!(tables[0].leaves, [[0, 2, 2, 0, 0, 0]]);
        assert_eq!(tables[1].leaves, [[0, 1, 2, 0, 1, 1], [1, 1, 2, 1, 0, 1]]);
    }
}
