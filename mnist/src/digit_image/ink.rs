//! The ink of the one digit that a picture shows.

use image::GrayImage;

use super::contrast::Contrast;
use super::digit::Digit;
use super::shapes::{Shape, neighbours, shapes};
use super::{Invert, PictureError, strokes};

/// The least difference between the darkest and the lightest pixel of a picture that can be used.
const LEAST_DIFFERENCE: u8 = 24;
/// The least contrast of ink.
const LEAST_CONTRAST: f32 = 0.25;
/// The share of pixels that have less contrast than ink.
const BELOW_INK: f32 = 0.997;
/// The shares of the ink's contrast from which on a pixel belongs to a shape. The second is tried where the first shows no
/// stroke: ruled lines have less contrast than writing.
const LEVELS: [f32; 2] = [0.4, 0.6];
/// If more of the pixels, in percent, stand out, the rest is not a background.
const MOST_COVERED: usize = 60;
/// An edge is a pixel wide, and one more for each time that the picture's shorter side has so many pixels.
const SOFT: usize = 150;

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

/// Finds the one digit of a picture.
pub fn find(grey: &GrayImage, invert: Invert) -> Result<Ink, PictureError> {
    let (darkest, lightest) =
        grey.iter().fold((u8::MAX, u8::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    if grey.is_empty() || lightest - darkest < LEAST_DIFFERENCE {
        return Err(PictureError::Flat);
    }
    let views: Vec<View> =
        invert.directions().iter().map(|&dark_on_light| View::of(grey, dark_on_light)).collect();
    let mut digits = views.iter().filter_map(|view| Some((view, view.digit()?)));
    let (view, digit) = match (digits.next(), digits.next()) {
        (None, _) => return Err(PictureError::NoDigit),
        (Some(only), None) => only,
        (Some(a), Some(b)) => {
            let (less, more) = if a.1.largest.weight() < b.1.largest.weight() { (a, b) } else { (b, a) };
            if less.1.shapes().any(|shape| surrounds(shape, more.1.largest)) { less } else { more }
        }
    };
    if digit.several { Err(PictureError::Several) } else { Ok(view.ink(&digit)) }
}

/// Whether one shape lies within another one, as the hollow of a 0 does: it stands out from the strokes around it.
fn surrounds(outer: &Shape, inner: &Shape) -> bool {
    inner.bounds.share_in(outer.bounds) > 0.8
        && outer.bounds.share_in(inner.bounds) < 0.8
        && 4.0 * outer.mass > inner.mass
        && 2.0 * outer.mean() > inner.mean()
}

/// What is darker than its surroundings in a picture, or what is lighter.
struct View {
    contrast: Contrast,
    dark_on_light: bool,
    /// Shapes that are strokes, the one with the most ink first.
    strokes: Vec<Shape>,
}

impl View {
    fn of(grey: &GrayImage, dark_on_light: bool) -> Self {
        let contrast = Contrast::of(grey, dark_on_light);
        let full = quantile(contrast.share.clone(), BELOW_INK);
        let mut view = Self { contrast, dark_on_light, strokes: Vec::new() };
        for level in LEVELS.map(|level| level * full) {
            let Contrast { width, share, .. } = &view.contrast;
            let covered = share.iter().filter(|&&share| share >= level).count();
            if full < LEAST_CONTRAST || 100 * covered > MOST_COVERED * share.len() {
                continue;
            }
            view.strokes = shapes(share, *width, level);
            view.strokes.retain(|shape| strokes::could_be(shape, &view.contrast));
            if !view.strokes.is_empty() {
                break;
            }
        }
        view.strokes.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
        view
    }

    fn digit(&self) -> Option<Digit<'_>> {
        Digit::of(&self.strokes, self.contrast.width, self.contrast.height())
    }

    /// How much of each pixel is covered by the digit.
    fn ink(&self, digit: &Digit<'_>) -> Ink {
        let Contrast { width, share, surroundings, .. } = &self.contrast;
        let places = || digit.shapes().flat_map(|shape| &shape.places).copied();
        let full = quantile(places().map(|at| share[at]).collect(), 0.99);
        let covered = |at: usize| (share[at] / full).min(1.0);
        let mut cover = vec![0.0; share.len()];
        let mut edge: Vec<usize> = places().collect();
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
        let background = quantile(places().map(|at| f32::from(surroundings[at])).collect(), 0.5) as u8;
        Ink { width: *width, cover, dark_on_light: self.dark_on_light, background }
    }
}

/// The value that a share of all are below, or 0.
fn quantile(mut values: Vec<f32>, share: f32) -> f32 {
    let at = (values.len() as f32 * share) as usize;
    if at < values.len() { *values.select_nth_unstable_by(at, f32::total_cmp).1 } else { 0.0 }
}
