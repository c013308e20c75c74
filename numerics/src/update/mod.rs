//! The optimizer's update of a whole model in one step (**REP-1**).
//!
//! The formulas are in [`rule`]. The tensors of a model belong to groups ([`Manifest::segments`]), each with a rule of
//! its own. An [`Update`] is a step's rules, and how the gradient is clipped. It is applied to a model in stretches, in
//! any order, and returns the digest of what it made, taken in the same pass.
//!
//! [`Manifest::segments`]: crate::manifest::Manifest::segments

pub mod examples;
pub mod rule;

use std::ops::Range;
use std::sync::Arc;

use crate::digest::{Digest, mix};
use crate::manifest::{Segment, Segments};
use crate::simd::for_each_instruction_set;
use rule::{Clipped, Element, Mean, Rule, Scaled, Sgd};

/// How the elements of one group are updated in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ElementUpdate {
    /// The formula.
    pub rule: Rule,
    /// The gradient is multiplied by this: the clip factor, over the samples' mean weight.
    pub scale: f32,
    /// What comes out is clipped to ± this; infinite if nothing is.
    pub limit: f32,
}

/// One step's update of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    rules: Arc<[Rule]>,
    segments: Segments,
    scale: f32,
    limit: f32,
}

impl Update {
    /// The update by these rules, one for each group, of a model with these segments. The gradient is multiplied by
    /// `scale`, and then each element clipped to ±`limit`.
    ///
    /// # Panics
    /// If there is no rule for a segment's group; see [`Self::fits`].
    #[must_use]
    pub fn new(rules: impl Into<Arc<[Rule]>>, segments: Segments, scale: f32, limit: f32) -> Self {
        let rules = rules.into();
        assert!(Self::fits(&rules, &segments), "there is a rule for each group of the model");
        Self { rules, segments, scale, limit }
    }

    /// SGD with momentum on every tensor of a model.
    #[must_use]
    pub fn sgd(learning_rate: f32, momentum: f32, scale: f32) -> Self {
        let sgd = Sgd { learning_rate, momentum, gradient: 1.0, weight_decay: 0.0, nesterov: false };
        Self::of(Rule::Sgd(sgd), scale)
    }

    /// The update of every tensor of a model by one rule.
    #[must_use]
    pub fn of(rule: Rule, scale: f32) -> Self {
        Self::new([rule], Segments::one_group(), scale, f32::INFINITY)
    }

    /// Whether these rules can update a model: there is one for each group, and all keep equally many moments.
    #[must_use]
    pub fn fits(rules: &[Rule], segments: &Segments) -> bool {
        let moments = rules.first().map_or(0, Rule::moments);
        rules.len() >= segments.groups() && rules.iter().all(|rule| rule.moments() == moments && moments > 0)
    }

    /// How many moments an element has.
    #[must_use]
    pub fn moments(&self) -> usize {
        self.rules[0].moments()
    }

