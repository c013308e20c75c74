//! The update as a GPU kernel.
//!
//! The formulas are those of [`tally_numerics::update::rule`]. `fma` is a fused multiply-add by definition in CUDA, and no
//! other product is added to anything: nothing is left that a compiler may contract. Divisions and square roots are
//! correctly rounded unless fast mathematics is asked for. The digest's 64-bit
//! arithmetic is written out in 32-bit words, which every GPU has.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use tally_numerics::digest::JOIN;
use tally_numerics::update::rule::KernelRule;
use tally_numerics::update::{ElementUpdate, Update};

/// Threads of a block.
const UNITS: u32 = 256;
/// The most blocks. Each writes eight bytes of the digest, which the host adds up.
const MOST_CUBES: usize = 1024;

/// The low words of SplitMix64's constants, see `tally_numerics::digest::mix`.
const INDEX: (u32, u32) = (0x7F4A_7C15, 0x9E37_79B9);
const FIRST: (u32, u32) = (0x1CE4_E5B9, 0xBF58_476D);
const SECOND: (u32, u32) = (0x1331_11EB, 0x94D0_49BB);

/// The low and the high half of a 64-bit product.
#[cube]
fn times(low: u32, high: u32, by_low: u32, by_high: u32) -> (u32, u32) {
    (low * by_low, low.mul_hi(by_low) + low * by_high + high * by_low)
}

/// `z ^ (z >> shift)`, with a shift of 1 to 31.
#[cube]
fn fold(low: u32, high: u32, #[comptime] shift: u32) -> (u32, u32) {
    (low ^ ((low >> shift) | (high << (32 - shift))), high ^ (high >> shift))
}

/// `tally_numerics::digest::mix`.
#[cube]
fn mix(index: u32, parameter: f32, a: f32, b: f32, c: f32) -> (u32, u32) {
    let by_index = times(index, 0u32, INDEX.0, INDEX.1);
    let further = u32::reinterpret(b) * JOIN[0] + u32::reinterpret(c) * JOIN[1];
    let low = (u32::reinterpret(a) + further) ^ by_index.0;
    let high = u32::reinterpret(parameter) ^ by_index.1;
    let z = fold(low, high, 30u32);
    let z = times(z.0, z.1, FIRST.0, FIRST.1);
    let z = fold(z.0, z.1, 27u32);
    let z = times(z.0, z.1, SECOND.0, SECOND.1);
    fold(z.0, z.1, 31u32)
}

/// The gradient with a decaying parameter's part.
#[cube]
fn decayed(weight_decay: f32, p: f32, g: f32) -> f32 {
    let with = fma(weight_decay, p, g);
    select(weight_decay == 0.0, g, with)
}

/// The new parameter and moments; `n` has the rule's numbers.
#[cube]
fn sgd(p: f32, g: f32, v: f32, n: &Array<f32>, #[comptime] nesterov: bool) -> (f32, f32) {
    let d = decayed(n[3], p, g);
    let v = fma(n[1], v, d * n[2]);
    if nesterov {
        let u = fma(n[1], v, d);
        (fma(-n[0], u, p), v)
    } else {
        (fma(-n[0], v, p), v)
    }
}

#[cube]
fn adam(
    p: f32,
    g: f32,
    m: f32,
    v: f32,
    w: f32,
    n: &Array<f32>,
    #[comptime] cautious: bool,
    #[comptime] amsgrad: bool,
) -> (f32, f32, f32, f32) {
    let d = decayed(n[7], p, g);
    let m = fma(n[1], m, n[2] * d);
    let v = fma(n[3], v, n[4] * (d * d));
    let greatest = select(w > v, w, v);
    let w = if amsgrad { greatest } else { v };
    let q = m / fma(f32::sqrt(w), n[5], n[6]);
    let decayed = p * n[8];
    let kept = if cautious { select((p >= 0.0) == (m >= 0.0), decayed, p) } else { decayed };
    (fma(-n[0], q, kept), m, v, w)
}

