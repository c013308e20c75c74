//! Whether a connected shape may be one of a digit's strokes: the rules that leave out the rest of a picture.
//!
//! The bounds are a little beyond what MNIST's test digits have, in pictures of 80 to 320 pixels.

use std::collections::HashSet;

use super::contrast::Contrast;
use super::shapes::{Bounds, Shape, neighbours};

/// The most of the pixels around a shape, in percent, at which there may be no edge.
const MOST_OPEN: usize = 10;
/// The least share of the rectangle around it that a frame, a sheet or a cell of squared paper has.
const RECTANGULAR: f32 = 0.88;
/// The most that a stroke's thickness has of the digit's longer side, in percent. The digits have up to 40.
const MOST_THICK: usize = 43;
/// The most that the strokes together have of the digit's longer side. The digits have up to 2.9; noise has more.
const MOST_LENGTHS: usize = 4;
/// The most areas that a digit encloses. An 8 encloses two, and a hasty hand adds one; a net of lines encloses more.
const MOST_HOLES: usize = 3;
/// The longer side of the smallest shape whose form can be judged, in pixels.
const LEAST_FORM: usize = 8;
/// A line has less of the square of its length than one in so many. The digits have at least one in 13.
const HAIR: usize = 20;
/// A line across the whole picture that is longer than its thickness times this is no stroke.
const LINE: usize = 16;

/// Whether a shape may be one or several strokes of a digit.
pub fn could_be(shape: &Shape, contrast: &Contrast) -> bool {
    let (width, height) = (shape.bounds.width(), shape.bounds.height());
    let (longer, shorter) = (width.max(height), width.min(height));
    let area = shape.places.len();
    let speck = longer < 3;
    if speck || HAIR * area < longer * longer || lies_beside_the_paper(shape, contrast) {
        return false;
    }
    let thickness = shape.thickness(contrast.width);
    let reaches_across = width == contrast.width || height == contrast.height();
    if (reaches_across && LINE * thickness < longer) || area > MOST_LENGTHS * thickness * longer {
        return false;
    }
    let holes = shape.holes(contrast.width);
    if longer >= LEAST_FORM {
        // A 1 is a thick rectangle too, but narrow and without holes.
        let narrow = longer > 2 * shorter;
        let blot = !narrow && 100 * thickness > MOST_THICK * longer;
        let has_corners = (!narrow || holes > 0) && shape.rectangularity(contrast.width) >= RECTANGULAR;
        if blot || has_corners {
            return false;
        }
    }
    holes <= MOST_HOLES && ends_at_edges(shape, contrast)
}

/// Whether a shape lies at the picture's edge as what is beside a sheet does: in a corner, or along the edge, where a
/// narrow shape tapers off. A picture that is cut to its digit is filled by the digit.
fn lies_beside_the_paper(shape: &Shape, contrast: &Contrast) -> bool {
    let (columns, rows) = (contrast.width, contrast.height());
    let strip = 2 + columns.min(rows) / 24;
    let Bounds { left, top, right, bottom } = shape.bounds;
    let (width, height) = (shape.bounds.width(), shape.bounds.height());
    if 2 * width >= columns && 2 * height >= rows {
        return false;
    }
    if right < strip || bottom < strip || left + strip >= columns || top + strip >= rows {
        return true;
    }
    let (mut along_sides, mut along_ends, mut in_corner) = (0, 0, false);
    for &at in &shape.places {
        let (x, y) = (at % columns, at / columns);
        let (side, end) = (x == 0 || x + 1 == columns, y == 0 || y + 1 == rows);
        along_sides += usize::from(side);
        along_ends += usize::from(end);
        in_corner |= side && end;
    }
    let (longer, shorter) = (width.max(height), width.min(height));
    let least_along = if longer > 4 * shorter { 3 * longer / 10 } else { 6 * longer / 10 };
    in_corner || along_sides.max(along_ends) > least_along
}

/// Whether the paper is all around a shape. What lies between a stroke and another one, or along a sheet's edge, stands out
/// too, but on one of its sides the picture goes on as it is.
fn ends_at_edges(shape: &Shape, contrast: &Contrast) -> bool {
    let (columns, rows) = (contrast.width, contrast.height());
    let mut seen: HashSet<usize> = shape.places.iter().copied().collect();
    // Each pixel of the ring, and the one of the outline that it was reached from.
    let mut ring: Vec<(usize, usize)> = shape.outline(columns, rows).map(|at| (at, at)).collect();
    // The soft edge of a broad stroke is broad.
    for _ in 0..2 + columns.min(rows) / 128 + shape.thickness(columns) / 3 {
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