    /// The parts of a stretch that have different rules, in order, each with its range within the stretch.
    pub fn parts(&self, stretch: Range<usize>) -> impl Iterator<Item = (Range<usize>, ElementUpdate)> + '_ {
        let first = stretch.start;
        self.segments.within(stretch).map(move |(range, segment)| {
            let element = match segment {
                Segment::Group(group) => {
                    ElementUpdate { rule: self.rules[group as usize], scale: self.scale, limit: self.limit }
                }
                Segment::Buffers => ElementUpdate { rule: Rule::Mean, scale: 1.0, limit: f32::INFINITY },
            };
            (range.start - first..range.end - first, element)
        })
    }

    /// Updates the stretch of a replica that starts at element `first`, in place, and returns the digest of its new
    /// state.
    ///
    /// # Panics
    /// If the slices differ in length, or there are not as many moments as the rules keep.
    pub fn apply(
        &self,
        first: usize,
        gradient: &[f32],
        parameters: &mut [f32],
        moments: &mut [&mut [f32]],
    ) -> Digest {
        let mut digest = Digest::default();
        for (range, element) in self.parts(first..first + gradient.len()) {
            let mut moments: Vec<&mut [f32]> = moments.iter_mut().map(|m| &mut m[range.clone()]).collect();
            let at = first + range.start;
            let part = element.apply(at, &gradient[range.clone()], &mut parameters[range], &mut moments);
            digest = digest.and(part);
        }
        digest
    }

    /// The same update from one buffer into another.
    ///
    /// # Panics
    /// As [`apply`](Self::apply).
    pub fn apply_into(
        &self,
        first: usize,
        gradient: &[f32],
        from: (&[f32], &[&[f32]]),
        into: (&mut [f32], &mut [&mut [f32]]),
    ) -> Digest {
        let mut digest = Digest::default();
        for (range, element) in self.parts(first..first + gradient.len()) {
            let old: Vec<&[f32]> = from.1.iter().map(|m| &m[range.clone()]).collect();
            let mut new: Vec<&mut [f32]> = into.1.iter_mut().map(|m| &mut m[range.clone()]).collect();
            digest = digest.and(element.apply_into(
                first + range.start,
                &gradient[range.clone()],
                (&from.0[range.clone()], &old),
                (&mut into.0[range], &mut new),
            ));
        }
        digest
    }
}

/// Calls a macro with what a rule does to an element whose gradient is scaled and clipped, and with the number of moments,
/// of which there are `$moments`.
macro_rules! by_rule {
    ($update:expr, $moments:expr, $call:ident) => {{
        let ElementUpdate { rule, scale, limit } = $update;
        macro_rules! with {
            ($rule:expr, $k:literal) => {
                if limit == f32::INFINITY {
                    $call!(Scaled { rule: $rule, scale }, $k)
                } else {
                    $call!(Clipped { rule: $rule, scale, limit }, $k)
                }
            };
        }
        match rule {
            Rule::Sgd(rule) => match rule.plain() {
                Some(plain) => with!(plain, 1),
                None => with!(rule, 1),
            },
            Rule::Lion(rule) => with!(rule, 1),
            Rule::Adam(rule) if rule.amsgrad => with!(rule, 3),
            Rule::Adam(rule) => with!(rule, 2),
            Rule::RmsProp(rule) => match $moments {
                1 => with!(rule, 1),
                2 => with!(rule, 2),
                _ => with!(rule, 3),
            },
            // Whatever is kept stays as it is; nothing is scaled or clipped.
            Rule::Mean => match $moments {
                1 => $call!(Mean, 1),
                2 => $call!(Mean, 2),
                _ => $call!(Mean, 3),
            },
        }
    }};
}

impl ElementUpdate {
    fn apply(self, first: usize, g: &[f32], p: &mut [f32], moments: &mut [&mut [f32]]) -> Digest {
        let first = first as u64;
        macro_rules! call {
            ($rule:expr, $k:literal) => {{
                let moments: [&mut [f32]; $k] = mutable(moments);
                in_place($rule, first, g, p, moments)
            }};
        }
        Digest(by_rule!(self, moments.len(), call))
    }

    fn apply_into(
        self,
        first: usize,
        g: &[f32],
        from: (&[f32], &[&[f32]]),
        into: (&mut [f32], &mut [&mut [f32]]),
    ) -> Digest {
        let (first, (p, old), (new_p, new)) = (first as u64, from, into);
        macro_rules! call {
            ($rule:expr, $k:literal) => {{
                let old: [&[f32]; $k] = shared(old);
                let new: [&mut [f32]; $k] = mutable(new);
                second_buffer($rule, first, g, (p, old), (new_p, new))
            }};
        }
        Digest(by_rule!(self, old.len(), call))
    }
}

/// The moments as an array.
fn mutable<'a, const K: usize>(moments: &'a mut [&mut [f32]]) -> [&'a mut [f32]; K] {
    assert_eq!(moments.len(), K, "a replica has as many moments as its optimizer keeps");
    let mut moments = moments.iter_mut();
    std::array::from_fn(|_| match moments.next() {
        Some(moment) => &mut **moment,
        None => unreachable!("there are K of them"),
    })
}

