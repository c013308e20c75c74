//! Pictures of digits as people take them: MNIST's test digits on paper, on a desk, in a frame,
//! on ruled lines, in a shadow, in colours, turned, two at once, and none.
//!
//! Each is fixed by its class and its number: the same bytes on every machine. Sizes, places,
//! colours, light, noise and JPEG's quality differ from one to the next. Included by the reader's
//! tests, and by the example `picture_set`, which prints the table in `docs/measurements/pictures.md`.

use std::f32::consts::PI;
use std::io::Cursor;

use super::{SIDE, Split};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{GrayImage, ImageFormat, Rgb, RgbImage};
use tally_numerics::digest::fnv1a;
use tally_numerics::random::{Purpose, Stream};

/// What a picture shows besides a digit, or instead of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A digit on a plain sheet that fills the picture, in uneven light.
    Paper,
    /// A sheet on a darker or coloured table, straight or turned a little.
    Desk,
    /// A drawn frame around the digit.
    Frame,
    /// Ruled or squared paper.
    Ruled,
    /// The edge of a shadow, sharp or soft, somewhere across the sheet.
    Shadow,
    /// Any colour on any other that people can tell apart, such as yellow on white.
    Colours,
    /// Turned by up to 15 degrees.
    Turned,
    /// Two digits side by side.
    Two,
    /// Each of the other classes without a digit.
    Empty,
}

/// All of them, in the table's order.
pub const CLASSES: [Class; 9] = [
    Class::Paper,
    Class::Desk,
    Class::Frame,
    Class::Ruled,
    Class::Shadow,
    Class::Colours,
    Class::Turned,
    Class::Two,
    Class::Empty,
];

/// A picture and the truth about it.
pub struct Made {
    /// A PNG or a JPEG.
    pub bytes: Vec<u8>,
    /// The test digit that it shows; none if it shows two or none.
    pub digit: Option<usize>,
}

type Colour = [f32; 3];

/// Draws of one picture.
struct Dice(Stream);

impl Dice {
    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.0.fraction() as f32
    }

    fn chance(&mut self, of: f32) -> bool {
        self.between(0.0, 1.0) < of
    }

    fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u32) as usize
    }

    /// Near grey, with a cast.
    fn greyish(&mut self, low: f32, high: f32) -> Colour {
        let grey = self.between(low, high);
        [0; 3].map(|_| grey + self.between(-8.0, 8.0))
    }

    fn colour(&mut self) -> Colour {
        [0; 3].map(|_| self.between(0.0, 255.0))
    }

    /// About normal, with deviation 1.
    fn noise(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| self.between(-1.0, 1.0)).sum();
        sum * (3.0f32 / 4.0).sqrt()
    }
}

/// A rectangle, turned about its centre.
struct Rect {
    centre: (f32, f32),
    half: (f32, f32),
    turn: f32,
}

impl Rect {
    /// How far a point lies outside; inside it is negative.
    fn distance(&self, x: f32, y: f32) -> f32 {
        let (u, v) = turned(x - self.centre.0, y - self.centre.1, -self.turn);
        (u.abs() - self.half.0).max(v.abs() - self.half.1)
    }
}

fn turned(x: f32, y: f32, by: f32) -> (f32, f32) {
    (x * by.cos() - y * by.sin(), x * by.sin() + y * by.cos())
}

/// A test digit of a side, with its centre somewhere.
struct Placed {
    large: GrayImage,
    centre: (f32, f32),
    side: f32,
    turn: f32,
}

impl Placed {
    fn new(test: &Split, index: usize, centre: (f32, f32), height: f32, turn: f32) -> Self {
        let pixels = test.image(index).map(<[u8]>::to_vec).unwrap_or_default();
        let digit = GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels).unwrap_or_default();
        let large = imageops::resize(&digit, 224, 224, FilterType::CatmullRom);
        // The digit has 20 of the 28 pixels.
        Self { large, centre, side: height * SIDE as f32 / 20.0, turn }
    }

    /// How much of a pixel is ink; a pen's edge is sharper than that of 28 pixels made larger.
    fn cover(&self, x: f32, y: f32) -> f32 {
        let (u, v) = turned(x - self.centre.0, y - self.centre.1, -self.turn);
        let at = |c: f32| (c / self.side + 0.5) * 224.0 - 0.5;
        let slope = (self.side / 56.0).clamp(1.0, 4.0);
        match imageops::interpolate_bilinear(&self.large, at(u), at(v)) {
            Some(pixel) => ((f32::from(pixel.0[0]) / 255.0 - 0.5) * slope + 0.5).clamp(0.0, 1.0),
            None => 0.0,
        }
    }
}

