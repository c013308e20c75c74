//! The light on a picture.

use super::Class;
use super::dice::Dice;

/// Light that falls off to one side, and a shadow with an edge.
pub struct Light {
    fall: f32,
    way: f32,
    dark: f32,
    edge: f32,
    across: f32,
    soft: f32,
}

impl Light {
    /// Draws the light of a kind of scene.
    pub fn draw(kind: Class, shorter: f32, dice: &mut Dice) -> Self {
        let (sharp, broad) = (dice.between(0.01, 0.03), dice.between(0.1, 0.4));
        Self {
            fall: dice.between(0.0, 0.25),
            way: dice.direction(),
            dark: if kind == Class::Shadow { dice.between(0.3, 0.6) } else { 0.0 },
            edge: dice.between(0.1, 0.9),
            across: dice.direction(),
            soft: shorter * if dice.chance(0.5) { sharp } else { broad },
        }
    }

    /// The share of the light at a place; `along` says how far the place lies from the middle in a direction, -1 to 1.
    pub fn at(&self, along: impl Fn(f32) -> f32, shorter: f32) -> f32 {
        let fall = self.fall * (0.5 + 0.5 * along(self.way));
        let shade = (along(self.across) + 1.0 - 2.0 * self.edge) * shorter / self.soft + 0.5;
        (1.0 - fall) * (1.0 - self.dark * shade.clamp(0.0, 1.0))
    }
}
