//! The update as a GPU kernel.
//!
//! `fma` is a fused multiply-add by definition in CUDA, and the one product beside it, `g·c`, is
//! rounded before it is added: nothing is left that a compiler may contract. The digest's 64-bit
//! arithmetic is written out in 32-bit words, which every GPU has.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use tally_numerics::update::Update;

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
fn mix(index: u32, parameter: f32, momentum: f32) -> (u32, u32) {
    let by_index = times(index, 0u32, INDEX.0, INDEX.1);
    let low = u32::reinterpret(momentum) ^ by_index.0;
    let high = u32::reinterpret(parameter) ^ by_index.1;
    let z = fold(low, high, 30u32);
    let z = times(z.0, z.1, FIRST.0, FIRST.1);
    let z = fold(z.0, z.1, 27u32);
    let z = times(z.0, z.1, SECOND.0, SECOND.1);
    fold(z.0, z.1, 31u32)
}

/// The threads take the elements in turn; a block's first thread adds up the block's digest.
#[cube(launch)]
fn update_kernel(
    gradient: &Array<f32>,
    parameters: &Array<f32>,
    momentum: &Array<f32>,
    new_parameters: &mut Array<f32>,
    new_momentum: &mut Array<f32>,
    digest: &mut Array<u32>,
    minus_rate: f32,
    factor: f32,
    clip: f32,
) {
    let mut low = 0u32;
    let mut high = 0u32;
    let mut i = ABSOLUTE_POS;
    let stride = CUBE_COUNT * (CUBE_DIM as usize);
    while i < parameters.len() {
        let v = fma(factor, momentum[i], gradient[i] * clip);
        let p = fma(minus_rate, v, parameters[i]);
        new_parameters[i] = p;
        new_momentum[i] = v;
        let mixed = mix(i as u32, p, v);
        low += mixed.0;
        high += mixed.1 + u32::cast_from(low < mixed.0);
        i += stride;
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
        digest[2 * CUBE_POS] = low;
        digest[2 * CUBE_POS + 1] = high;
    }
}

/// The new parameters, the new momentum, and two 32-bit words of the digest for each block, of
/// three contiguous vectors of one length.
pub fn update<R: CubeRuntime>(
    update: Update,
    gradient: CubeTensor<R>,
    parameters: CubeTensor<R>,
    momentum: CubeTensor<R>,
) -> [CubeTensor<R>; 3] {
    let (client, device) = (parameters.client.clone(), parameters.device.clone());
    let elements = parameters.meta.num_elements();
    let cubes = parts(elements) / 2;
    let empty = |length: usize, dtype: DType| {
        let handle = client.empty(length * 4);
        CubeTensor::<R>::new_contiguous(client.clone(), device.clone(), Shape::new([length]), handle, dtype)
    };
    let made = [empty(elements, DType::F32), empty(elements, DType::F32), empty(2 * cubes, DType::I32)];
    let [new_parameters, new_momentum, digest] = made.clone();
    update_kernel::launch::<R>(
        &client,
        CubeCount::new_1d(cubes as u32),
        CubeDim::new_1d(UNITS),
        gradient.into_array_arg(),
        parameters.into_array_arg(),
        momentum.into_array_arg(),
        new_parameters.into_array_arg(),
        new_momentum.into_array_arg(),
        digest.into_array_arg(),
        -update.learning_rate,
        update.momentum,
        update.clip,
    );
    made
}

/// How many words of digests there are for so many elements.
pub fn parts(elements: usize) -> usize {
    2 * elements.div_ceil(UNITS as usize).clamp(1, MOST_CUBES)
}