#[cube]
fn rms_prop(
    p: f32,
    g: f32,
    s: f32,
    b: f32,
    a: f32,
    n: &Array<f32>,
    #[comptime] centered: bool,
    #[comptime] with_momentum: bool,
) -> (f32, f32, f32, f32) {
    let d = decayed(n[5], p, g);
    let s = fma(n[1], s, n[2] * (d * d));
    let mean = fma(n[1], a, n[2] * d);
    let variance = fma(-mean, mean, s);
    let r = if centered { select(variance > 0.0, variance, 0.0f32) } else { s };
    let q = d / (f32::sqrt(r) + n[3]);
    let b = fma(n[4], b, q);
    let moved = if with_momentum { b } else { q };
    (fma(-n[0], moved, p), s, b, mean)
}

#[cube]
fn lion(p: f32, g: f32, m: f32, n: &Array<f32>) -> (f32, f32) {
    let u = fma(n[1], m, n[2] * g);
    let negative = select(u < 0.0, -1.0f32, 0.0f32);
    let sign = select(u > 0.0, 1.0f32, negative);
    (fma(-n[0], sign, p * n[5]), fma(n[3], m, n[4] * g))
}

/// What is the same for all elements of a launch.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Kind {
    formula: u32,
    switches: [bool; 2],
    moments: u32,
}

/// The threads take the elements in turn, `length` from `first`; a block's first thread adds up the block's digest. Of
/// moments that the optimizer does not keep, the arrays are others and are not touched.
#[cube(launch)]
fn update_kernel(
    gradient: &Array<f32>,
    old_p: &Array<f32>,
    old_a: &Array<f32>,
    old_b: &Array<f32>,
    old_c: &Array<f32>,
    new_p: &mut Array<f32>,
    new_a: &mut Array<f32>,
    new_b: &mut Array<f32>,
    new_c: &mut Array<f32>,
    digest: &mut Array<u32>,
    numbers: &Array<f32>,
    first: u32,
    length: u32,
    digest_from: u32,
    scale: f32,
    limit: f32,
    #[comptime] kind: Kind,
) {
    let mut low = 0u32;
    let mut high = 0u32;
    let mut at = ABSOLUTE_POS;
    let stride = CUBE_COUNT * (CUBE_DIM as usize);
    while at < length as usize {
        let i = first as usize + at;
        let scaled = gradient[i] * scale;
        let not_above = select(scaled > limit, limit, scaled);
        let g = select(scaled < -limit, -limit, not_above);
        let mut p = old_p[i];
        let mut a = old_a[i];
        let mut b = 0.0f32;
        let mut c = 0.0f32;
        if comptime!(kind.moments > 1) {
            b = old_b[i];
        }
        if comptime!(kind.moments > 2) {
            c = old_c[i];
        }
        if comptime!(kind.formula == 0) {
            let made = sgd(p, g, a, numbers, kind.switches[0]);
            p = made.0;
            a = made.1;
        } else if comptime!(kind.formula == 1) {
            let made = adam(p, g, a, b, c, numbers, kind.switches[0], kind.switches[1]);
            p = made.0;
            a = made.1;
            b = made.2;
            if comptime!(kind.moments > 2) {
                c = made.3;
            }
        } else if comptime!(kind.formula == 2) {
            // The velocity comes before the mean gradient, if there are both.
            let velocity = b;
            let mean = if comptime!(kind.switches[1]) { c } else { b };
            let made = rms_prop(p, g, a, velocity, mean, numbers, kind.switches[0], kind.switches[1]);
            p = made.0;
            a = made.1;
            if comptime!(kind.switches[1]) {
                b = made.2;
                if comptime!(kind.switches[0]) {
                    c = made.3;
                }
            } else if comptime!(kind.switches[0]) {
                b = made.3;
            }
        } else if comptime!(kind.formula == 3) {
            let made = lion(p, g, a, numbers);
            p = made.0;
            a = made.1;
        } else {
            p += g;
        }
        new_p[i] = p;
        new_a[i] = a;
        if comptime!(kind.moments > 1) {
            new_b[i] = b;
        }
        if comptime!(kind.moments > 2) {
            new_c[i] = c;
        }
        let mixed = mix(i as u32, p, a, b, c);
        low += mixed.0;
        high += mixed.1 + u32::cast_from(low < mixed.0);
        at += stride;
    }
    let mut lows = SharedMemory::<u32>::new(UNITS as usize);
    let mut highs = SharedMemory::<u32>::new(UNITS as usize);
    lows[UNIT_POS as usize] = low;
    highs[UNIT_POS as usize] = high;
    sync_cube();
    if UNIT_POS == 0 {
        let mut low = 0u32;
        let mut high = 0u32;
        for unit in 0..UNITS as usize {
            low += lows[unit];
            high += highs[unit] + u32::cast_from(low < lows[unit]);
        }
        let place = digest_from as usize + 2 * CUBE_POS;
        digest[place] = low;
        digest[place + 1] = high;
    }
}