/// The moments as an array.
fn shared<'a, const K: usize>(moments: &[&'a [f32]]) -> [&'a [f32]; K] {
    assert_eq!(moments.len(), K, "a replica has as many moments as its optimizer keeps");
    std::array::from_fn(|k| moments[k])
}

for_each_instruction_set! {
    in_place[E: Element<K>, const K: usize](
        rule: E, first: u64, g: &[f32], p: &mut [f32], moments: [&mut [f32]; K]
    ) -> u64;
    second_buffer[E: Element<K>, const K: usize](
        rule: E, first: u64, g: &[f32], from: (&[f32], [&[f32]; K]), into: (&mut [f32], [&mut [f32]; K])
    ) -> u64;
}

mod body {
    use super::{Element, mix};

    /// Elements that are updated before they are digested: they stay in the nearest cache. One loop for both would have as
    /// few lanes as the digest's 64-bit words allow, which is slower unless a rule is [`Element::LIGHT`].
    const BLOCK: usize = 1024;

    /// The digest of elements that were just written, the first of which is number `first`.
    #[inline(always)]
    fn digest<const K: usize>(first: u64, p: &[f32], moments: [&[f32]; K]) -> u64 {
        let moments = moments.map(|moment| &moment[..p.len()]);
        let mut digest = 0u64;
        for i in 0..p.len() {
            let state: [f32; K] = std::array::from_fn(|k| moments[k][i]);
            digest = digest.wrapping_add(mix(first + i as u64, p[i], state));
        }
        digest
    }

    #[inline(always)]
    pub(super) fn in_place<E: Element<K>, const K: usize>(
        rule: E,
        first: u64,
        g: &[f32],
        p: &mut [f32],
        mut moments: [&mut [f32]; K],
    ) -> u64 {
        let mut sum = 0u64;
        for start in (0..g.len()).step_by(BLOCK) {
            let n = BLOCK.min(g.len() - start);
            let (g, p) = (&g[start..start + n], &mut p[start..start + n]);
            let block = moments.each_mut().map(|moment| &mut moment[start..start + n]);
            let first = first + start as u64;
            for i in 0..n {
                let (new, state) = rule.step(g[i], p[i], std::array::from_fn(|k| block[k][i]));
                p[i] = new;
                for k in 0..K {
                    block[k][i] = state[k];
                }
                if E::LIGHT {
                    sum = sum.wrapping_add(mix(first + i as u64, new, state));
                }
            }
            if !E::LIGHT {
                sum = sum.wrapping_add(digest(first, p, block.map(|moment| &*moment)));
            }
        }
        sum
    }

    #[inline(always)]
    pub(super) fn second_buffer<E: Element<K>, const K: usize>(
        rule: E,
        first: u64,
        g: &[f32],
        from: (&[f32], [&[f32]; K]),
        into: (&mut [f32], [&mut [f32]; K]),
    ) -> u64 {
        let (new_p, mut new) = into;
        let mut sum = 0u64;
        for start in (0..g.len()).step_by(BLOCK) {
            let n = BLOCK.min(g.len() - start);
            let (g, p) = (&g[start..start + n], &from.0[start..start + n]);
            let old = from.1.map(|moment| &moment[start..start + n]);
            let new_p = &mut new_p[start..start + n];
            let block = new.each_mut().map(|moment| &mut moment[start..start + n]);
            let first = first + start as u64;
            for i in 0..n {
                let (parameter, state) = rule.step(g[i], p[i], std::array::from_fn(|k| old[k][i]));
                new_p[i] = parameter;
                for k in 0..K {
                    block[k][i] = state[k];
                }
                if E::LIGHT {
                    sum = sum.wrapping_add(mix(first + i as u64, parameter, state));
                }
            }
            if !E::LIGHT {
                sum = sum.wrapping_add(digest(first, new_p, block.map(|moment| &*moment)));
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests;
