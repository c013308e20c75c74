//! What follows the sums of a convolution.

use crate::BLOCK;
use crate::planes::Planes;

/// What a convolution does to its sums before it stores them.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// Adds a bias, [`BLOCK`] numbers a block.
    Bias(&'a [f32]),
    /// Adds a bias and takes the ReLU.
    BiasRelu(&'a [f32]),
    /// Nothing.
    Nothing,
    /// Multiplies with the slope of the ReLU that gave these activations.
    ReluGradient(&'a [f32]),
}

impl Epilogue<'_> {
    /// # Panics
    /// If a slice has not its shape's length, or the shapes don't follow from each other.
    pub(crate) fn check(self, x: &[f32], from: Planes, padding: usize, out: &[f32], to: Planes) {
        assert_eq!(to.side + 2, from.side + 2 * padding, "the sides of a 3×3 convolution");
        assert_eq!(to.images, from.images, "as many images out as in");
        assert_eq!((x.len(), out.len()), (from.len(), to.len()), "activations have their shape's length");
        match self {
            Self::Bias(bias) | Self::BiasRelu(bias) => {
                assert_eq!(bias.len(), to.blocks * BLOCK, "a bias each")
            }
            Self::ReluGradient(of) => assert_eq!(of.len(), out.len(), "an activation each"),
            Self::Nothing => {}
        }
    }
}
