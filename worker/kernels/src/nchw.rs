//! Conversion of activations in NCHW layout, `[image][channel][y][x]`, to [`Planes`] and back.

use rayon::prelude::*;

use crate::BLOCK;
use crate::planes::Planes;
use crate::simd::{Kernel, Simd};
use crate::simd_vec::{LANES, SimdVec};

/// Converts the images of `x`, of `channels` channels, to the shape `to`, with zeros for the channels that fill the last
/// block. If `relu_gradient` has the results of a ReLU in that layout, the output is multiplied with the ReLU's slope.
///
/// # Panics
/// If a slice has not its shape's length.
pub fn gather(
    simd: Simd,
    x: &[f32],
    channels: usize,
    relu_gradient: Option<&[f32]>,
    out: &mut [f32],
    to: Planes,
) {
    assert_eq!(x.len(), to.images * channels * to.side * to.side, "images have their shape's length");
    assert_eq!(out.len(), to.len(), "activations have their shape's length");
    assert_eq!(to.blocks, channels.div_ceil(BLOCK), "blocks for these channels");
    assert!(relu_gradient.is_none_or(|of| of.len() == out.len()), "an activation each");
    out.par_chunks_mut(to.block()).enumerate().for_each(|(block, out)| {
        let of = relu_gradient.map(|of| &of[block * to.block()..][..to.block()]);
        simd.run(Gather { x, channels, of, out, to, block });
    });
}

/// Converts the first `channels` channels of `x`, of shape `from`, to images.
///
/// # Panics
/// If a slice has not its shape's length.
pub fn scatter(simd: Simd, x: &[f32], from: Planes, channels: usize, out: &mut [f32]) {
    let image = channels * from.side * from.side;
    assert_eq!(out.len(), from.images * image, "images have their shape's length");
    assert_eq!(x.len(), from.len(), "activations have their shape's length");
    assert_eq!(from.blocks, channels.div_ceil(BLOCK), "blocks for these channels");
    out.par_chunks_mut(image).enumerate().for_each(|(index, out)| {
        simd.run(Scatter { x, from, channels, image: index, out });
    });
}

/// Sixteen channels of a block from `first` on, as far as there are any.
fn of_half(block: usize, half: usize, channels: usize) -> std::ops::Range<usize> {
    let first = block * BLOCK + half * LANES;
    first.min(channels)..(first + LANES).min(channels)
}

/// One block of [`gather`].
struct Gather<'a> {
    x: &'a [f32],
    channels: usize,
    of: Option<&'a [f32]>,
    out: &'a mut [f32],
    to: Planes,
    block: usize,
}

impl Kernel for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { x, channels, of, out, to, block } = self;
        let (pixels, halves) = (to.side * to.side, BLOCK / LANES);
        let (out, _) = out.as_chunks_mut::<LANES>();
        let of = of.map(|of| of.as_chunks::<LANES>().0);
        for image in 0..to.images {
            for half in 0..halves {
                let mine = of_half(block, half, channels);
                for first in (0..pixels).step_by(LANES) {
                    let count = LANES.min(pixels - first);
                    let mut square = [l.splat(0.0); LANES];
                    for (row, channel) in square.iter_mut().zip(mine.clone()) {
                        let line = &x[(image * channels + channel) * pixels + first..][..count];
                        *row = match line.as_array::<LANES>() {
                            Some(line) => l.load(line),
                            None => {
                                let mut padded = [0.0; LANES];
                                padded[..count].copy_from_slice(line);
                                l.load(&padded)
                            }
                        };
                    }
                    for (place, row) in l.transpose(square).into_iter().take(count).enumerate() {
                        let at = ((first + place) * to.images + image) * halves + half;
                        let row = match of {
                            Some(of) => l.unless_zero(row, l.load(&of[at])),
                            None => row,
                        };
                        l.store(row, &mut out[at]);
                    }
                }
            }
        }
    }
}

/// One image of [`scatter`].
struct Scatter<'a> {
    x: &'a [f32],
    from: Planes,
    channels: usize,
    image: usize,
    out: &'a mut [f32],
}

impl Kernel for Scatter<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: SimdVec>(self, l: L) {
        let Self { x, from, channels, image, out } = self;
        let (pixels, halves) = (from.side * from.side, BLOCK / LANES);
        let (x, _) = x.as_chunks::<LANES>();
        for block in 0..from.blocks {
            for half in 0..halves {
                let mine = of_half(block, half, channels);
                for first in (0..pixels).step_by(LANES) {
                    let count = LANES.min(pixels - first);
                    let mut square = [l.splat(0.0); LANES];
                    for (place, row) in square.iter_mut().take(count).enumerate() {
                        let pixel = block * pixels + first + place;
                        *row = l.load(&x[(pixel * from.images + image) * halves + half]);
                    }
                    for (row, channel) in l.transpose(square).into_iter().zip(mine.clone()) {
                        let line = &mut out[channel * pixels + first..][..count];
                        match line.as_mut_array::<LANES>() {
                            Some(line) => l.store(row, line),
                            None => {
                                let mut padded = [0.0; LANES];
                                l.store(row, &mut padded);
                                line.copy_from_slice(&padded[..count]);
                            }
                        }
                    }
                }
            }
        }
    }
}
