//! The per-step digest by which replicas are compared (**REP-1**).
//!
//! The digest mixes index, parameter and moments of each element, and sums the results with wrapping. Addition of
//! integers commutes, so the digest may be computed in any order and by any number of threads. It is computed
//! together with the update, at little extra cost. It detects accidents, not forgeries; checkpoints have SHA-256.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::simd::for_each_instruction_set;

/// Digest of a replica's parameters and moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(pub u64);

impl Digest {
    /// Adds another part of the same vector.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl FromStr for Digest {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        u64::from_str_radix(text, 16)
            .map(Digest)
            .map_err(|_| format!("{text:?} is not a digest of 16 hex digits"))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The factors with which the second and the third moment join the first. They are odd, so that each change of one
/// moment is a change of the sum; they are those of xxHash (Collet, 2012).
pub const JOIN: [u32; 2] = [0x9E37_79B1, 0x85EB_CA77];

/// One element's part of the digest: the parameter, and the moments as one word, mixed with the index. What is not
/// there is zero. The mixer is SplitMix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
#[inline(always)]
#[must_use]
pub fn mix<const K: usize>(index: u64, parameter: f32, moments: [f32; K]) -> u64 {
    let moment = |k: usize| if k < K { moments[k].to_bits() } else { 0 };
    let mut low = moment(0);
    if K > 1 {
        low = low.wrapping_add(moment(1).wrapping_mul(JOIN[0])).wrapping_add(moment(2).wrapping_mul(JOIN[1]));
    }
    let bits = (u64::from(parameter.to_bits()) << 32) | u64::from(low);
    let mut z = bits ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The digest of a stretch of a replica that starts at element `first` of the whole.
///
/// # Panics
/// If the vectors differ in length, or there are more moments than an optimizer can have.
#[must_use]
pub fn of(first: usize, parameters: &[f32], moments: &[&[f32]]) -> Digest {
    let same = moments.iter().all(|moment| moment.len() == parameters.len());
    assert!(same, "a moment has an element for every parameter");
    let first = first as u64;
    Digest(match *moments {
        [] => stretch(first, parameters, []),
        [a] => stretch(first, parameters, [a]),
        [a, b] => stretch(first, parameters, [a, b]),
        [a, b, c] => stretch(first, parameters, [a, b, c]),
        _ => unreachable!("an optimizer keeps at most three moments"),
    })
}

for_each_instruction_set! {
    stretch[const K: usize](first: u64, parameters: &[f32], moments: [&[f32]; K]) -> u64;
}

mod body {
    use super::mix;

    #[inline(always)]
    pub(super) fn stretch<const K: usize>(first: u64, parameters: &[f32], moments: [&[f32]; K]) -> u64 {
        let n = parameters.len();
        let (p, moments) = (&parameters[..n], moments.map(|moment| &moment[..n]));
        let mut sum = 0u64;
        for i in 0..n {
            let state: [f32; K] = std::array::from_fn(|k| moments[k][i]);
            sum = sum.wrapping_add(mix(first + i as u64, p[i], state));
        }
        sum
    }
}

/// A digest of sample ids in their order: 64-bit FNV-1a over their little-endian bytes.
#[must_use]
pub fn of_samples(ids: impl IntoIterator<Item = u32>) -> u64 {
    let bytes = ids.into_iter().flat_map(u32::to_le_bytes);
    fnv1a(bytes)
}

/// 64-bit FNV-1a (Fowler, Noll, Vo).
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_whole() {
        let p: Vec<f32> = (0..1000).map(|i| i as f32 * 0.37 - 100.0).collect();
        let v: Vec<f32> = (0..1000).map(|i| 1.0 / (i + 1) as f32).collect();
        for moments in 0..=3 {
            let of = |range: std::ops::Range<usize>| {
                of(range.start, &p[range.clone()], &vec![&v[range.clone()]; moments])
            };
            assert_eq!(of(300..1000).and(of(0..300)), of(0..1000));
        }
        assert_eq!(of(0, &p, &[]), of(0, &p, &[&[0.0; 1000]]), "what is not there is zero");
    }

    #[test]
    fn one_flipped_bit_or_two_swapped_elements_change_it() {
        let p = vec![0.5f32; 64];
        let v: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let whole = of(0, &p, &[&v]);
        let mut flipped = p.clone();
        flipped[17] = f32::from_bits(flipped[17].to_bits() ^ 1);
        assert_ne!(of(0, &flipped, &[&v]), whole);
        let mut swapped = v.clone();
        swapped.swap(3, 40);
        assert_ne!(of(0, &p, &[&swapped]), whole);
        let three = of(0, &p, &[&v, &v, &p]);
        for (first, second, third) in [(&v, &p, &v), (&v, &swapped, &p), (&swapped, &v, &p)] {
            assert_ne!(of(0, &p, &[first, second, third]), three);
        }
    }

    #[test]
    fn it_reads_what_it_prints() {
        let digest = Digest(0x0123_4567_89ab_cdef);
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!("x".parse::<Digest>().is_err());
    }
}
