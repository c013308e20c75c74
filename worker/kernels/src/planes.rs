//! The layout of activations, and of their gradients.

use super::BLOCK;

/// The shape of square activations: `[blocks][side][side][images][BLOCK]`, channel
/// `32·block + place` of an image. Channels fill whole blocks; a caller pads with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Blocks of [`BLOCK`] channels.
    pub blocks: usize,
    /// Height and width in pixels.
    pub side: usize,
    /// Images.
    pub images: usize,
}

impl Planes {
    /// The shape for `channels` channels, the last block filled up.
    #[must_use]
    pub fn of(channels: usize, side: usize, images: usize) -> Self {
        Self { blocks: channels.div_ceil(BLOCK), side, images }
    }

    /// Floats of a pixel in a block: all its images.
    #[must_use]
    pub fn pixel(self) -> usize {
        self.images * BLOCK
    }

    /// Floats of a row of pixels in a block.
    #[must_use]
    pub fn row(self) -> usize {
        self.side * self.pixel()
    }

    /// Floats of a block.
    #[must_use]
    pub fn block(self) -> usize {
        self.side * self.row()
    }

    /// Floats in all.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // No shape of a network is empty.
    pub fn len(self) -> usize {
        self.blocks * self.block()
    }

    /// Where block `block`, row `y`, column `x`, image `image` starts.
    #[must_use]
    pub fn at(self, block: usize, y: usize, x: usize, image: usize) -> usize {
        block * self.block() + y * self.row() + x * self.pixel() + image * BLOCK
    }
}
