//! What a picture shows, and its painting.

use image::{Rgba, RgbaImage, imageops};

use super::super::Split;
use super::Class;
use super::dice::{Colour, Dice};
use super::light::Light;
use super::placed::{Placed, Rect, turned};

/// Everything in a picture.
pub struct Scene {
    size: (f32, f32),
    paper: Colour,
    ink: Colour,
    digits: Vec<Placed>,
    sheet: Option<Sheet>,
    frame: Option<Frame>,
    ruling: Option<Ruling>,
    fade: Option<(Colour, f32)>,
    light: Light,
    /// The whole picture is turned by an angle, and its corners have a colour.
    turn: Option<(f32, Colour)>,
    transparent: bool,
    blur: f32,
    noise: f32,
}

/// A sheet on a table.
struct Sheet {
    rect: Rect,
    table: Colour,
    grain: f32,
}

/// A drawn frame.
struct Frame {
    rect: Rect,
    line: f32,
    colour: Colour,
}

/// Lines on the paper.
struct Ruling {
    pitch: f32,
    thin: f32,
    phase: f32,
    slant: f32,
    squared: bool,
    colour: Colour,
}

fn mix(a: Colour, b: Colour, share: f32) -> Colour {
    [0, 1, 2].map(|i| a[i] * (1.0 - share) + b[i] * share)
}

/// A pixel's share of what has an edge there.
fn inside(distance: f32) -> f32 {
    (0.5 - distance).clamp(0.0, 1.0)
}

impl Scene {
    /// Draws a scene of a kind, with the digits of a class, and the first of those.
    pub fn draw(class: Class, kind: Class, test: &Split, dice: &mut Dice) -> (Self, usize) {
        let longer = match class {
            Class::Small => dice.between(26.0, 64.0),
            _ => [90.0, 160.0, 250.0, 360.0, 500.0, 900.0][dice.below(6)] * dice.between(0.8, 1.2f32),
        };
        let shorter = longer * dice.between(0.6, 1.0);
        let size = if dice.chance(0.5) { (longer, shorter) } else { (shorter, longer) };
        let (paper, ink) = match kind {
            Class::Colours | Class::Transparent => dice.two_colours(),
            _ if dice.chance(0.12) => (dice.greyish(15.0, 60.0), dice.greyish(190.0, 250.0)),
            _ => (dice.greyish(170.0, 250.0), dice.greyish(10.0, 75.0)),
        };
        let mut scene = Self {
            size,
            paper,
            ink,
            digits: Vec::new(),
            sheet: None,
            frame: None,
            ruling: None,
            fade: None,
            light: Light::draw(kind, shorter, dice),
            turn: None,
            transparent: kind == Class::Transparent,
            blur: 0.0,
            noise: if kind == Class::Transparent { 0.0 } else { dice.between(0.0, 7.0) },
        };
        let room = scene.add(kind, shorter, dice);
        let first = scene.write(class, &room, test, dice);
        (scene, first)
    }

    /// Adds what the kind has, and says where there is room for a digit.
    fn add(&mut self, kind: Class, shorter: f32, dice: &mut Dice) -> Rect {
        let (width, height) = self.size;
        let centre = (width / 2.0, height / 2.0);
        let whole = Rect { centre, half: (width * 0.47, height * 0.47), turn: 0.0 };
        match kind {
            Class::Desk => {
                let half = (width * dice.between(0.25, 0.42), height * dice.between(0.25, 0.42));
                let mut shift = |side: f32, half: f32| (side / 2.0 - half) * dice.between(-0.9, 0.9);
                let centre = (centre.0 + shift(width, half.0), centre.1 + shift(height, half.1));
                let turn = dice.tilt(8.0);
                let table = match dice.below(3) {
                    0 => dice.greyish(15.0, 70.0),
                    1 => [dice.between(80.0, 150.0), dice.between(50.0, 90.0), dice.between(20.0, 50.0)],
                    _ => mix(dice.colour(), [40.0, 40.0, 40.0], 0.5),
                };
                let rect = Rect { centre, half, turn };
                self.sheet = Some(Sheet { rect, table, grain: dice.between(0.0, 12.0) });
                Rect { centre, half: (half.0 * 0.88, half.1 * 0.88), turn }
            }
            Class::Frame => {
                let inset = (shorter * dice.between(-0.05, 0.15)).max(0.0);
                let line = (shorter * dice.between(0.008, 0.06)).max(1.0);
                let half = (width / 2.0 - inset, height / 2.0 - inset);
                let colour = if dice.chance(0.7) { self.ink } else { mix(dice.colour(), self.ink, 0.5) };
                self.frame = Some(Frame { rect: Rect { centre, half, turn: dice.tilt(2.0) }, line, colour });
                Rect { centre, half: ((half.0 - line) * 0.9, (half.1 - line) * 0.9), turn: 0.0 }
            }
            Class::Ruled => {
                let line = if dice.chance(0.5) { [90.0, 130.0, 200.0] } else { dice.greyish(60.0, 150.0) };
                self.ruling = Some(Ruling {
                    pitch: shorter * dice.between(0.06, 0.25),
                    thin: (shorter * dice.between(0.002, 0.01)).max(0.6),
                    phase: dice.between(0.0, 1.0),
                    slant: dice.tilt(3.0),
                    squared: dice.chance(0.4),
                    colour: mix(self.paper, line, dice.between(0.3, 0.9)),
                });
                whole
            }
            Class::Gradient => {
                let dark = dice.chance(0.5);
                let mut paper = || {
                    [0; 3].map(|_| if dark { dice.between(0.0, 130.0) } else { dice.between(125.0, 255.0) })
                };
                self.paper = paper();
                let other = paper();
                self.fade = Some((other, dice.direction()));
                self.ink = if dark { dice.greyish(220.0, 250.0) } else { dice.greyish(5.0, 30.0) };
                whole
            }
            Class::Turned if dice.chance(0.5) => {
                let corners = if dice.chance(0.5) { [0.0; 3] } else { [255.0; 3] };
                self.turn = Some((dice.tilt(15.0), corners));
                Rect { half: (width * 0.4, height * 0.4), ..whole }
            }
            Class::Poor => {
                self.blur = if dice.chance(0.6) { shorter * dice.between(0.002, 0.012) } else { 0.0 };
                self.noise = dice.between(0.0, 20.0);
                whole
            }
            _ => whole,
        }
    }

