//! Pictures of digits as people take them: MNIST's test digits on paper, on a desk, in a frame, on ruled lines and so on,
//! two digits at once, and none.
//!
//! Each picture is fixed by its class and its number, and has the same bytes on every machine. Sizes, places, pens, colours,
//! light, noise and JPEG's quality differ from one to the next. The reader's tests include this module, and so does the
//! example `picture_set`, which prints the table of `docs/measurements/pictures.md`.

mod dice;
mod light;
mod placed;
mod scene;

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat};

use self::dice::Dice;
use self::scene::Scene;
use super::Split;

/// What a picture shows besides a digit, or instead of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A plain sheet that fills the picture, in uneven light.
    Paper,
    /// A sheet on a table that is darker or has another colour, straight or turned a little.
    Desk,
    /// A drawn frame around the digit.
    Frame,
    /// Ruled or squared paper.
    Ruled,
    /// The edge of a shadow, sharp or soft, somewhere across the sheet.
    Shadow,
    /// Any colour on any other that people can tell apart, such as yellow on white.
    Colours,
    /// A digit that is turned by up to 15 degrees, or a picture that is, with empty corners.
    Turned,
    /// Two digits side by side.
    Two,
    /// A scene of the classes above without a digit.
    Empty,
    /// Paper that fades from one colour to another.
    Gradient,
    /// A picture of at most 64 pixels.
    Small,
    /// A digit that touches the picture's edge, or is cut a little by it.
    Edge,
    /// Out of focus, in much noise, or a JPEG of the lowest quality.
    Poor,
    /// A drawing on a transparent ground.
    Transparent,
}

/// All of them, in the table's order.
pub const CLASSES: [Class; 14] = [
    Class::Paper,
    Class::Desk,
    Class::Frame,
    Class::Ruled,
    Class::Shadow,
    Class::Colours,
    Class::Turned,
    Class::Two,
    Class::Empty,
    Class::Gradient,
    Class::Small,
    Class::Edge,
    Class::Poor,
    Class::Transparent,
];

/// A picture and the truth about it.
pub struct Made {
    /// A PNG or a JPEG.
    pub bytes: Vec<u8>,
    /// The test digit that it shows; none if it shows two or none.
    pub digit: Option<usize>,
}

/// Picture `number` of a class.
pub fn make(class: Class, number: usize, test: &Split) -> Made {
    let mut dice = Dice::of(class, number);
    // Those without a digit are scenes of the classes in front of `Turned`.
    let kind = if class == Class::Empty { CLASSES[number % 6] } else { class };
    let (scene, first) = Scene::draw(class, kind, test, &mut dice);
    let picture = scene.paint(&mut dice);
    let mut bytes = Cursor::new(Vec::new());
    let written = if class == Class::Transparent {
        picture.write_to(&mut bytes, ImageFormat::Png)
    } else {
        let picture = DynamicImage::from(picture).to_rgb8();
        let lowest = if class == Class::Poor { 8 } else { 35 };
        match dice.chance(0.7) {
            true => JpegEncoder::new_with_quality(&mut bytes, lowest + dice.below(60) as u8)
                .encode_image(&picture),
            false => picture.write_to(&mut bytes, ImageFormat::Png),
        }
    };
    assert!(written.is_ok(), "{written:?}");
    Made { bytes: bytes.into_inner(), digit: (!matches!(class, Class::Two | Class::Empty)).then_some(first) }
}
