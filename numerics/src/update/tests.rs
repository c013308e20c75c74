//! Every rule has the same bits on every path. That they are PyTorch's optimizers is held in `tests/pytorch.rs`.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::examples::rules;
use super::rule::{Adam, MAX_MOMENTS, RmsProp};
use super::*;
use crate::digest;
use crate::manifest::{Manifest, TensorSpec};

/// The first of the rules that is one, without options.
fn adam() -> Adam {
    let find = |(_, rule)| if let Rule::Adam(adam) = rule { Some(adam) } else { None };
    rules().into_iter().find_map(find).unwrap()
}

fn rms_prop() -> RmsProp {
    let find = |(_, rule)| if let Rule::RmsProp(rms_prop) = rule { Some(rms_prop) } else { None };
    rules().into_iter().find_map(find).unwrap()
}

#[test]
fn it_is_pytorchs_sgd() {
    // torch.optim.SGD([p], lr=0.5, momentum=0.5) from p = 1 with gradients 2, then 4.
    let update = Update::sgd(0.5, 0.5, 1.0);
    let (mut p, mut v) = ([1.0f32], [0.0f32]);
    update.apply(0, &[2.0], &mut p, &mut [&mut v]);
    assert_eq!((p[0], v[0]), (0.0, 2.0));
    update.apply(0, &[4.0], &mut p, &mut [&mut v]);
    assert_eq!((p[0], v[0]), (-2.5, 5.0));
}

#[test]
fn gradients_are_scaled_and_then_clipped() {
    let sgd = Sgd { learning_rate: 1.0, momentum: 0.0, gradient: 1.0, weight_decay: 0.0, nesterov: false };
    let update = Update::new([Rule::Sgd(sgd)], Segments::one_group(), 0.5, 2.0);
    let (mut p, mut v) = ([0.0f32; 3], [0.0f32; 3]);
    update.apply(0, &[2.0, 8.0, -8.0], &mut p, &mut [&mut v]);
    assert_eq!(v, [1.0, 2.0, -2.0]);
}

/// A group has its own rule, and buffers take the mean change whole, whatever is clipped.
#[test]
fn each_group_has_its_rule_and_buffers_have_none() {
    let spec = |name: &str, group| TensorSpec { group, ..TensorSpec::with_fan_in(name, &[2], 1) };
    let buffer = TensorSpec { buffer: true, ..spec("c", 0) };
    let manifest = Manifest::new(vec![spec("a", 1), spec("b", 0), buffer]).unwrap();
    let sgd = Sgd { learning_rate: 1.0, momentum: 0.0, gradient: 1.0, weight_decay: 0.0, nesterov: false };
    let rules = [sgd, Sgd { learning_rate: 2.0, ..sgd }].map(Rule::Sgd);
    assert!(!Update::fits(&rules[..1], manifest.segments()), "group 1 would have no rule");
    assert!(!Update::fits(&[rules[0], Rule::Adam(adam())], manifest.segments()), "they keep other moments");
    let update = Update::new(rules, manifest.segments().clone(), 0.5, 0.25);
    let (mut p, mut v) = ([0.0f32; 6], [0.0f32; 6]);
    let digest = update.apply(0, &[1.0; 6], &mut p, &mut [&mut v]);
    assert_eq!(p, [-0.5, -0.5, -0.25, -0.25, 1.0, 1.0]);
    assert_eq!(v, [0.25, 0.25, 0.25, 0.25, 0.0, 0.0]);
    assert_eq!(digest, digest::of(0, &p, &[&v]));
}

/// The coefficients of a cautious decay: only parameters with the moment's sign decay.
#[test]
fn a_cautious_decay_spares_parameters_that_move_away_from_zero() {
    let rule = Rule::Adam(Adam { step_size: 0.0, keep: 0.5, cautious: true, ..adam() });
    let (mut p, mut m, mut v) = ([1.0f32, 1.0], [0.0f32; 2], [0.0f32; 2]);
    Update::of(rule, 1.0).apply(0, &[1.0, -1.0], &mut p, &mut [&mut m, &mut v]);
    assert_eq!(p, [0.5, 1.0]);
}

