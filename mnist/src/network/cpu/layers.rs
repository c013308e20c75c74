//! The reference network's convolutions as this engine computes them.

use tally_kernels::Planes;

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// By its definition.
    Direct,
    /// By Winograd's algorithm.
    Winograd,
    /// By Winograd's algorithm, all batches at once: the weights are read once and never stored transformed. (A weight
    /// gradient is computed over all batches in any case.)
    Batched,
}
use Method::{Batched, Direct, Winograd};

/// A 3×3 convolution after the first.
pub(super) struct Convolution {
    /// Its name in the manifest.
    pub name: &'static str,
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Height and width of its input.
    pub side: usize,
    /// Zeros around its input.
    pub padding: usize,
    /// Whether its input is pooled first.
    pub pooled: bool,
    /// The methods for it, its input gradient and its weight gradient: the quickest that were measured.
    pub methods: [Method; 3],
}

const fn convolution(
    name: &'static str,
    channels: (usize, usize),
    side: usize,
    padding: usize,
    pooled: bool,
    methods: [Method; 3],
) -> Convolution {
    Convolution { name, inputs: channels.0, outputs: channels.1, side, padding, pooled, methods }
}

/// Side of the images, and of the first convolution's output.
pub(super) const SIDE: usize = crate::data::SIDE;
/// The first convolution's channels.
pub(super) const FIRST: usize = 32;

/// The convolutions after the first, in the order of the forward pass. All but the last
/// are followed by a ReLU.
pub(super) const CONVOLUTIONS: [Convolution; 6] = [
    convolution("conv2", (32, 64), SIDE, 1, false, [Direct, Winograd, Direct]),
    convolution("conv3", (64, 128), SIDE / 2, 1, true, [Winograd; 3]),
    convolution("conv4", (128, 256), SIDE / 2, 1, false, [Winograd; 3]),
    convolution("conv5", (256, 512), SIDE / 4, 0, true, [Batched, Batched, Winograd]),
    convolution("conv6", (512, 1024), SIDE / 4 - 2, 0, false, [Batched, Batched, Winograd]),
    convolution("conv7", (1024, 10), SIDE / 4 - 4, 0, false, [Direct; 3]),
];

impl Convolution {
    /// The shape of its input.
    pub fn from(&self, images: usize) -> Planes {
        Planes::of(self.inputs, self.side, images)
    }

    /// The shape of its output.
    pub fn to(&self, images: usize) -> Planes {
        Planes::of(self.outputs, self.side + 2 * self.padding - 2, images)
    }
}
