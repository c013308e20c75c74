//! A picture to draw on: rounded rectangles with smooth edges, and enlarged digits.

use image::{Rgb, RgbImage};

/// Red, green, blue.
pub type Colour = [u8; 3];

/// A rectangle, in pixels.
#[derive(Clone, Copy, Debug)]
pub struct Rect {
    /// Left edge.
    pub x: f32,
    /// Upper edge.
    pub y: f32,
    /// Width.
    pub width: f32,
    /// Height.
    pub height: f32,
}

impl Rect {
    /// The same with each edge moved inwards.
    pub fn shrunk(self, by: f32) -> Self {
        Self { x: self.x + by, y: self.y + by, width: self.width - 2.0 * by, height: self.height - 2.0 * by }
    }
}

/// A picture to draw on. What lies outside of it is not drawn.
#[derive(Clone, Debug)]
pub struct Canvas(RgbImage);

impl Canvas {
    /// An empty picture of this colour.
    pub fn new(width: usize, height: usize, paper: Colour) -> Self {
        Self(RgbImage::from_pixel(width as u32, height as u32, Rgb(paper)))
    }

    /// The picture.
    pub fn into_image(self) -> RgbImage {
        self.0
    }

    /// Draws a colour over a pixel, with an opacity from 0 to 1.
    pub fn cover(&mut self, x: i64, y: i64, colour: Colour, cover: f32) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        let Some(pixel) = self.0.get_pixel_mut_checked(x, y) else { return };
        for (under, over) in pixel.0.iter_mut().zip(colour) {
            let mixed = f32::from(*under) + (f32::from(over) - f32::from(*under)) * cover.clamp(0.0, 1.0);
            *under = mixed.round() as u8;
        }
    }

    /// Fills a rectangle with round corners.
    pub fn rounded(&mut self, rect: Rect, radius: f32, colour: Colour) {
        let (half_width, half_height) = (rect.width / 2.0, rect.height / 2.0);
        let centre = (rect.x + half_width, rect.y + half_height);
        let pixels = |from: f32, length: f32| from.floor() as i64..(from + length).ceil() as i64;
        for y in pixels(rect.y, rect.height) {
            for x in pixels(rect.x, rect.width) {
                // How far the pixel's middle lies outside of the shape.
                let beyond =
                    |at: i64, centre: f32, half: f32| (at as f32 + 0.5 - centre).abs() - half + radius;
                let (dx, dy) = (beyond(x, centre.0, half_width), beyond(y, centre.1, half_height));
                let outside = dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0) - radius;
                self.cover(x, y, colour, 0.5 - outside);
            }
        }
    }

    /// Draws a grey picture of `side` columns, each pixel as a square of `zoom`.
    pub fn enlarged(&mut self, pixels: &[u8], side: usize, zoom: usize, (left, top): (usize, usize)) {
        for (index, &value) in pixels.iter().enumerate() {
            let (x, y) = (left + index % side * zoom, top + index / side * zoom);
            for (dx, dy) in (0..zoom).flat_map(|dy| (0..zoom).map(move |dx| (dx, dy))) {
                self.cover((x + dx) as i64, (y + dy) as i64, [value; 3], 1.0);
            }
        }
    }
}