/// A variance that rounding makes negative counts as zero, where PyTorch has NaN.
#[test]
fn a_centered_mean_square_is_never_negative() {
    let rule = Rule::RmsProp(RmsProp { centered: true, alpha: 0.0, gradient: 1.0, ..rms_prop() });
    for gradient in [0.1f32, 0.3, 1.7, 1e-3] {
        let (mut p, mut s, mut a) = ([1.0f32], [0.0f32], [0.0f32]);
        Update::of(rule, 1.0).apply(0, &[gradient], &mut p, &mut [&mut s, &mut a]);
        assert!(p[0].is_finite(), "{gradient}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// REP-1: every path gives the same bits and the digest of what it wrote, however the stretch is cut.
    #[test]
    fn rep_1_all_paths_agree(
        rows in proptest::collection::vec((-1e3f32..1e3, -1e3f32..1e3, proptest::array::uniform3(0f32..1e3)), 0..3000),
        first in 0usize..1_000_000, scale in 0f32..1.0, limit in 0.1f32..1e3, cut in 0usize..3000,
    ) {
        for (_, rule) in rules() {
            let update = Update::new([rule], Segments::one_group(), scale, limit);
            let k = rule.moments();
            prop_assert!((1..=MAX_MOMENTS).contains(&k));
            let g: Vec<f32> = rows.iter().map(|r| r.0).collect();
            let p: Vec<f32> = rows.iter().map(|r| r.1).collect();
            let s: Vec<Vec<f32>> = (0..k).map(|k| rows.iter().map(|r| r.2[k]).collect()).collect();
            let shared: Vec<&[f32]> = s.iter().map(Vec::as_slice).collect();
            fn mutable(moments: &mut [Vec<f32>]) -> Vec<&mut [f32]> {
                moments.iter_mut().map(Vec::as_mut_slice).collect()
            }

            let (mut p1, mut s1) = (p.clone(), s.clone());
            let d1 = update.apply(first, &g, &mut p1, &mut mutable(&mut s1));
            let (mut p2, mut s2) = (vec![0.0; g.len()], vec![vec![0.0; g.len()]; k]);
            let d2 = update.apply_into(first, &g, (&p, &shared), (&mut p2, &mut mutable(&mut s2)));
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&p1), bits(&p2));
            prop_assert_eq!(s1.concat(), s2.concat());
            let state: Vec<&[f32]> = s1.iter().map(Vec::as_slice).collect();
            prop_assert_eq!((d1, d1), (d2, digest::of(first, &p1, &state)));

            // Without the instructions that this processor has.
            let (mut p3, mut s3) = (p.clone(), s.clone());
            macro_rules! portable {
                ($rule:expr, $k:literal) => {{
                    let mut moments = mutable(&mut s3);
                    let moments: [&mut [f32]; $k] = super::mutable(&mut moments);
                    body::in_place($rule, first as u64, &g, &mut p3, moments)
                }};
            }
            let portable = by_rule!(ElementUpdate { rule, scale, limit }, k, portable);
            prop_assert_eq!(d1, Digest(portable));
            prop_assert_eq!(bits(&p1), bits(&p3));

            let (mut p4, mut s4) = (p, s);
            let cut = cut.min(g.len());
            let mut digest = Digest::default();
            for range in [cut..g.len(), 0..cut] {
                let mut moments: Vec<&mut [f32]> = s4.iter_mut().map(|m| &mut m[range.clone()]).collect();
                let part = update.apply(first + range.start, &g[range.clone()], &mut p4[range], &mut moments);
                digest = digest.and(part);
            }
            prop_assert_eq!(d1, digest);
        }
    }
}
