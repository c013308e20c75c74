//! Whether a connected shape may be one of a digit's strokes: the rules that leave out the rest of a picture.

use std::collections::HashSet;

use super::contrast::Contrast;
use super::shapes::{Shape, neighbours};

/// The share of the pixels around a shape, in percent, that may go on as the shape's edge is.
const MOST_OPEN: usize = 8;
/// Shapes that have more of the rectangle around them are frames, sheets and cells of squared paper.
const MOST_RECTANGULAR: f32 = 0.88;
/// A digit's strokes together are at most this many times as long as the digit; a web of noise or lines is longer.
const MOST_LENGTHS: usize = 6;
/// The longer side of the smallest shape whose form can be judged, in pixels.
const LEAST_FORM: usize = 8;

/// Whether a shape may be one or several strokes of a digit.
pub fn could_be(shape: &Shape, contrast: &Contrast) -> bool {
    let (width, height) = (shape.bounds.width(), shape.bounds.height());
    let (longer, shorter) = (width.max(height), width.min(height));
    let area = shape.places.len();
    // Specks, and hairs.
    if longer < 3 || 20 * area < longer * longer {
        return false;
    }
    let thickness = shape.thickness(contrast.width);
    let reaches_across = width == contrast.width || height == contrast.height();
    if (reaches_across && 16 * thickness < longer) || area > MOST_LENGTHS * thickness * longer {
        return false;
    }
    // A 1 is a filled rectangle too, but narrow.
    let has_form = longer >= LEAST_FORM && longer <= 2 * shorter;
    let blot = 2 * thickness > longer;
    let excluded = has_form && (blot || shape.rectangularity(contrast.width) >= MOST_RECTANGULAR);
    !excluded && ends_at_edges(shape, contrast)
}

/// Whether the paper is around a shape. What lies between a stroke and another one, or a frame, or along a sheet's edge,
/// stands out too, but on one of its sides the picture goes on as it is.
fn ends_at_edges(shape: &Shape, contrast: &Contrast) -> bool {
    let (columns, rows) = (contrast.width, contrast.height());
    let mut seen: HashSet<usize> = shape.places.iter().copied().collect();
    // Each pixel of the ring, and the one of the outline that it was reached from.
    let mut ring: Vec<(usize, usize)> = shape.outline(columns, rows).map(|at| (at, at)).collect();
    for _ in 0..2 + columns.min(rows) / 128 {
        let mut next = Vec::new();
        for (at, from) in ring {
            let beside = neighbours(at, columns, rows).filter(|&near| seen.insert(near));
            next.extend(beside.map(|near| (near, from)));
        }
        ring = next;
    }
    let open = |&&(at, from): &&(usize, usize)| {
        let step = |to: u8| u32::from(contrast.lightness[from].abs_diff(to));
        2 * step(contrast.lightness[at]) < step(contrast.surroundings[from])
    };
    100 * ring.iter().filter(open).count() <= MOST_OPEN * ring.len()
}
