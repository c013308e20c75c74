//! One loop, compiled for several instruction sets. The widest one that the processor has is chosen.
//!
//! A loop that is wrapped here may only add, multiply, divide, take roots, compare and round, in a fixed order.
//! `f32::mul_add` rounds once on every path. So the paths differ in speed and not in bits.

/// Defines functions that run the function of the same name in a module `body`, compiled for
/// AVX-512, for AVX2 with FMA, and for any processor. Bodies are `#[inline(always)]`. Generic parameters are written in
/// square brackets: `name[T: Trait](…)`.
macro_rules! for_each_instruction_set {
    ($($name:ident $([$($generics:tt)*])? ($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        #[allow(unsafe_code)]
        fn $name $(<$($generics)*>)? ($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
                fn avx512 $(<$($generics)*>)? ($($arg: $type),*) $(-> $result)? {
                    body::$name($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($generics)*>)? ($($arg: $type),*) $(-> $result)? {
                    body::$name($($arg),*)
                }
                let has_fma = is_x86_feature_detected!("fma");
                if has_fma
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features the function was compiled for were just found.
                    return unsafe { avx512($($arg),*) };
                }
                if has_fma && is_x86_feature_detected!("avx2") {
                    // SAFETY: the features the function was compiled for were just found.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body::$name($($arg),*)
        }
    )*};
}

pub(crate) use for_each_instruction_set;
