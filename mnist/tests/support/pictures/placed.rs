//! A test digit somewhere in a picture, of some size, turned, in some pen.

use image::GrayImage;
use image::imageops::{self, FilterType};

use super::super::{SIDE, Split};
use super::dice::Dice;

/// Pixels of the enlarged digit.
const ENLARGED: u32 = 224;

/// A rectangle, turned about its centre.
pub struct Rect {
    /// Where the centre is.
    pub centre: (f32, f32),
    /// Half the width and half the height.
    pub half: (f32, f32),
    /// By how many radians it is turned.
    pub turn: f32,
}

impl Rect {
    /// How far a point lies outside; inside it is negative.
    pub fn distance(&self, x: f32, y: f32) -> f32 {
        let (u, v) = turned(x - self.centre.0, y - self.centre.1, -self.turn);
        (u.abs() - self.half.0).max(v.abs() - self.half.1)
    }
}

/// A vector that is turned.
pub fn turned(x: f32, y: f32, by: f32) -> (f32, f32) {
    (x * by.cos() - y * by.sin(), x * by.sin() + y * by.cos())
}

/// A digit in a picture.
pub struct Placed {
    large: GrayImage,
    centre: (f32, f32),
    side: f32,
    turn: f32,
    /// How much sharper the pen's edge is than that of 28 pixels made larger.
    slope: f32,
    /// Where the pen's edge is: less is a broader pen.
    edge: f32,
}

impl Placed {
    /// A digit of a height around a centre.
    pub fn new(
        test: &Split,
        index: usize,
        centre: (f32, f32),
        height: f32,
        turn: f32,
        dice: &mut Dice,
    ) -> Self {
        let pixels = test.image(index).map(<[u8]>::to_vec).unwrap_or_default();
        let digit = GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels).unwrap_or_default();
        let filter = [FilterType::CatmullRom, FilterType::Triangle, FilterType::Nearest][dice.below(3)];
        let large = imageops::resize(&digit, ENLARGED, ENLARGED, filter);
        // The digit has 20 of the 28 pixels.
        let side = height * SIDE as f32 / 20.0;
        let sharpest = (side / 56.0).clamp(1.0, 4.0);
        Self { large, centre, side, turn, slope: dice.between(1.0, sharpest), edge: dice.between(0.35, 0.6) }
    }

    /// Moves the digit until its ink reaches one of the picture's edges, or a little beyond it.
    pub fn move_to_edge(&mut self, width: f32, height: f32, dice: &mut Dice) {
        let inked = |x: u32, y: u32| self.large.get_pixel(x, y).0[0] > 127;
        let all =
            || (0..ENLARGED).flat_map(|y| (0..ENLARGED).map(move |x| (x, y))).filter(|&(x, y)| inked(x, y));
        // From the centre to the ink's ends.
        let reach = |along: fn((u32, u32)) -> u32| {
            let (low, high) =
                all().map(along).fold((ENLARGED, 0), |(low, high), at| (low.min(at), high.max(at)));
            [low, high].map(|at| (at as f32 / ENLARGED as f32 - 0.5) * self.side)
        };
        let ([left, right], [top, bottom]) = (reach(|at| at.0), reach(|at| at.1));
        let beyond = dice.between(-0.01, 0.04) * self.side;
        match dice.below(4) {
            0 => self.centre.0 = -left - beyond,
            1 => self.centre.0 = width - right + beyond,
            2 => self.centre.1 = -top - beyond,
            _ => self.centre.1 = height - bottom + beyond,
        }
    }

    /// How much of a pixel is ink.
    pub fn cover(&self, x: f32, y: f32) -> f32 {
        let (u, v) = turned(x - self.centre.0, y - self.centre.1, -self.turn);
        let at = |c: f32| (c / self.side + 0.5) * ENLARGED as f32 - 0.5;
        match imageops::interpolate_bilinear(&self.large, at(u), at(v)) {
            Some(pixel) => {
                let ink = f32::from(pixel.0[0]) / 255.0;
                if self.slope <= 1.0 {
                    ink
                } else {
                    ((ink - self.edge) * self.slope + self.edge).clamp(0.0, 1.0)
                }
            }
            None => 0.0,
        }
    }
}
