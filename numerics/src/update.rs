//! SGD with momentum, operation by operation, so that every device rounds alike (**REP-1**).
//!
//! For each element, with `c` the clip factor and `fma` rounding once:
//!
//! ```text
//! v' = fma(momentum, v, g·c)
//! p' = fma(−learning_rate, v', p)
//! ```
//!
//! This is PyTorch's `SGD(momentum=…, dampening=0, nesterov=False)`: starting from zero
//! momentum, its first step takes the gradient whole. The digest of the new state is
//! taken in the same pass.

use crate::digest::{Digest, mix};
use crate::simd::for_each_instruction_set;

/// The settings of one step's update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The step's learning rate.
    pub learning_rate: f32,
    /// The run's momentum.
    pub momentum: f32,
    /// The factor by which the gradient is clipped; 1 without clipping.
    pub clip: f32,
}

impl Update {
    #[inline(always)]
    fn element(self, p: f32, v: f32, g: f32) -> (f32, f32) {
        let v = self.momentum.mul_add(v, g * self.clip);
        ((-self.learning_rate).mul_add(v, p), v)
    }

    /// Updates a stretch of a replica that starts at element `first`, in place, and
    /// returns the digest of its new state.
    ///
    /// # Panics
    /// If the three slices differ in length.
    pub fn apply(
        self,
        first: usize,
        gradient: &[f32],
        parameters: &mut [f32],
        momentum: &mut [f32],
    ) -> Digest {
        assert_eq!(gradient.len(), parameters.len(), "a gradient has the manifest's length");
        assert_eq!(gradient.len(), momentum.len(), "a momentum has the manifest's length");
        Digest(in_place(self, first as u64, gradient, parameters, momentum))
    }

    /// The same update from one buffer into another.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn apply_into(
        self,
        first: usize,
        gradient: &[f32],
        from: (&[f32], &[f32]),
        into: (&mut [f32], &mut [f32]),
    ) -> Digest {
        let n = gradient.len();
        assert!(
            from.0.len() == n && from.1.len() == n && into.0.len() == n && into.1.len() == n,
            "both buffers of a replica have the manifest's length"
        );
        Digest(second_buffer(self, first as u64, gradient, from, into))
    }
}

for_each_instruction_set! {
    in_place(update: Update, first: u64, g: &[f32], p: &mut [f32], v: &mut [f32]) -> u64;
    second_buffer(
        update: Update, first: u64, g: &[f32], from: (&[f32], &[f32]), into: (&mut [f32], &mut [f32])
    ) -> u64;
}

mod body {
    use super::{Update, mix};

    #[inline(always)]
    pub(super) fn in_place(update: Update, first: u64, g: &[f32], p: &mut [f32], v: &mut [f32]) -> u64 {
        let n = g.len();
        let (p, v) = (&mut p[..n], &mut v[..n]);
        let mut digest = 0u64;
        for i in 0..n {
            (p[i], v[i]) = update.element(p[i], v[i], g[i]);
            digest = digest.wrapping_add(mix(first + i as u64, p[i], v[i]));
        }
        digest
    }

    #[inline(always)]
    pub(super) fn second_buffer(
        update: Update,
        first: u64,
        g: &[f32],
        from: (&[f32], &[f32]),
        into: (&mut [f32], &mut [f32]),
    ) -> u64 {
        let n = g.len();
        let (p, v) = (&from.0[..n], &from.1[..n]);
        let (new_p, new_v) = (&mut into.0[..n], &mut into.1[..n]);
        let mut digest = 0u64;
        for i in 0..n {
            (new_p[i], new_v[i]) = update.element(p[i], v[i], g[i]);
            digest = digest.wrapping_add(mix(first + i as u64, new_p[i], new_v[i]));
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::digest;

    #[test]
    fn it_is_pytorchs_sgd() {
        // torch.optim.SGD([p], lr=0.5, momentum=0.5) from p = 1 with gradients 2, then 4.
        let update = Update { learning_rate: 0.5, momentum: 0.5, clip: 1.0 };
        let (mut p, mut v) = ([1.0f32], [0.0f32]);
        update.apply(0, &[2.0], &mut p, &mut v);
        assert_eq!((p[0], v[0]), (0.0, 2.0));
        update.apply(0, &[4.0], &mut p, &mut v);
        assert_eq!((p[0], v[0]), (-2.5, 5.0));
    }

    proptest! {
        /// REP-1: every path gives the same bits and the digest of what it wrote.
        #[test]
        fn rep_1_all_paths_agree(
            rows in proptest::collection::vec((-1e3f32..1e3, -1e3f32..1e3, -1e3f32..1e3), 0..100),
            first in 0usize..1_000_000, learning_rate in 0f32..1.0, momentum in 0f32..1.0, clip in 0f32..1.0,
        ) {
            let update = Update { learning_rate, momentum, clip };
            let g: Vec<f32> = rows.iter().map(|r| r.0).collect();
            let p: Vec<f32> = rows.iter().map(|r| r.1).collect();
            let v: Vec<f32> = rows.iter().map(|r| r.2).collect();
            let (mut p1, mut v1) = (p.clone(), v.clone());
            let d1 = update.apply(first, &g, &mut p1, &mut v1);
            let (mut p2, mut v2) = (vec![0.0; g.len()], vec![0.0; g.len()]);
            let d2 = update.apply_into(first, &g, (&p, &v), (&mut p2, &mut v2));
            let (mut p3, mut v3) = (p, v);
            let d3 = body::in_place(update, first as u64, &g, &mut p3, &mut v3);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&p1), bits(&p2));
            prop_assert_eq!(bits(&p1), bits(&p3));
            prop_assert_eq!(bits(&v1), bits(&v3));
            prop_assert_eq!((d1, d1), (d2, Digest(d3)));
            prop_assert_eq!(d1, digest::of(first, &p1, &v1));
        }
    }
}
