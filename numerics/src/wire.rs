//! The number formats of gradients on the wire: float32, or bfloat16 for half the bytes.
//!
//! With bfloat16 the value of every node is rounded, to nearest with ties to even, as soon as it is complete: the
//! gradient of a leaf, and every sum along the tree. So the result does not depend on which nodes are sent and which
//! are added inside a worker (**SUM-1**). Between roundings all values are float32; parameters, momentum and the
//! update are always float32.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::simd::for_each_instruction_set;
use crate::sum;

/// The type of a gradient's elements on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireDtype {
    /// IEEE 754 single precision: nothing is rounded.
    #[default]
    F32,
    /// The upper half of it: 8 bits of significand.
    Bf16,
}

impl fmt::Display for WireDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for WireDtype {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("{text:?} is no type of the wire; there are f32 and bf16")),
        }
    }
}

impl WireDtype {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Rounds a node's value, in place. NaN stays NaN; a value that is too large becomes infinite.
    pub fn round(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            round_to_bf16(values);
        }
    }

    /// A node's value from its children's, with the left one in place.
    ///
    /// # Panics
    /// As [`sum::add`].
    pub fn add(self, left: &mut [f32], right: &[f32]) {
        sum::add(left, right);
        self.round(left);
    }

    /// The same with the right one in place.
    ///
    /// # Panics
    /// As [`sum::add_left`].
    pub fn add_left(self, left: &[f32], right: &mut [f32]) {
        sum::add_left(left, right);
        self.round(right);
    }

    /// Writes rounded values in the format of the wire, little-endian.
    ///
    /// # Panics
    /// If there is not exactly room for them.
    pub fn pack(self, values: &[f32], into: &mut [u8]) {
        assert_eq!(into.len(), self.bytes() * values.len(), "the buffer fits the values");
        match self {
            Self::F32 => {
                for (bytes, value) in into.chunks_exact_mut(4).zip(values) {
                    bytes.copy_from_slice(&value.to_le_bytes());
                }
            }
            Self::Bf16 => upper_halves(values, into),
        }
    }

    /// Reads what [`pack`](Self::pack) wrote.
    ///
    /// # Panics
    /// If there are not exactly as many as fit.
    pub fn unpack(self, bytes: &[u8], into: &mut [f32]) {
        assert_eq!(bytes.len(), self.bytes() * into.len(), "the bytes fit the values");
        match self {
            Self::F32 => {
                for (value, bytes) in into.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            Self::Bf16 => from_upper_halves(bytes, into),
        }
    }
}

for_each_instruction_set! {
    round_to_bf16(values: &mut [f32]);
    upper_halves(values: &[f32], into: &mut [u8]);
    from_upper_halves(bytes: &[u8], into: &mut [f32]);
}

mod body {
    #[inline(always)]
    pub(super) fn round_to_bf16(values: &mut [f32]) {
        for value in values {
            let bits = value.to_bits();
            let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            let rounded = if value.is_nan() { bits | 0x0040_0000 } else { nearest };
            *value = f32::from_bits(rounded & 0xffff_0000);
        }
    }

    #[inline(always)]
    pub(super) fn upper_halves(values: &[f32], into: &mut [u8]) {
        for (bytes, value) in into.chunks_exact_mut(2).zip(values) {
            bytes.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
        }
    }

    #[inline(always)]
    pub(super) fn from_upper_halves(bytes: &[u8], into: &mut [f32]) {
        for (value, bytes) in into.iter_mut().zip(bytes.chunks_exact(2)) {
            *value = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bits_of(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    fn rounded(value: f32) -> f32 {
        let mut values = [value];
        WireDtype::Bf16.round(&mut values);
        values[0]
    }

    #[test]
    fn bf16_rounds_to_nearest_and_ties_to_even() {
        // 1 + 2⁻⁷ is the next after 1; halfway between goes to the even one.
        let ulp = 2f32.powi(-7);
        for (value, expect) in [
            (1.0 + 0.49 * ulp, 1.0),
            (1.0 + 0.5 * ulp, 1.0),
            (1.0 + 0.51 * ulp, 1.0 + ulp),
            (1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp),
            (-1.0 - 1.5 * ulp, -1.0 - 2.0 * ulp),
            (0.0, 0.0),
            (f32::MIN_POSITIVE, f32::MIN_POSITIVE),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(rounded(value).to_bits(), expect.to_bits(), "{value}");
        }
        assert_eq!(rounded(-0.0).to_bits(), (-0.0f32).to_bits());
        assert!(rounded(f32::from_bits(0x7f80_0001)).is_nan(), "its payload is in the lower half");
        assert!(rounded(f32::from_bits(0xffff_ffff)).is_nan());
    }

    #[test]
    fn its_names_are_read_back() {
        for dtype in [WireDtype::F32, WireDtype::Bf16] {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert!("bfloat".parse::<WireDtype>().unwrap_err().contains("bf16"));
    }

    proptest! {
        #[test]
        fn what_is_rounded_travels_unchanged(bits in proptest::collection::vec(any::<u32>(), 0..50)) {
            for dtype in [WireDtype::F32, WireDtype::Bf16] {
                let mut values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
                let given = values.clone();
                dtype.round(&mut values);
                let mut portable = given;
                if dtype == WireDtype::Bf16 {
                    body::round_to_bf16(&mut portable);
                    prop_assert_eq!(bits_of(&portable), bits_of(&values));
                }
                let mut bytes = vec![0; dtype.bytes() * values.len()];
                dtype.pack(&values, &mut bytes);
                let mut back = vec![0.0; values.len()];
                dtype.unpack(&bytes, &mut back);
                prop_assert_eq!(bits_of(&back), bits_of(&values));
                dtype.round(&mut back);
                prop_assert_eq!(bits_of(&back), bits_of(&values));
            }
        }

        #[test]
        fn no_other_bf16_is_nearer(value in -1e30f32..1e30) {
            let nearest = rounded(value);
            prop_assert_eq!(nearest.to_bits() & 0xffff, 0);
            for other in [nearest.to_bits() - 0x1_0000, nearest.to_bits() + 0x1_0000].map(f32::from_bits) {
                let distance = |x: f32| (f64::from(x) - f64::from(value)).abs();
                prop_assert!(!other.is_finite() || nearest == 0.0 || distance(nearest) <= distance(other));
            }
        }
    }
}