    /// Writes the digits of a class into the room.
    fn write(&mut self, class: Class, room: &Rect, test: &Split, dice: &mut Dice) -> usize {
        let (first, second) = (dice.below(test.len()), dice.below(test.len()));
        let most = 2.0 * room.half.0.min(room.half.1);
        let degrees = if class == Class::Turned && self.turn.is_none() { 15.0 } else { 2.0 };
        let turn = room.turn + dice.tilt(degrees);
        let place = |u: f32, v: f32| {
            let (x, y) = turned(u, v, room.turn);
            (room.centre.0 + x, room.centre.1 + y)
        };
        match class {
            Class::Empty => {}
            Class::Two => {
                let size = (most * dice.between(0.3, 0.55)).max(16.0);
                let apart = size * dice.between(0.42, 0.6);
                for (index, side) in [(first, -1.0), (second, 1.0)] {
                    let height = size * dice.between(0.8, 1.0);
                    let centre = place(side * apart, size * dice.between(-0.1, 0.1));
                    self.digits.push(Placed::new(test, index, centre, height, turn, dice));
                }
            }
            _ => {
                let size =
                    (most * dice.between(0.35, 0.85)).max(if class == Class::Small { 10.0 } else { 18.0 });
                // It keeps away from the room's edge: a digit's ends are at most 0.6 of its height from its centre.
                let mut spot = |half: f32| (half - 0.6 * size).max(0.0) * dice.between(-1.0, 1.0);
                let centre = place(spot(room.half.0), spot(room.half.1));
                let mut placed = Placed::new(test, first, centre, size, turn, dice);
                if class == Class::Edge {
                    placed.move_to_edge(self.size.0.floor(), self.size.1.floor(), dice);
                }
                self.digits.push(placed);
            }
        }
        first
    }

    /// The picture's pixels.
    pub fn paint(&self, dice: &mut Dice) -> RgbaImage {
        let hidden = dice.colour();
        let sharp = RgbaImage::from_fn(self.size.0 as u32, self.size.1 as u32, |x, y| {
            let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
            if self.transparent {
                let cover = self.cover(x, y);
                let [r, g, b] = if cover > 0.0 { self.ink } else { hidden };
                return Rgba([r, g, b, 255.0 * cover].map(|v| v as u8));
            }
            let grain = self.noise * dice.noise();
            let [r, g, b] = self.colour(x, y).map(|v| v + grain);
            Rgba([r, g, b, 255.0].map(|v| v.clamp(0.0, 255.0) as u8))
        });
        if self.blur > 0.3 { imageops::fast_blur(&sharp, self.blur) } else { sharp }
    }

    fn cover(&self, x: f32, y: f32) -> f32 {
        self.digits.iter().map(|digit| digit.cover(x, y)).fold(0.0, f32::max)
    }

    /// The colour at a place.
    fn colour(&self, x: f32, y: f32) -> Colour {
        let (width, height) = self.size;
        let middle = (width / 2.0, height / 2.0);
        let along =
            |way: f32| ((x - middle.0) * way.cos() + (y - middle.1) * way.sin()) / (width.max(height) / 2.0);
        let (mut x, mut y) = (x, y);
        if let Some((turn, corners)) = self.turn {
            let (u, v) = turned(x - middle.0, y - middle.1, -turn);
            (x, y) = (middle.0 + u, middle.1 + v);
            if x < 0.0 || y < 0.0 || x > width || y > height {
                return corners;
            }
        }
        let mut colour = self.paper;
        if let Some((other, way)) = self.fade {
            colour = mix(colour, other, (0.5 + 0.5 * along(way)).clamp(0.0, 1.0));
        }
        if let Some(Ruling { pitch, thin, phase, slant, squared, colour: line }) = self.ruling {
            let (u, v) = turned(x, y, slant);
            let near = |c: f32| ((c / pitch + phase).rem_euclid(1.0) - 0.5).abs() * pitch - thin / 2.0;
            let lines = inside(near(v)).max(if squared { inside(near(u)) } else { 0.0 });
            colour = mix(colour, line, lines * thin.min(1.0));
        }
        if let Some(Frame { rect, line, colour: drawn }) = &self.frame {
            let distance = rect.distance(x, y);
            colour = mix(colour, *drawn, inside(distance) * inside(-distance - line));
        }
        colour = mix(colour, self.ink, self.cover(x, y));
        if let Some(Sheet { rect, table, grain }) = &self.sheet {
            let wave = grain * ((0.11 * y + 3.0 * (0.013 * x).sin()).sin() + (0.37 * y).sin());
            colour = mix(table.map(|c| c + wave), colour, inside(rect.distance(x, y)));
        }
        let light = self.light.at(along, width.min(height));
        colour.map(|c| c * light)
    }
}
