//! The instructions of the kernels: the widest that the processor has, or those that `TALLY_SIMD` names. The choice
//! changes their speed, never their results.

#![allow(unsafe_code)] // Calls functions compiled for instructions that a token proves.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use crate::simd_vec::{Avx2, Avx512};
use crate::simd_vec::{Portable, SimdVec};

/// The environment variable that forces a path: `avx512`, `avx2` or `portable`.
pub const VARIABLE: &str = "TALLY_SIMD";

/// A path that this processor can run.
#[derive(Clone, Copy, Debug)]
pub enum Simd {
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// Plain Rust with `f32::mul_add`: any processor, and slow where that is a call.
    Portable(Portable),
}

/// Work that is written once for any [`SimdVec`] and compiled for each.
pub trait Kernel {
    /// Its result.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`, or they would be compiled without the instructions.
    fn run<L: SimdVec>(self, lanes: L) -> Self::Output;
}

impl Simd {
    /// The path called `name`.
    ///
    /// # Errors
    /// Says that there is no such path, or that the processor lacks its instructions.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = match name {
            #[cfg(target_arch = "x86_64")]
            "avx512" => Avx512::new().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Avx2::new().map(Self::Avx2),
            #[cfg(not(target_arch = "x86_64"))]
            "avx512" | "avx2" => None,
            "portable" => Some(Self::Portable(Portable)),
            _ => return Err(format!("{VARIABLE}={name}: there are avx512, avx2 and portable")),
        };
        found.ok_or_else(|| format!("{VARIABLE}={name}: this processor has no such instructions"))
    }

    /// The widest path of this processor.
    #[must_use]
    pub fn widest() -> Self {
        ["avx512", "avx2"]
            .into_iter()
            .find_map(|name| Self::named(name).ok())
            .unwrap_or(Self::Portable(Portable))
    }

    /// The path that [`VARIABLE`] names, or the widest if it is not set.
    ///
    /// # Errors
    /// As [`named`](Self::named).
    pub fn chosen() -> Result<Self, String> {
        match std::env::var_os(VARIABLE) {
            None => Ok(Self::widest()),
            Some(name) => Self::named(&name.to_string_lossy()),
        }
    }

    /// Every path that this processor can run, the widest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        ["avx512", "avx2", "portable"].into_iter().filter_map(|name| Self::named(name).ok()).collect()
    }

    /// Runs a kernel with the path's instructions.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,fma")]
        fn avx512<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run(token)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run(token)
        }
        match self {
            // SAFETY: the token exists only where these instructions do.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => unsafe { avx512(token, kernel) },
            // SAFETY: the token exists only where these instructions do.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => unsafe { avx2(token, kernel) },
            Self::Portable(token) => kernel.run(token),
        }
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            Self::Portable(_) => "portable",
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_it_prints_and_an_unknown_one_is_named() {
        for simd in Simd::all() {
            assert_eq!(Simd::named(&simd.to_string()).unwrap().to_string(), simd.to_string());
        }
        let error = Simd::named("sse9").unwrap_err();
        assert!(error.contains("sse9") && error.contains("portable"), "{error}");
    }
}
