//! How far each pixel stands out from its surroundings, in one direction.
//!
//! The surroundings are the picture's morphological closing (or opening, for light ink) by a square that no stroke fills.
//! A shadow, a fall of light, a sheet's edge and the table below it are wider than the square, so they are
//! surroundings. The difference is divided by the light there, because ink takes a share of the light.

use image::GrayImage;

/// The least light that a difference is divided by, of 255: in the dark it would be noise's.
const LEAST_LIGHT: u8 = 48;
/// The shorter side from which on the noise of single pixels is taken out; a smaller picture would lose gaps between strokes.
const SMOOTHED: u32 = 100;

/// A picture's contrast in one direction.
#[derive(Clone, Debug)]
pub struct Contrast {
    /// Columns.
    pub width: usize,
    /// The share of the light by which each pixel is darker (or lighter) than its surroundings, row-major.
    pub share: Vec<f32>,
    /// How light each pixel is, row-major.
    pub lightness: Vec<u8>,
    /// How light the surroundings are, row-major.
    pub surroundings: Vec<u8>,
}

impl Contrast {
    /// Rows.
    pub fn height(&self) -> usize {
        self.share.len() / self.width
    }

    /// The contrast of ink that is darker than its surroundings, or lighter.
    pub fn of(grey: &GrayImage, dark_on_light: bool) -> Self {
        let (width, height) = grey.dimensions();
        let (shorter, longer) = (width.min(height), width.max(height));
        let radius = (shorter / 6).max(longer / 8).max(2) as usize;
        // The extremes of noise are not what the paper is like, so the surroundings are those of the medians.
        let smooth = medians(grey);
        let pixels = if shorter < SMOOTHED { grey.as_raw() } else { smooth.as_raw() };
        let wide = Plane::extended(&smooth, 2 * radius, if dark_on_light { 4 } else { 1 });
        let lightest = wide.over_squares(radius, u8::max);
        let surroundings = if dark_on_light {
            lightest.over_squares(radius, u8::min)
        } else {
            wide.over_squares(radius, u8::min).over_squares(radius, u8::max)
        };
        let light = if dark_on_light { &surroundings } else { &lightest };
        let dimmest = (smooth.iter().copied().max().unwrap_or_default() / 3).max(LEAST_LIGHT);
        let inside: Vec<usize> = wide.inside(2 * radius).collect();
        let share = inside.iter().zip(pixels).map(|(&at, &pixel)| {
            let around = surroundings.values[at];
            let difference =
                if dark_on_light { around.saturating_sub(pixel) } else { pixel.saturating_sub(around) };
            f32::from(difference) / f32::from(light.values[at].max(dimmest))
        });
        Self {
            width: width as usize,
            share: share.collect(),
            lightness: pixels.clone(),
            surroundings: inside.iter().map(|&at| surroundings.values[at]).collect(),
        }
    }
}

/// The median of each pixel and its neighbours.
fn medians(grey: &GrayImage) -> GrayImage {
    let (width, height) = grey.dimensions();
    GrayImage::from_fn(width, height, |x, y| {
        let mut around = [0; 9];
        for (place, value) in around.iter_mut().enumerate() {
            let (dx, dy) = (place as u32 % 3, place as u32 / 3);
            let clamp = |c: u32, d: u32, side: u32| (c + d).saturating_sub(1).min(side - 1);
            *value = grey.get_pixel(clamp(x, dx, width), clamp(y, dy, height)).0[0];
        }
        around.sort_unstable();
        image::Luma([around[4]])
    })
}

/// Rows of values.
struct Plane {
    width: usize,
    values: Vec<u8>,
}

impl Plane {
    /// A picture with a margin that goes on as the paper at the picture's edge is: so many fifths of the pixels there are darker.
    /// A stroke that is cut by the edge ends there.
    fn extended(grey: &GrayImage, margin: usize, fifths: usize) -> Self {
        let (width, height) = (grey.width() as usize, grey.height() as usize);
        let edge = |side: usize, pixel: &dyn Fn(usize) -> u8| -> Vec<u8> {
            let pixels: Vec<u8> = (0..side).map(pixel).collect();
            (0..side)
                .map(|at| {
                    let mut near = pixels[at.saturating_sub(margin)..(at + margin + 1).min(side)].to_vec();
                    let paper = near.len() * fifths / 5;
                    *near.select_nth_unstable(paper).1
                })
                .collect()
        };
        let pixel = |x: usize, y: usize| grey.as_raw()[y * width + x];
        let top = edge(width, &|x| pixel(x, 0));
        let bottom = edge(width, &|x| pixel(x, height - 1));
        let left = edge(height, &|y| pixel(0, y));
        let right = edge(height, &|y| pixel(width - 1, y));
        let (columns, rows) = (width + 2 * margin, height + 2 * margin);
        let mut values = Vec::with_capacity(columns * rows);
        for y in 0..rows {
            for x in 0..columns {
                let (inner_x, inner_y) =
                    (x.saturating_sub(margin).min(width - 1), y.saturating_sub(margin).min(height - 1));
                values.push(match (x < margin, x >= margin + width, y < margin, y >= margin + height) {
                    (_, _, true, _) => top[inner_x],
                    (_, _, _, true) => bottom[inner_x],
                    (true, ..) => left[inner_y],
                    (_, true, ..) => right[inner_y],
                    _ => pixel(inner_x, inner_y),
                });
            }
        }
        Self { width: columns, values }
    }

    /// The places that are not in the margin.
    fn inside(&self, margin: usize) -> impl Iterator<Item = usize> + use<> {
        let (width, height) = (self.width, self.values.len() / self.width);
        (margin..height - margin).flat_map(move |y| (margin..width - margin).map(move |x| y * width + x))
    }

    /// The extreme over a square around each place.
    fn over_squares(&self, radius: usize, extreme: fn(u8, u8) -> u8) -> Self {
        self.over_rows(radius, extreme).over_rows(radius, extreme)
    }

    /// The extreme over a piece of the row around each place, transposed.
    fn over_rows(&self, radius: usize, extreme: fn(u8, u8) -> u8) -> Self {
        let height = self.values.len() / self.width;
        let mut values = vec![0; self.values.len()];
        let length = 2 * radius + 1;
        for (y, row) in self.values.chunks_exact(self.width).enumerate() {
            // Van Herk's: extremes of blocks from their starts and from their ends.
            let mut from_start = row.to_vec();
            let mut from_end = row.to_vec();
            for x in 1..row.len() {
                if x % length != 0 {
                    from_start[x] = extreme(from_start[x], from_start[x - 1]);
                }
            }
            for x in (0..row.len() - 1).rev() {
                if (x + 1) % length != 0 {
                    from_end[x] = extreme(from_end[x], from_end[x + 1]);
                }
            }
            for x in 0..row.len() {
                let (first, last) = (x.saturating_sub(radius), (x + radius).min(row.len() - 1));
                // A piece within one block reaches from the block's start, or to the row's end.
                let value = match (first / length == last / length, first % length) {
                    (true, 0) => from_start[last],
                    (true, _) => from_end[first],
                    (false, _) => extreme(from_end[first], from_start[last]),
                };
                values[x * height + y] = value;
            }
        }
        Self { width: height, values }
    }
}