/// The new parameters and the new moments; and two 32-bit words of the digest for each block. All vectors are contiguous and
/// of one length.
pub fn update<R: CubeRuntime>(
    update: &Update,
    gradient: CubeTensor<R>,
    parameters: CubeTensor<R>,
    moments: Vec<CubeTensor<R>>,
) -> (Vec<CubeTensor<R>>, CubeTensor<R>) {
    let (client, device) = (parameters.client.clone(), parameters.device.clone());
    let elements = parameters.meta.num_elements();
    let empty = |length: usize, dtype: DType| {
        let handle = client.empty(length * 4);
        CubeTensor::<R>::new_contiguous(client.clone(), device.clone(), Shape::new([length]), handle, dtype)
    };
    let old: Vec<CubeTensor<R>> = std::iter::once(parameters).chain(moments).collect();
    let new: Vec<CubeTensor<R>> = old.iter().map(|_| empty(elements, DType::F32)).collect();
    let digest = empty(parts(update, elements), DType::I32);
    let unused = empty(1, DType::F32);
    let vector =
        |of: &[CubeTensor<R>], index: usize| of.get(index).unwrap_or(&unused).clone().into_array_arg();
    let mut digest_from = 0;
    for (range, ElementUpdate { rule, scale, limit }) in update.parts(0..elements) {
        let KernelRule { formula, switches, numbers } = rule.into();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        let numbers = CubeTensor::<R>::new_contiguous(
            client.clone(),
            device.clone(),
            Shape::new([numbers.len()]),
            client.create_from_slice(&bytes),
            DType::F32,
        );
        let switches = [switches & 1 != 0, switches & 2 != 0];
        let kind = Kind { formula, switches, moments: update.moments() as u32 };
        let cubes = cubes(range.len());
        update_kernel::launch::<R>(
            &client,
            CubeCount::new_1d(cubes as u32),
            CubeDim::new_1d(UNITS),
            gradient.clone().into_array_arg(),
            vector(&old, 0),
            vector(&old, 1),
            vector(&old, 2),
            vector(&old, 3),
            vector(&new, 0),
            vector(&new, 1),
            vector(&new, 2),
            vector(&new, 3),
            digest.clone().into_array_arg(),
            numbers.into_array_arg(),
            range.start as u32,
            range.len() as u32,
            digest_from as u32,
            scale,
            limit,
            kind,
        );
        digest_from += 2 * cubes;
    }
    (new, digest)
}

/// How many words of digests there are for so many elements.
pub fn parts(update: &Update, elements: usize) -> usize {
    update.parts(0..elements).map(|(range, _)| 2 * cubes(range.len())).sum()
}

/// Blocks of a launch.
fn cubes(elements: usize) -> usize {
    elements.div_ceil(UNITS as usize).clamp(1, MOST_CUBES)
}
