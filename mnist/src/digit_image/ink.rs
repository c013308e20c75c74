//! The one digit of a picture, among the shapes that may be strokes.

use image::GrayImage;

use super::contrast::Contrast;
use super::shapes::{Bounds, Shape, neighbours, shapes};
use super::{Invert, PictureError, strokes};

/// The least difference between the darkest and the lightest pixel of a picture that can be used.
const LEAST_DIFFERENCE: u8 = 24;
/// The least contrast of ink.
const LEAST_CONTRAST: f32 = 0.16;
/// The share of the ink's contrast from which on a pixel belongs to a shape. Ruled lines have less.
const COVERED: f32 = 0.4;
/// If more of the pixels, in percent, stand out, the rest is not a background.
const MOST_COVERED: usize = 60;
/// An edge is a pixel wide, and one more for each time that the picture's shorter side has so many pixels.
const SOFT: usize = 150;
/// The longer side of the smallest digit, in pixels.
const LEAST_SIDE: usize = 8;

/// The digit's ink.
#[derive(Clone, Debug)]
pub struct Ink {
    /// Columns.
    pub width: usize,
    /// How much of each pixel is covered, 0 to 1, row-major.
    pub cover: Vec<f32>,
    /// Ink is darker than the background.
    pub dark_on_light: bool,
    /// How light the background around the digit is.
    pub background: u8,
}

/// What a picture shows in one direction.
struct Seen {
    contrast: Contrast,
    dark_on_light: bool,
    /// The shape with the most ink.
    largest: Shape,
    /// The digit's other shapes.
    others: Vec<Shape>,
    /// There is more than one digit.
    several: bool,
}

/// Finds the one digit of a picture.
pub fn find(grey: &GrayImage, invert: Invert) -> Result<Ink, PictureError> {
    let (darkest, lightest) =
        grey.iter().fold((u8::MAX, u8::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    if grey.is_empty() || lightest - darkest < LEAST_DIFFERENCE {
        return Err(PictureError::Flat);
    }
    let directions = invert.directions();
    let mut seen = directions.iter().filter_map(|&dark_on_light| look(grey, dark_on_light));
    let chosen = match (seen.next(), seen.next()) {
        (None, _) => return Err(PictureError::NoDigit),
        (Some(one), None) => one,
        (Some(a), Some(b)) if a.surrounds(&b) => a,
        (Some(a), Some(b)) if b.surrounds(&a) => b,
        (Some(a), Some(b)) => {
            std::cmp::max_by(a, b, |a, b| a.largest.weight().total_cmp(&b.largest.weight()))
        }
    };
    if chosen.several { Err(PictureError::Several) } else { Ok(chosen.ink()) }
}

/// The shapes that are darker than their surroundings, or lighter, and look like a digit or several.
fn look(grey: &GrayImage, dark_on_light: bool) -> Option<Seen> {
    let contrast = Contrast::of(grey, dark_on_light);
    let full = quantile(contrast.share.clone(), 0.997);
    let covered = contrast.share.iter().filter(|&&share| share >= COVERED * full).count();
    if full < LEAST_CONTRAST || 100 * covered > MOST_COVERED * contrast.share.len() {
        return None;
    }
    let mut parts = shapes(&contrast.share, contrast.width, COVERED * full);
    parts.retain(|shape| strokes::could_be(shape, &contrast));
    parts.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
    let mut parts = parts.into_iter();
    let largest = parts.next()?;
    let thickness = largest.thickness(contrast.width);
    let whole = largest.bounds;
    let mut bounds = whole;
    let (mut several, mut others) = (false, Vec::new());
    // Another digit may be fainter, and in pieces.
    let (mut strays, mut mass) = (None::<Bounds>, 0.0);
    for part in parts {
        let near = 5 * whole.gap(part.bounds) <= whole.longer();
        // One pen writes a whole digit.
        let pen = |strength: f32, tenths: usize| {
            part.mean() >= strength * largest.mean()
                && 10 * part.thickness(contrast.width) >= tenths * thickness
        };
        if pen(0.8, 4) {
            several |= if near {
                part.bounds.is_beside(whole) && 100 * part.bounds.height() >= 55 * whole.height()
            } else {
                100 * part.bounds.longer() >= 40 * whole.longer()
            };
        }
        if near && pen(0.8, 4) {
            bounds = bounds.with(part.bounds);
            others.push(part);
        } else if whole.gap(part.bounds) <= whole.longer() && pen(0.7, 2) {
            mass += part.mass;
            strays = Some(strays.map_or(part.bounds, |strays| strays.with(part.bounds)));
        }
    }
    several |=
        strays.is_some_and(|strays| 2 * strays.height() >= whole.height()) && 10.0 * mass >= largest.mass;
    // Two that touch are wider than any digit.
    several |= 10 * bounds.width() > 17 * bounds.height();
    let shorter = grey.width().min(grey.height()) as usize;
    let large_enough = bounds.longer() >= LEAST_SIDE.max(shorter / 16);
    large_enough.then_some(Seen { contrast, dark_on_light, largest, others, several })
}

/// The value that a share of all are below, or 0.
fn quantile(mut values: Vec<f32>, share: f32) -> f32 {
    let at = (values.len() as f32 * share) as usize;
    if at < values.len() { *values.select_nth_unstable_by(at, f32::total_cmp).1 } else { 0.0 }
}

impl Seen {
    /// Whether the other one is what lies between this one's strokes, such as the hollow of a 0: that stands out too.
    fn surrounds(&self, other: &Self) -> bool {
        let (own, others) = (&self.largest, &other.largest);
        others.bounds.share_in(own.bounds) > 0.8
            && own.bounds.share_in(others.bounds) < 0.8
            && 4.0 * own.mass > others.mass
            && 2.0 * own.mean() > others.mean()
    }

    /// How much of each pixel is covered by the digit.
    fn ink(&self) -> Ink {
        let Contrast { width, share, surroundings, .. } = &self.contrast;
        let places = || std::iter::once(&self.largest).chain(&self.others).flat_map(|shape| &shape.places);
        let full = quantile(places().map(|&at| share[at]).collect(), 0.99);
        let mut cover = vec![0.0; share.len()];
        let covered = |at: usize| (share[at] / full).min(1.0);
        let mut edge: Vec<usize> = places().copied().collect();
        for &at in &edge {
            cover[at] = covered(at);
        }
        // A shape's soft edge is a part of it, but not the line that crosses it.
        for _ in 0..=width.min(&self.contrast.height()) / SOFT {
            let mut next = Vec::new();
            for near in edge.iter().flat_map(|&at| neighbours(at, *width, self.contrast.height())) {
                if cover[near] == 0.0 && covered(near) > 0.0 {
                    cover[near] = covered(near);
                    next.push(near);
                }
            }
            edge = next;
        }
        let background = quantile(places().map(|&at| f32::from(surroundings[at])).collect(), 0.5) as u8;
        Ink { width: *width, cover, dark_on_light: self.dark_on_light, background }
    }
}
