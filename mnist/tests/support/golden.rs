//! The golden values, and the weights and samples that they are of.
//!
//! `data/net-golden.md` says how they are made. Included by the tests beside it, and by `gpu-check`.

use std::sync::LazyLock;

use serde_json::Value;
use tally_mnist::data::PIXELS;
use tally_mnist::{LabelLoss, Mnist, Samples};
use tally_numerics::manifest::Manifest;

/// The golden values.
pub static GOLDEN: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../data/net-golden.json")).unwrap());

/// PyTorch's order of the layers, in which the golden parameters are numbered.
pub const LAYERS: [&str; 15] = [
    "conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "conv7", "dense1", "dense2", "sum1", "sum2",
    "sum3", "diff1", "diff2", "diff3",
];

/// The label losses by the names that the golden values have for them.
pub fn losses_by_name() -> [(&'static str, LabelLoss); 2] {
    [("seed", LabelLoss::SoftmaxNll), ("ce", LabelLoss::CrossEntropy)]
}

/// The `i`-th number, from 0, of parameter `k`'s SplitMix64 stream.
fn uniform(k: u64, i: u64) -> f64 {
    let mut z = 2026u64.wrapping_add(k << 32).wrapping_add(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(i + 1));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1u32 << 24)
}

/// The golden weights as a flat vector.
pub fn weights(manifest: &Manifest) -> Vec<f32> {
    let mut values = vec![0.0; manifest.len()];
    for (place, layer) in LAYERS.iter().enumerate() {
        for (half, part) in ["weight", "bias"].iter().enumerate() {
            let index = manifest.find(&format!("{layer}.{part}")).unwrap();
            let bound = manifest.tensors()[index].bound;
            let k = (2 * place + half) as u64;
            for (i, value) in values[manifest.range(index)].iter_mut().enumerate() {
                *value = (bound * (2.0 * uniform(k, i as u64) - 1.0)) as f32;
            }
        }
    }
    values
}

static MNIST: LazyLock<Mnist> = LazyLock::new(|| Mnist::embedded().unwrap());

/// The training samples from `first` to before `end`; sample j has the number (7j + 3) mod 10.
pub fn samples(first: usize, end: usize) -> Samples {
    Samples::new(
        (first as u32..end as u32).collect(),
        MNIST.train.pixels()[first * PIXELS..end * PIXELS].to_vec(),
        (first..end).map(|j| ((7 * j + 3) % 10) as u8).collect(),
        MNIST.train.labels()[first..end].to_vec(),
    )
    .unwrap()
}

/// A list of numbers.
pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Helps one result of conv3's channel 41 over, which in double lies a hair above zero. Whether its ReLU is
/// open in float32 is a matter of rounding, and moves the norms of conv1 to conv3 by up to 3e-4.
/// (No other channel's bias has that effect.)
pub fn settle(manifest: &Manifest, parameters: &mut [f32]) {
    let bias = manifest.range(manifest.find("conv3.bias").unwrap());
    parameters[bias.start + 41] += 1e-6;
}
