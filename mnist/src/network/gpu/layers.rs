//! The reference network's convolutions, as the kernels are made for them.

use std::fmt;

use tally_worker::device::Precision;

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

/// A variant of the kernels. Which one is fastest, a measurement on a GPU is to decide; the default is the simplest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// Activations and packed weights are stored in 16 bits. Only bf16 has this.
    pub half: bool,
    /// Fragments are loaded from shared memory by `ldmatrix`. With `half` they always are.
    pub ldmatrix: bool,
    /// A warp has 64 rows and 64 columns, and a block up to 256 by 128.
    pub wide: bool,
    /// Warpgroups compute the products forward and by the inputs. Only Hopper has them.
    pub wgmma: bool,
    /// Gradients by weights are computed in a stream of their own, beside those by inputs.
    pub streams: bool,
}

/// The shape of a kernel's blocks, on which host and kernel must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Warps down the rows, 64 rows each. With `warpgroups` these are groups of four warps.
    pub rows: usize,
    /// Warps across the columns.
    pub columns: usize,
    /// Columns of a warp.
    pub across: usize,
    /// Whether the kernel is that of `warpgroups.cu`.
    pub warpgroups: bool,
    /// Bytes of shared memory for a tile of both factors.
    pub tile: usize,
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

impl Variant {
    /// The environment variable that names a variant.
    pub const VARIABLE: &str = "TALLY_GPU_VARIANT";

    const WORDS: [&str; 5] = ["half", "ldmatrix", "wide", "wgmma", "streams"];

    /// Bytes of shared memory that a processor needs for the blocks of `wide`, whose tiles are the largest.
    const SHARED_OF_WIDE: usize = 112 * 1024;

    fn flags(&mut self) -> [&mut bool; 5] {
        [&mut self.half, &mut self.ldmatrix, &mut self.wide, &mut self.wgmma, &mut self.streams]
    }

    /// The variant of these words, with commas between them. No words, or "default", mean the default.
    ///
    /// # Errors
    /// If a word is unknown.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut how = Self::default();
        for word in text.split(',').filter(|word| !matches!(*word, "" | "default")) {
            let Some(index) = Self::WORDS.iter().position(|known| *known == word) else {
                let known = Self::WORDS.join(", ");
                return Err(format!(
                    "{}: {word:?} is no variant of the kernels; there are {known}",
                    Self::VARIABLE
                ));
            };
            *how.flags()[index] = true;
        }
        Ok(how)
    }

    /// The variant that the environment names.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of_the_environment() -> Result<Self, String> {
        Self::parse(&std::env::var(Self::VARIABLE).unwrap_or_default())
    }

    /// Checks that the variant exists in a precision, on a GPU of this compute capability with so many bytes of shared memory a
    /// processor.
    ///
    /// # Errors
    /// The reason why it does not.
    pub fn suits(self, precision: Precision, capability: usize, shared: usize) -> Result<(), String> {
        let tensor_units = self.ldmatrix || self.wide || self.wgmma;
        let wrong = match precision {
            Precision::F32 if tensor_units => "is for tensor units, which f32 leaves alone",
            Precision::F32 | Precision::Tf32 if self.half => "stores 16 bits, which bf16 alone fits",
            Precision::Bf16 if (self.ldmatrix || self.wgmma) && !self.half => "needs half, in bf16",
            _ if self.wgmma && capability != 90 => {
                "needs the instruction wgmma, which compute capability 90 alone has"
            }
            _ if self.wide && shared < Self::SHARED_OF_WIDE => {
                "needs 112 KiB of shared memory a processor, which this GPU does not have"
            }
            _ => return Ok(()),
        };
        Err(format!("the kernels' variant {self} {wrong}"))
    }

    /// Bytes of an element of the activations and of the packed weights.
    #[must_use]
    pub fn stored(self) -> usize {
        4 / self.per_word()
    }

    /// How many of these elements four bytes hold.
    #[must_use]
    pub fn per_word(self) -> usize {
        if self.half { 2 } else { 1 }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut copy = *self;
        let set = copy.flags().map(|flag| *flag);
        let words: Vec<&str> =
            Self::WORDS.into_iter().zip(set).filter_map(|(word, set)| set.then_some(word)).collect();
        f.write_str(&words.join(","))
    }
}

