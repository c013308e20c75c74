//! The draws of a picture, from Tally's own random numbers.

use std::f32::consts::PI;

use tally_numerics::digest::fnv1a;
use tally_numerics::random::{Purpose, Stream};

use super::Class;

/// Red, green and blue, 0 to 255.
pub type Colour = [f32; 3];

/// Two colours that differ as much as these can be told apart.
const LEAST_DIFFERENCE: f32 = 180.0;
/// Paper and ink that readers by lightness alone get wrong.
const KNOWN: [(Colour, Colour); 6] = [
    ([0.0, 0.0, 0.0], [0.0, 0.0, 255.0]),
    ([255.0, 255.0, 255.0], [255.0, 230.0, 0.0]),
    ([0.0, 140.0, 0.0], [225.0, 30.0, 20.0]),
    ([20.0, 60.0, 40.0], [240.0, 240.0, 230.0]),
    ([255.0, 220.0, 60.0], [20.0, 20.0, 120.0]),
    ([120.0, 120.0, 120.0], [240.0, 140.0, 30.0]),
];

/// Draws of one picture.
pub struct Dice(Stream);

impl Dice {
    /// Those of a picture.
    pub fn of(class: Class, number: usize) -> Self {
        let name = fnv1a(format!("{class:?}").bytes());
        Self(Stream::new(number as u64, Purpose::Initial { name }))
    }

    /// A number of a range.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.0.fraction() as f32
    }

    /// True in a share of all cases.
    pub fn chance(&mut self, of: f32) -> bool {
        self.between(0.0, 1.0) < of
    }

    /// An index.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u32) as usize
    }

    /// An angle of at most so many degrees to either side, in radians.
    pub fn tilt(&mut self, degrees: f32) -> f32 {
        self.between(-degrees, degrees) * PI / 180.0
    }

    /// Any direction, in radians.
    pub fn direction(&mut self) -> f32 {
        self.between(0.0, 2.0 * PI)
    }

    /// Near grey, with a cast.
    pub fn greyish(&mut self, low: f32, high: f32) -> Colour {
        let grey = self.between(low, high);
        [0; 3].map(|_| grey + self.between(-8.0, 8.0))
    }

    /// Any colour.
    pub fn colour(&mut self) -> Colour {
        [0; 3].map(|_| self.between(0.0, 255.0))
    }

    /// Paper and ink: any two colours that can be told apart.
    pub fn two_colours(&mut self) -> (Colour, Colour) {
        if self.chance(0.5) {
            return KNOWN[self.below(KNOWN.len())];
        }
        loop {
            let (a, b) = (self.colour(), self.colour());
            if a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() > LEAST_DIFFERENCE {
                return (a, b);
            }
        }
    }

    /// About normal, with deviation 1.
    pub fn noise(&mut self) -> f32 {
        let sum: f32 = (0..3).map(|_| self.between(-1.0, 1.0)).sum();
        sum
    }
}
