//! The reference network's convolutions, as the kernels are made for them.

/// A 3×3 convolution, stride 1, with many channels on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Its name among the tensors, and its kernels' with an ending.
    pub name: &'static str,
    /// Channels in: a multiple of 32.
    pub inputs: usize,
    /// Channels out: a multiple of 64.
    pub outputs: usize,
    /// Height and width of what comes in.
    pub side_in: usize,
    /// Zeros around it.
    pub padding: usize,
    /// The most samples whose gradients by weights one block sums: so many that blocks are enough at a
    /// batch of 256. Another number is another sum.
    pub stretch: usize,
}

/// How a block divides its part of a product among its warps, each of which has 64 rows and 32 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warps {
    /// Down the rows.
    pub rows: usize,
    /// Across the columns.
    pub columns: usize,
}

/// Those between the first and the last.
pub const CONVOLUTIONS: [Convolution; 5] = [
    Convolution { name: "conv2", inputs: 32, outputs: 64, side_in: 28, padding: 1, stretch: 4 },
    Convolution { name: "conv3", inputs: 64, outputs: 128, side_in: 14, padding: 1, stretch: 8 },
    Convolution { name: "conv4", inputs: 128, outputs: 256, side_in: 14, padding: 1, stretch: 16 },
    Convolution { name: "conv5", inputs: 256, outputs: 512, side_in: 7, padding: 0, stretch: 64 },
    Convolution { name: "conv6", inputs: 512, outputs: 1024, side_in: 5, padding: 0, stretch: 256 },
];

/// The same of the first convolution, and of the last with all that comes after.
pub const FIRST_STRETCH: usize = 4;
/// See [`FIRST_STRETCH`].
pub const HEADS_STRETCH: usize = 64;

/// Floats of a sample's record of what its dense layers answered; heads.cu says where each lies.
pub const RECORD: usize = 448;
/// Samples of a block in `logits_forward`.
pub const LOGITS_GROUP: usize = 4;
/// Samples of a block in `heads` and `logits_backward`.
pub const HEADS_GROUP: usize = 8;

impl Warps {
    /// Threads of a block.
    #[must_use]
    pub fn threads(self) -> usize {
        32 * self.rows * self.columns
    }

    /// Rows of a block's part.
    #[must_use]
    pub fn height(self) -> usize {
        64 * self.rows
    }

    /// Columns of a block's part.
    #[must_use]
    pub fn width(self) -> usize {
        32 * self.columns
    }
}

impl Convolution {
    /// Height and width of what comes out.
    #[must_use]
    pub fn side_out(&self) -> usize {
        self.side_in + 2 * self.padding - 2
    }

    /// The convolution that takes gradients by its results to those by its inputs: over its weights
    /// turned round.
    #[must_use]
    pub fn backward(&self) -> Self {
        let Self { inputs, outputs, padding, .. } = *self;
        Self { inputs: outputs, outputs: inputs, side_in: self.side_out(), padding: 2 - padding, ..*self }
    }

    /// Of the product of pixels by output channels.
    #[must_use]
    pub fn warps(&self) -> Warps {
        match self.outputs {
            ..64 => Warps { rows: 2, columns: 1 },
            64 => Warps { rows: 2, columns: 2 },
            _ => Warps { rows: 2, columns: 4 },
        }
    }

    /// Of the product of output channels by taps and input channels.
    #[must_use]
    pub fn warps_by_weights(&self) -> Warps {
        let columns = if (9 * self.inputs).is_multiple_of(128) { 4 } else { 3 };
        Warps { rows: (self.outputs / 64).min(2), columns }
    }

    /// Bytes of shared memory of a tile of both factors, with the kernel's padding.
    #[must_use]
    pub fn tile(&self) -> usize {
        let warps = self.warps();
        (warps.height() + warps.width()) * 36 * size_of::<f32>()
    }

    /// The same for the gradient by weights.
    #[must_use]
    pub fn tile_by_weights(&self) -> usize {
        let warps = self.warps_by_weights();
        32 * (warps.height() + 8 + warps.width() + 8) * size_of::<f32>()
    }

    /// Elements of the weights.
    #[must_use]
    pub fn weights(&self) -> usize {
        9 * self.inputs * self.outputs
    }
}

/// How many tiles are under way to a block at once, so that as many blocks as have twelve warps, and two at least, fit on a
/// processor with so many bytes of shared memory, if they can. No result depends on it.
#[must_use]
pub fn stages(warps: Warps, tile: usize, shared: usize) -> usize {
    let blocks = 12usize.div_ceil(warps.rows * warps.columns).max(2);
    (shared / blocks / tile).clamp(2, 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::gpu::plan::PIECE;

    #[test]
    fn every_product_is_divided_without_a_rest() {
        for layer in CONVOLUTIONS {
            for way in [layer, layer.backward()] {
                assert!(
                    way.inputs.is_multiple_of(32) && way.outputs.is_multiple_of(way.warps().width()),
                    "{way:?}"
                );
                // The 16 bytes that a thread copies at a time.
                assert!((8 * way.warps().height()).is_multiple_of(way.warps().threads()), "{way:?}");
                assert!((8 * way.warps().width()).is_multiple_of(way.warps().threads()), "{way:?}");
            }
            assert_eq!(layer.backward().side_out(), layer.side_in);
            let warps = layer.warps_by_weights();
            assert!(layer.outputs.is_multiple_of(warps.height()), "{layer:?}");
            assert!((9 * layer.inputs).is_multiple_of(warps.width()), "{layer:?}");
        }
    }

    #[test]
    fn two_tiles_fit_in_the_shared_memory_of_every_gpu_with_tensor_units() {
        for layer in CONVOLUTIONS {
            let (back, by_weights) = (layer.backward(), layer.warps_by_weights());
            let tiles = [
                (layer.warps(), layer.tile()),
                (back.warps(), back.tile()),
                (by_weights, layer.tile_by_weights()),
            ];
            for (warps, tile) in tiles {
                assert_eq!(stages(warps, tile, 0), 2, "{layer:?}");
                assert!(2 * tile <= 99 * 1024, "{layer:?}");
                assert!(stages(warps, tile, 228 * 1024) * tile <= 227 * 1024, "{layer:?}");
                assert!(PIECE.is_multiple_of(layer.stretch), "{layer:?}");
            }
        }
    }
}