impl Shape {
    /// Threads of a block.
    #[must_use]
    pub fn threads(self) -> usize {
        32 * self.rows * self.columns * if self.warpgroups { 4 } else { 1 }
    }

    /// Rows of a block's part.
    #[must_use]
    pub fn height(self) -> usize {
        64 * self.rows
    }

    /// Columns of a block's part.
    #[must_use]
    pub fn width(self) -> usize {
        self.across * self.columns
    }

    /// Blocks for which a processor has registers at once. Those of 32 columns a warp are as many as have twelve warps, and at
    /// least two.
    fn blocks(self) -> usize {
        let warps = self.rows * self.columns;
        match self.across {
            _ if self.warpgroups => 2,
            64 if warps > 4 => 1,
            64 => 2,
            _ => 12usize.div_ceil(warps).max(2),
        }
    }

    /// The number of blocks that the compiler is told to leave registers for.
    #[must_use]
    pub fn bound(self) -> usize {
        self.blocks().min(2)
    }

    /// The number of tiles that are on their way to a block at once: as many as let the processor's blocks fit in so many bytes of
    /// shared memory, and at least two. No result depends on it.
    #[must_use]
    pub fn stages(self, shared: usize) -> usize {
        ((shared / self.blocks()).saturating_sub(self.beside_tiles()) / self.tile).clamp(2, 4)
    }

    /// Bytes of shared memory for a block, on a processor with so many.
    #[must_use]
    pub fn shared(self, shared: usize) -> usize {
        self.stages(shared) * self.tile + self.beside_tiles()
    }

