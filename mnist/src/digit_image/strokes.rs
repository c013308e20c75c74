//! Whether a connected shape may be one of a digit's strokes: the rules that leave out the rest of a picture.

use super::contrast::Contrast;
use super::shapes::Shape;

/// The share of a shape's outline, in percent, that has to be at an edge.
const LEAST_EDGES: usize = 96;
/// A difference that is an edge, as a share of the shape's own contrast.
const EDGE: f32 = 0.3;
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

/// Whether a shape ends where the picture has edges. What lies between a stroke and another one, or a frame, stands out
/// too, but passes into the paper beside it.
fn ends_at_edges(shape: &Shape, contrast: &Contrast) -> bool {
    let edge = EDGE * shape.mean();
    let (mut all, mut edges) = (0, 0);
    for at in shape.outline(contrast.width, contrast.height()) {
        all += 1;
        edges += usize::from(contrast.edges[at] >= edge);
    }
    100 * edges >= LEAST_EDGES * all
}
