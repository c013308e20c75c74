//! Sums along the reduction tree (**SUM-1**).
//!
//! A node's value is its left child's plus its right child's; an empty child is skipped, not added as zeros (`-0.0 +
//! 0.0` would lose a sign). No other addition is done, so the bits of a sum depend only on the leaves.

use crate::simd::for_each_instruction_set;

/// `left[i] += right[i]`: one addition of the tree, with the left child in place.
///
/// # Panics
/// If the lengths differ; both come from the same manifest.
pub fn add(left: &mut [f32], right: &[f32]) {
    assert_eq!(left.len(), right.len(), "both children of a node have the manifest's length");
    add_each(left, right);
}

/// `right[i] = left[i] + right[i]`: the same addition with the right child in place.
///
/// # Panics
/// If the lengths differ; both come from the same manifest.
pub fn add_left(left: &[f32], right: &mut [f32]) {
    assert_eq!(left.len(), right.len(), "both children of a node have the manifest's length");
    add_each_left(left, right);
}

for_each_instruction_set! {
    add_each(left: &mut [f32], right: &[f32]);
    add_each_left(left: &[f32], right: &mut [f32]);
}

mod body {
    #[inline(always)]
    pub(super) fn add_each(left: &mut [f32], right: &[f32]) {
        for (l, r) in left.iter_mut().zip(right) {
            *l += r;
        }
    }

    #[inline(always)]
    pub(super) fn add_each_left(left: &[f32], right: &mut [f32]) {
        for (l, r) in left.iter().zip(right) {
            *r += l;
        }
    }
}

/// Adds a sequence of `2^k` leaves up their tree, keeping only one value a level.
///
/// `T` is whatever a node carries; `None` stands for an empty leaf.
#[derive(Debug)]
pub struct Fold<T> {
    /// The left children that wait for their right siblings, with their level (leaf = 0).
    waiting: Vec<(u32, Option<T>)>,
}

impl<T> Default for Fold<T> {
    fn default() -> Self {
        Self { waiting: Vec::new() }
    }
}

impl<T> Fold<T> {
    /// Adds the next leaf, from left to right; `add(left, right)` makes a parent.
    pub fn push(&mut self, leaf: Option<T>, mut add: impl FnMut(T, T) -> T) {
        let mut level = 0;
        let mut value = leaf;
        while let Some(&(top, _)) = self.waiting.last() {
            if top != level {
                break;
            }
            let left = self.waiting.pop().and_then(|(_, left)| left);
            value = match (left, value) {
                (Some(l), Some(r)) => Some(add(l, r)),
                (l, r) => l.or(r),
            };
            level += 1;
        }
        self.waiting.push((level, value));
    }

    /// The left children that still wait, nearest first. If the next leaf is the last of its `2^k`, it is added to
    /// these in this order.
    pub fn pending(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().rev().filter_map(|(_, value)| value.as_ref())
    }

    /// The value at the top after `2^k` leaves; `None` if all were empty.
    #[must_use]
    pub fn finish(mut self) -> Option<T> {
        debug_assert!(self.waiting.len() <= 1, "a subtree has a power of two of leaves");
        self.waiting.pop().and_then(|(_, value)| value)
    }

    /// Takes out the remaining values, so that their buffers can be reused.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.waiting.drain(..).filter_map(|(_, value)| value)
    }
}

/// The sum of `2^k` leaves along their tree, for values that are cheap to hold.
pub fn along_tree<T>(
    leaves: impl IntoIterator<Item = Option<T>>,
    mut add: impl FnMut(T, T) -> T,
) -> Option<T> {
    let mut fold = Fold::default();
    for leaf in leaves {
        fold.push(leaf, &mut add);
    }
    fold.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fold_adds_as_the_tree_does() {
        let text = |leaves: &[Option<&str>]| {
            along_tree(leaves.iter().map(|l| l.map(String::from)), |l, r| format!("({l}+{r})"))
        };
        let all = ["a", "b", "c", "d", "e", "f", "g", "h"].map(Some);
        assert_eq!(text(&all).as_deref(), Some("(((a+b)+(c+d))+((e+f)+(g+h)))"));
        assert_eq!(text(&[None, Some("b"), None, None]).as_deref(), Some("b"));
        assert_eq!(text(&[Some("a"), None, Some("c"), Some("d")]).as_deref(), Some("(a+(c+d))"));
        assert_eq!(text(&[None, None]), None);
    }

    proptest! {
        /// SUM-1: adding inside subtrees first and the rest above gives the whole tree's bits.
        #[test]
        fn sum_1_subtrees_first_gives_the_same_bits(
            leaves in proptest::collection::vec(proptest::option::of(-1e6f32..1e6), 16),
            cut in 0u32..4,
        ) {
            let whole = along_tree(leaves.iter().copied(), |l, r| l + r);
            let parts = leaves.chunks(1 << cut).map(|part| along_tree(part.iter().copied(), |l, r| l + r));
            let joined = along_tree(parts, |l, r| l + r);
            prop_assert_eq!(whole.map(f32::to_bits), joined.map(f32::to_bits));
        }
    }
}
