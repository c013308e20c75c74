//! Pictures of digits as images like MNIST's, 28×28 pixels.
//!
//! MNIST's images were made so: a digit was cut out, scaled until its longer side had 20 pixels, and placed in 28×28
//! pixels with its centre of mass in the middle, light on dark. A network is trained on nothing else, so every picture is
//! converted to that form: [`decode`] reads a file, and [`prepare`] does the rest, without I/O.
//!
//! * A picture may have any size, be grey or in colour, with or without transparency, dark on light or light on dark.
//! * An image of MNIST (or its negative) stays the same, to the bit.
//! * The digit is looked for among everything that stands out from its surroundings: a table, a frame, lines or a shadow
//!   are not ink. A picture in which no digit is found, or more than one, is refused.
//! * No file causes a panic or an allocation without bound (**TRUST-1**): sizes are limited before anything is decoded.

mod centre;
mod colour;
mod contrast;
mod decode;
mod digit;
mod ink;
mod likeness;
mod shapes;
mod strokes;

#[cfg(test)]
mod tests;

use std::fmt;

use clap::ValueEnum;
use thiserror::Error;

use crate::data::PIXELS;

pub use decode::{Bounds, Decoded, decode, open};

/// Whether a picture is inverted before the network gets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Invert {
    /// If its digit is darker than what is around it
    #[default]
    Auto,
    /// It is dark on light
    Yes,
    /// It is light on dark
    No,
}

impl Invert {
    /// Whether ink is looked for that is darker than its background, lighter, or both.
    fn directions(self) -> &'static [bool] {
        match self {
            Self::Auto => &[true, false],
            Self::Yes => &[true],
            Self::No => &[false],
        }
    }
}

/// How a picture was prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preparation {
    /// The picture is dark on light, so it was inverted.
    pub inverted: bool,
    /// The picture decided that, not an option.
    pub automatic: bool,
    /// How light the background is, from 0 (black) to 255 (white).
    pub background: u8,
    /// The border is transparent; the picture was laid on white or black, whichever contrasts with the ink.
    pub transparent: bool,
    /// The picture is an image of MNIST already, and stays as it is.
    pub unchanged: bool,
}

impl Preparation {
    /// What decided whether ink or background is lighter: "option", "ink" (of a drawing on a transparent background) or
    /// "background".
    #[must_use]
    pub fn decided_by(&self) -> &'static str {
        match (self.automatic, self.transparent) {
            (false, _) => "option",
            (true, true) => "ink",
            (true, false) => "background",
        }
    }
}

impl fmt::Display for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.inverted { "dark on light" } else { "light on dark" })?;
        match self.decided_by() {
            "option" => f.write_str(" (as told)")?,
            "ink" => f.write_str(" (by its ink: the border is transparent)")?,
            _ => write!(f, " (its background is {:.0}% light)", f32::from(self.background) / 2.55)?,
        }
        f.write_str(if self.unchanged { ", as it is" } else { ", cut out and centred" })
    }
}

/// A digit as the network gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// 28×28 pixels, row-major, 0 is background.
    pub pixels: [u8; PIXELS],
    /// How the picture was prepared.
    pub preparation: Preparation,
}

/// Why a picture cannot be used.
#[derive(Debug, Error)]
pub enum PictureError {
    /// The file cannot be read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// It is neither PNG nor JPEG.
    #[error("it is neither PNG nor JPEG; convert it to one of them")]
    Kind,
    /// It is larger than is decoded.
    #[error("it is too large to decode (over {side}×{side} pixels or {megabytes} MiB); scale it down")]
    TooLarge {
        /// The longest side that is decoded.
        side: u32,
        /// The most memory that decoding may take.
        megabytes: u64,
    },
    /// It is damaged.
    #[error("it is damaged: {0}; save it again")]
    Damaged(String),
    /// It has one colour, or nearly.
    #[error(
        "it has next to no contrast, so there is no digit to see; use a picture of one digit on a plain background"
    )]
    Flat,
    /// It shows several digits.
    #[error("it seems to show more than one digit; cut it to one digit and some plain background around it")]
    Several,
    /// Nothing in it has the form of a digit.
    #[error(
        "nothing that looks like one handwritten digit stands out from its background; cut the picture to the digit and \
         some plain background around it, or tell worker predict which is lighter: --invert yes for dark ink on a light \
         background, --invert no for light ink on a dark one"
    )]
    NoDigit,
}

/// Converts a decoded picture to an image like MNIST's.
///
/// # Errors
/// [`PictureError::Flat`], [`PictureError::Several`] and [`PictureError::NoDigit`].
pub fn prepare(picture: &Decoded, invert: Invert) -> Result<Prepared, PictureError> {
    let (picture, transparent) = colour::flatten(&picture.0);
    let grey = colour::grey(&picture);
    let preparation = |inverted, background, unchanged| Preparation {
        inverted,
        automatic: invert == Invert::Auto,
        background,
        transparent,
        unchanged,
    };
    for &inverted in invert.directions() {
        if let Some(pixels) = centre::unchanged(&grey, inverted) {
            let background = if inverted { 255 } else { 0 };
            return Ok(Prepared { pixels, preparation: preparation(inverted, background, true) });
        }
    }
    let ink = ink::find(&grey, invert)?;
    let pixels = centre::centred(&ink).ok_or(PictureError::NoDigit)?;
    if !likeness::is_digit(&pixels) {
        return Err(PictureError::NoDigit);
    }
    Ok(Prepared { pixels, preparation: preparation(ink.dark_on_light, ink.background, false) })
}