fn mix(a: Colour, b: Colour, share: f32) -> Colour {
    [0, 1, 2].map(|i| a[i] * (1.0 - share) + b[i] * share)
}

/// Two colours that differ as much as writing does.
fn two_colours(dice: &mut Dice) -> (Colour, Colour) {
    const KNOWN: [(Colour, Colour); 6] = [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 255.0]),
        ([255.0, 255.0, 255.0], [255.0, 230.0, 0.0]),
        ([0.0, 140.0, 0.0], [225.0, 30.0, 20.0]),
        ([20.0, 60.0, 40.0], [240.0, 240.0, 230.0]),
        ([255.0, 220.0, 60.0], [20.0, 20.0, 120.0]),
        ([120.0, 120.0, 120.0], [240.0, 140.0, 30.0]),
    ];
    if dice.chance(0.5) {
        return KNOWN[dice.below(KNOWN.len())];
    }
    loop {
        let (a, b) = (dice.colour(), dice.colour());
        if a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() > 180.0 {
            return (a, b);
        }
    }
}

/// Picture `number` of a class.
pub fn make(class: Class, number: usize, test: &Split) -> Made {
    let name = format!("{class:?}");
    let mut dice = Dice(Stream::new(number as u64, Purpose::Initial { name: fnv1a(name.bytes()) }));
    // Those without a digit are scenes of the others.
    let scene = if class == Class::Empty { CLASSES[number % 6] } else { class };
    let longer = [90.0, 160.0, 300.0, 480.0, 700.0, 1000.0][dice.below(6)] * dice.between(0.8, 1.2f32);
    let shorter = longer * dice.between(0.6, 1.0);
    let (width, height) = if dice.chance(0.5) { (longer, shorter) } else { (shorter, longer) };
    let least = width.min(height);

    // Where the sheet is, and the room for the digit on it.
    let tilt = |dice: &mut Dice, degrees: f32| dice.between(-degrees, degrees) * PI / 180.0;
    let middle = (width / 2.0, height / 2.0);
    let mut room = Rect { centre: middle, half: (width * 0.47, height * 0.47), turn: 0.0 };
    let mut sheet = None;
    if scene == Class::Desk {
        let half = (width * dice.between(0.25, 0.42), height * dice.between(0.25, 0.42));
        let mut shift = |side: f32, half: f32| (side / 2.0 - half) * dice.between(-0.6, 0.6);
        let centre = (middle.0 + shift(width, half.0), middle.1 + shift(height, half.1));
        let turn = tilt(&mut dice, 8.0);
        sheet = Some(Rect { centre, half, turn });
        room = Rect { centre, half: (half.0 * 0.88, half.1 * 0.88), turn };
    }
    let mut frame = None;
    if scene == Class::Frame {
        let inset = least * dice.between(0.03, 0.15);
        let line = least * dice.between(0.008, 0.05);
        let half = (width / 2.0 - inset, height / 2.0 - inset);
        frame = Some((Rect { centre: middle, half, turn: tilt(&mut dice, 2.0) }, line));
        room = Rect { centre: middle, half: ((half.0 - line) * 0.9, (half.1 - line) * 0.9), turn: 0.0 };
    }

    // The digits.
    let first = dice.below(test.len());
    let second = dice.below(test.len());
    let most = 2.0 * room.half.0.min(room.half.1);
    let degrees = if class == Class::Turned { 15.0 } else { 2.0 };
    let turn = room.turn + tilt(&mut dice, degrees);
    let mut digits = Vec::new();
    let mut put = |dice: &mut Dice, index: usize, share: (f32, f32), side: f32| {
        let size = (most * dice.between(share.0, share.1)).max(18.0);
        // It keeps away from the room's edge: a digit is at most 0.6 of its height from its centre.
        let mut spot = |half: f32| (half - 0.6 * size).max(0.0) * dice.between(-1.0, 1.0);
        let (mut x, y) = (spot(room.half.0), spot(room.half.1));
        if side != 0.0 {
            x = side * size * 0.5;
        }
        let (x, y) = turned(x, if side == 0.0 { y } else { 0.0 }, room.turn);
        let centre = (room.centre.0 + x, room.centre.1 + y);
        digits.push(Placed::new(test, index, centre, size, turn));
    };
    match class {
        Class::Empty => {}
        Class::Two => {
            let share = dice.between(0.3, 0.5);
            put(&mut dice, first, (share, share), -1.0);
            put(&mut dice, second, (share * 0.95, share), 1.0);
        }
        _ => put(&mut dice, first, (0.35, 0.8), 0.0),
    }

    // The colours.
    let (paper, ink) = match scene {
        Class::Colours => two_colours(&mut dice),
        _ if dice.chance(0.12) => (dice.greyish(15.0, 60.0), dice.greyish(190.0, 250.0)),
        _ => (dice.greyish(170.0, 250.0), dice.greyish(10.0, 75.0)),
    };
    let table = match dice.below(3) {
        0 => dice.greyish(15.0, 70.0),
        1 => [dice.between(80.0, 130.0), dice.between(50.0, 80.0), dice.between(20.0, 45.0)],
        _ => mix(dice.colour(), [40.0, 40.0, 40.0], 0.5),
    };
    let grain = dice.between(0.0, 12.0);
    let (line, squared) = (mix(paper, [90.0, 130.0, 200.0], dice.between(0.3, 0.9)), dice.chance(0.4));
    let (pitch, thin) = (least * dice.between(0.06, 0.2), (least * dice.between(0.002, 0.008)).max(0.6));
    let phase = dice.between(0.0, 1.0);
    let slant = tilt(&mut dice, 3.0);
    // Light falls off to one side; a shadow has an edge.
    let (fall, way) = (dice.between(0.0, 0.25), dice.between(0.0, 2.0 * PI));
    let dark = if scene == Class::Shadow { dice.between(0.3, 0.6) } else { 0.0 };
    let (edge, across) = (dice.between(0.1, 0.9), dice.between(0.0, 2.0 * PI));
    let soft = least * if dice.chance(0.5) { dice.between(0.01, 0.03) } else { dice.between(0.1, 0.4) };
    let deviation = dice.between(0.0, 7.0);

    let along = |x: f32, y: f32, way: f32| {
        ((x - middle.0) * way.cos() + (y - middle.1) * way.sin()) / (width.max(height) / 2.0)
    };
    let colour = |x: f32, y: f32| {
        // A pixel's share of what has an edge there.
        let inside = |distance: f32| (0.5 - distance).clamp(0.0, 1.0);
        let mut colour = paper;
        if scene == Class::Ruled {
            let (u, v) = turned(x, y, slant);
            let near = |c: f32| ((c / pitch + phase).fract() - 0.5).abs() * pitch - thin / 2.0;
            let lines = inside(near(v)).max(if squared { inside(near(u)) } else { 0.0 });
            colour = mix(colour, line, lines);
        }
        if let Some((rect, line)) = &frame {
            let distance = rect.distance(x, y);
            colour = mix(colour, ink, inside(distance) * inside(-distance - line));
        }
        let cover = digits.iter().map(|digit| digit.cover(x, y)).fold(0.0, f32::max);
        colour = mix(colour, ink, cover);
        if let Some(sheet) = &sheet {
            let wave = grain * ((0.11 * y + 3.0 * (0.013 * x).sin()).sin() + (0.37 * y).sin());
            colour = mix(table.map(|c| c + wave), colour, inside(sheet.distance(x, y)));
        }
        let light = 1.0 - fall * (0.5 + 0.5 * along(x, y, way));
        let shade = ((along(x, y, across) + 1.0 - 2.0 * edge) * least / soft + 0.5).clamp(0.0, 1.0);
        colour.map(|c| c * light * (1.0 - dark * shade))
    };
    let picture = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let grain = deviation * dice.noise();
        Rgb(colour(x as f32 + 0.5, y as f32 + 0.5).map(|c| (c + grain).clamp(0.0, 255.0) as u8))
    });
    let mut bytes = Cursor::new(Vec::new());
    let jpeg = dice.chance(0.7);
    let written = if jpeg {
        JpegEncoder::new_with_quality(&mut bytes, 35 + dice.below(60) as u8).encode_image(&picture)
    } else {
        picture.write_to(&mut bytes, ImageFormat::Png)
    };
    assert!(written.is_ok(), "{written:?}");
    Made { bytes: bytes.into_inner(), digit: (!matches!(class, Class::Two | Class::Empty)).then_some(first) }
}
