//! Which of the shapes in a picture make up its digit, and whether there is more than one digit.

use super::shapes::{Bounds, Shape};

/// The longer side of the smallest digit, in pixels.
const LEAST_SIDE: usize = 8;
/// The longer side of the smallest digit is the picture's shorter side divided by this.
const SMALLEST: usize = 16;

/// One or more digits.
#[derive(Debug)]
pub struct Digit<'a> {
    /// The shape with the most ink.
    pub largest: &'a Shape,
    /// The digit's other shapes, such as the bar of a 5.
    pub others: Vec<&'a Shape>,
    /// There is more than one digit.
    pub several: bool,
}

impl<'a> Digit<'a> {
    /// The digit that strokes make up. The first stroke has the most ink.
    pub fn of(strokes: &'a [Shape], columns: usize, rows: usize) -> Option<Self> {
        let (largest, rest) = strokes.split_first()?;
        let thickness = largest.thickness(columns);
        let whole = largest.bounds;
        let mut bounds = whole;
        let (mut several, mut others) = (false, Vec::new());
        let (mut strays, mut mass) = (None::<Bounds>, 0.0);
        for part in rest {
            let near = 5 * whole.gap(part.bounds) <= whole.longer();
            let pen = |strength: f32, tenths: usize| {
                part.mean() >= strength * largest.mean() && 10 * part.thickness(columns) >= tenths * thickness
            };
            several |= pen(0.7, 2)
                && if near {
                    part.bounds.is_beside(whole) && 100 * part.bounds.height() >= 55 * whole.height()
                } else {
                    100 * part.bounds.longer() >= 40 * whole.longer()
                };
            // One pen writes a whole digit. Another digit may be fainter, and in pieces.
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
        let large_enough = bounds.longer() >= LEAST_SIDE.max(columns.min(rows) / SMALLEST);
        large_enough.then_some(Self { largest, others, several })
    }

    /// All its shapes.
    pub fn shapes(&self) -> impl Iterator<Item = &'a Shape> {
        std::iter::once(self.largest).chain(self.others.iter().copied())
    }
}