    /// Room for swizzled tiles to start at a multiple of a kilobyte.
    fn beside_tiles(self) -> usize {
        if self.warpgroups { 1024 } else { 0 }
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

    /// The blocks of the product of pixels by output channels.
    #[must_use]
    pub fn shape(&self, how: Variant) -> Shape {
        // A row has 128 bytes, or fewer if the layer has fewer channels, and 16 more, so that no two threads meet in a bank.
        let depth = (32 * how.per_word()).min(self.inputs);
        if how.wgmma && self.outputs >= 64 && depth == 32 * how.per_word() {
            let across = self.outputs.min(128);
            return Shape { rows: 2, columns: 1, across, warpgroups: true, tile: (128 + across) * 128 };
        }
        let (rows, columns, across) = match self.outputs {
            ..64 => (2, 1, 32),
            64 if how.wide => (4, 1, 64),
            _ if how.wide => (4, 2, 64),
            64 => (2, 2, 32),
            _ => (2, 4, 32),
        };
        let tile = (64 * rows + across * columns) * (depth * how.stored() + 16);
        Shape { rows, columns, across, warpgroups: false, tile }
    }

    /// The blocks of the product of output channels by taps and input channels.
    #[must_use]
    pub fn shape_by_weights(&self, how: Variant) -> Shape {
        let whole = (9 * self.inputs).is_multiple_of(128);
        let (rows, columns, across) = match (how.wide && self.outputs >= 128, whole) {
            (true, true) => ((self.outputs / 64).min(4), 2, 64),
            (true, false) => (2, 3, 64),
            (false, true) => ((self.outputs / 64).min(2), 4, 32),
            (false, false) => ((self.outputs / 64).min(2), 3, 32),
        };
        let depths = 32 * how.per_word();
        let tile = depths * (64 * rows + 8 + across * columns + 8) * how.stored();
        Shape { rows, columns, across, warpgroups: false, tile }
    }

    /// Elements of the weights.
    #[must_use]
    pub fn weights(&self) -> usize {
        9 * self.inputs * self.outputs
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::gpu::plan::PIECE;

    /// Variants with every word, alone and together.
    fn all() -> impl Iterator<Item = Variant> {
        ["", "ldmatrix", "wide", "streams", "wgmma", "half", "half,wide", "half,wgmma,streams"]
            .into_iter()
            .map(|text| Variant::parse(text).unwrap())
    }

    #[test]
    fn every_product_is_divided_without_a_rest() {
        for how in all() {
            for layer in CONVOLUTIONS {
                for way in [layer, layer.backward()] {
                    let shape = way.shape(how);
                    let depth = way.inputs.min(32 * how.per_word());
                    assert!(way.inputs.is_multiple_of(depth) && way.outputs.is_multiple_of(shape.width()));
                    // A thread copies 16 bytes at a time.
                    let copies = depth * how.stored() / 16;
                    assert!((copies * shape.height()).is_multiple_of(shape.threads()), "{how}: {way:?}");
                    assert!((copies * shape.width()).is_multiple_of(shape.threads()), "{how}: {way:?}");
                    assert!(shape.threads() <= 256, "{how}: {way:?}");
                }
                assert_eq!(layer.backward().side_out(), layer.side_in);
                let shape = layer.shape_by_weights(how);
                assert!(layer.outputs.is_multiple_of(shape.height()), "{how}: {layer:?}");
                assert!((9 * layer.inputs).is_multiple_of(shape.width()), "{how}: {layer:?}");
                let at_once = shape.threads() / (shape.width() * how.stored() / 16);
                assert!((32 * how.per_word()).is_multiple_of(at_once), "{how}: {layer:?}");
            }
        }
    }

    #[test]
    fn two_tiles_fit_in_the_shared_memory_of_every_gpu_that_has_the_instructions() {
        for how in all() {
            for layer in CONVOLUTIONS {
                let back = layer.backward();
                for shape in [layer.shape(how), back.shape(how), layer.shape_by_weights(how)] {
                    assert_eq!(shape.stages(0), 2, "{how}: {layer:?}");
                    // The driver takes a kilobyte of each block.
                    let processor = match (shape.warpgroups, how.wide) {
                        (true, _) => 228 * 1024,
                        (false, true) => Variant::SHARED_OF_WIDE,
                        (false, false) => 100 * 1024,
                    };
                    assert!(shape.shared(0) + 1024 <= processor, "{how}: {layer:?}");
                    assert!(shape.shared(228 * 1024) <= 227 * 1024, "{how}: {layer:?}");
                    let blocks = shape.blocks() * (shape.shared(228 * 1024) + 1024);
                    assert!(blocks <= 228 * 1024 || shape.stages(228 * 1024) == 2, "{how}: {layer:?}");
                    assert!(PIECE.is_multiple_of(layer.stretch), "{layer:?}");
                }
            }
        }
    }

    #[test]
    fn what_kernels_can_be_made_of_is_said() {
        assert_eq!(Variant::parse("").unwrap(), Variant::default());
        let both = Variant::parse("wgmma,half").unwrap();
        assert_eq!(both.to_string(), "half,wgmma");
        let unknown = Variant::parse("half,fast").unwrap_err();
        assert!(
            unknown.contains("\"fast\"") && unknown.contains("half, ldmatrix, wide, wgmma, streams"),
            "{unknown}"
        );
        let shared = 228 * 1024;
        assert!(both.suits(Precision::Bf16, 90, shared).is_ok());
        assert!(both.suits(Precision::Tf32, 90, shared).unwrap_err().contains("bf16"));
        assert!(both.suits(Precision::Bf16, 100, shared).unwrap_err().contains("90"));
        let wide = Variant::parse("wide").unwrap();
        assert!(wide.suits(Precision::F32, 90, shared).is_err());
        assert!(wide.suits(Precision::Tf32, 80, 164 * 1024).is_ok());
        assert!(wide.suits(Precision::Tf32, 86, 100 * 1024).unwrap_err().contains("shared memory"));
        let ldmatrix = Variant::parse("ldmatrix").unwrap();
        assert!(ldmatrix.suits(Precision::Bf16, 90, shared).unwrap_err().contains("half"));
        assert!(Variant::parse("streams").unwrap().suits(Precision::F32, 80, 164 * 1024).is_ok());
    }
}
