//! The leaves of a subtree among the images of a batch, and sums along their tree.

use std::ops::Range;

use tally_exact::sum::{self, Fold};

/// The images of each leaf of a subtree, side by side in one batch. A weight gradient is
/// summed image by image inside a leaf, then along the tree (**SUM-1**).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaves {
    ranges: Vec<Range<usize>>,
}

impl Leaves {
    /// Leaves of so many images each, from the left: `2^k` of them. One may be empty.
    #[must_use]
    pub fn new(sizes: impl IntoIterator<Item = usize>) -> Self {
        let mut end = 0;
        let ranges = sizes
            .into_iter()
            .map(|size| {
                let first = end;
                end += size;
                first..end
            })
            .collect();
        Self { ranges }
    }

    /// Images in all.
    #[must_use]
    pub fn images(&self) -> usize {
        self.ranges.last().map_or(0, |last| last.end)
    }

    /// The images of each leaf.
    #[must_use]
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Adds leaves' values along their tree: `leaf(index, images, into)` computes one into
    /// a buffer of `len` floats with any content, and `take` gets the sum. Empty leaves are
    /// skipped; zeros are the sum if all are empty.
    pub fn sum(
        &self,
        free: &mut Vec<Vec<f32>>,
        len: usize,
        mut leaf: impl FnMut(usize, Range<usize>, &mut [f32]),
        take: impl FnOnce(&[f32]),
    ) {
        let mut fold = Fold::default();
        for (index, images) in self.ranges.iter().enumerate() {
            let value = (!images.is_empty()).then(|| {
                let mut buffer = free.pop().unwrap_or_default();
                buffer.resize(len, 0.0);
                leaf(index, images.clone(), &mut buffer);
                buffer
            });
            fold.push(value, |mut left: Vec<f32>, right| {
                sum::add(&mut left, &right);
                free.push(right);
                left
            });
        }
        let total = fold.finish().unwrap_or_else(|| vec![0.0; len]);
        take(&total);
        free.push(total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_added_along_the_tree_and_empty_ones_skipped() {
        let leaves = Leaves::new([2, 0, 1, 3]);
        assert_eq!((leaves.images(), leaves.ranges()[3].clone()), (6, 3..6));
        let mut sum = Vec::new();
        // 1e8 + 1 is 1e8 in float32, so the order shows: 1e8 + (1 − 1e8) but not (1e8 + 1) − 1e8.
        let values = [1e8f32, f32::NAN, 1.0, -1e8];
        leaves.sum(&mut Vec::new(), 1, |i, _, into| into[0] = values[i], |s| sum.extend_from_slice(s));
        assert_eq!(sum, [1e8f32 + (1.0 - 1e8)]);
        leaves.sum(&mut Vec::new(), 1, |_, r, into| into[0] = r.len() as f32, |s| sum.extend_from_slice(s));
        assert_eq!(sum[1], 6.0);
    }
}
