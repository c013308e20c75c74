//! From a picture of a digit to the 28×28 pixels that a network was trained on.
//!
//! MNIST was made so: the digit was cut out, scaled until its longer side had 20 pixels, and
//! laid into 28×28 with its centre of mass in the middle, light on dark. A network knows
//! nothing else, so every other picture is brought to that: [`decode`] reads a file, and
//! [`prepare`] does the rest, which is pure.
//!
//! * Any size, grey or colour, with or without transparency, dark on light or light on dark.
//! * A picture that is MNIST's already (or its negative) goes through unchanged, to the bit.
//! * No file makes it panic or allocate without bound (**TRUST-1**): sizes are limited before
//!   anything is decoded.

mod decode;
mod ink;
mod place;
#[cfg(test)]
mod tests;

use std::fmt;

use clap::ValueEnum;
use tally_data::samples::PIXELS;
use thiserror::Error;

pub use decode::{Bounds, Decoded, decode, open};

/// Whether a picture is turned into its negative before the network sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Invert {
    /// If its border is lighter than the middle between its lightest and darkest
    #[default]
    Auto,
    /// It is dark on light
    Yes,
    /// It is light on dark
    No,
}

/// What was found of a picture, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// It is dark on light, so it was inverted.
    pub inverted: bool,
    /// That was seen from the border, not said.
    pub by_border: bool,
    /// How light the background is, from 0 (black) to 255 (white).
    pub background: u8,
    /// Its border is transparent; it was laid on white or black, against its ink.
    pub transparent: bool,
    /// It was MNIST's already, and goes through as it is.
    pub unchanged: bool,
}

impl How {
    /// What decided which of ink and background is the lighter: "option", "ink" (of a
    /// drawing on a transparent ground) or "border".
    #[must_use]
    pub fn decided_by(&self) -> &'static str {
        match (self.by_border, self.transparent) {
            (false, _) => "option",
            (true, true) => "ink",
            (true, false) => "border",
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.inverted { "dark on light" } else { "light on dark" })?;
        match self.decided_by() {
            "option" => f.write_str(" (as told)")?,
            "ink" => f.write_str(" (by its ink: the border is transparent)")?,
            _ => write!(f, " (by its border: {:.0}% light)", f32::from(self.background) / 2.55)?,
        }
        f.write_str(if self.unchanged { ", as it is" } else { ", cut out and centred" })
    }
}

/// A digit as the network sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// 28×28 pixels, row-major, 0 is background.
    pub pixels: [u8; PIXELS],
    /// What was found on the way.
    pub how: How,
}

/// Why a picture shows no digit to the network.
#[derive(Debug, Error)]
pub enum PictureError {
    /// The file cannot be read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// It is of another kind, or of none.
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
    /// It is of one colour, or nearly.
    #[error(
        "it has next to no contrast, so there is no digit to see; use a picture of one digit on a plain background"
    )]
    Flat,
    /// Its border is as uneven as what should be the digit.
    #[error(
        "no digit stands out from its background; cut the picture to the digit and some plain background around it, \
         or say by --invert which of the two is the lighter"
    )]
    NoDigit,
}

/// Brings a decoded picture to what the network was trained on.
///
/// # Errors
/// [`PictureError::Flat`] and [`PictureError::NoDigit`].
pub fn prepare(picture: &Decoded, invert: Invert) -> Result<Prepared, PictureError> {
    let ground = ink::ground(picture, invert)?;
    let how = |unchanged| How {
        inverted: ground.dark_on_light,
        by_border: invert == Invert::Auto,
        background: ground.background,
        transparent: ground.transparent,
        unchanged,
    };
    if let Some(pixels) = place::already(&ground) {
        return Ok(Prepared { pixels, how: how(true) });
    }
    let ink = ink::ink(&ground).ok_or(PictureError::NoDigit)?;
    let pixels = place::place(&ink).ok_or(PictureError::NoDigit)?;
    Ok(Prepared { pixels, how: how(false) })
}
