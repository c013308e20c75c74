//! MNIST's own preparation: the digit is cut out, scaled to a longer side of 20 pixels, and placed in 28×28 pixels by its
//! centre of mass.

use image::imageops::{self, FilterType};
use image::{GrayImage, ImageBuffer, Luma};

use super::ink::Ink;
use crate::data::{PIXELS, SIDE};

/// The longer side of a digit.
const LONGER: usize = 20;
/// Where the centre of mass lies in both directions, counted in pixels from the first: of
/// MNIST's digits none is half a pixel away.
const CENTRE: f64 = 14.0;
/// Pixels that are less covered than this do not belong to the box that is cut out.
const OUTLINE: f32 = 0.25;

/// The pixels of a picture that is an image of MNIST, or its negative: 28×28, on plain
/// black, a longer side of 19 or 20 pixels (three of the ten thousand test digits have 19),
/// and the centre of mass where MNIST has it.
pub fn unchanged(grey: &GrayImage, dark_on_light: bool) -> Option<[u8; PIXELS]> {
    if grey.dimensions() != (SIDE as u32, SIDE as u32) {
        return None;
    }
    let mut pixels = [0; PIXELS];
    for (pixel, &v) in pixels.iter_mut().zip(grey.iter()) {
        *pixel = if dark_on_light { 255 - v } else { v };
    }
    let cover: Vec<f64> = pixels.iter().map(|&v| f64::from(v)).collect();
    let (left, top, width, height) = bounding_box(&cover, SIDE, 1.0)?;
    let (x, y) = centre_of_mass(&cover, SIDE)?;
    let fits =
        (LONGER - 1..=LONGER).contains(&width.max(height)) && left + width <= SIDE && top + height <= SIDE;
    let centred = (x - CENTRE).abs() <= 0.51 && (y - CENTRE).abs() <= 0.51;
    (fits && centred && pixels.iter().any(|&v| v >= 254)).then_some(pixels)
}

/// Cuts the digit out, scales it and places it.
pub fn centred(ink: &Ink) -> Option<[u8; PIXELS]> {
    let (left, top, width, height) = bounding_box(&ink.cover, ink.width, OUTLINE)?;
    let cut = ImageBuffer::<Luma<f32>, Vec<f32>>::from_fn(width as u32, height as u32, |x, y| {
        Luma([ink.cover[(top + y as usize) * ink.width + left + x as usize]])
    });
    let longer = width.max(height);
    let scaled_side = |side: usize| ((side * LONGER) as f64 / longer as f64).round().max(1.0) as u32;
    let scaled = imageops::resize(&cut, scaled_side(width), scaled_side(height), FilterType::Triangle);
    // A thin stroke comes out grey; MNIST's are light in their middle.
    let brightest = scaled.iter().copied().fold(0.0, f32::max);
    if brightest <= 0.0 {
        return None;
    }
    let (width, height) = (scaled.width() as usize, scaled.height() as usize);
    let cover: Vec<f64> = scaled.iter().map(|&v| f64::from(v.max(0.0) / brightest)).collect();
    let (x, y) = centre_of_mass(&cover, width)?;
    let offset =
        |centre: f64, side: usize| (CENTRE - centre).round().clamp(0.0, (SIDE - side) as f64) as usize;
    let (left, top) = (offset(x, width), offset(y, height));
    let mut pixels = [0; PIXELS];
    for (index, cover) in cover.into_iter().enumerate() {
        pixels[(top + index / width) * SIDE + left + index % width] = (255.0 * cover).round() as u8;
    }
    Some(pixels)
}

/// Left, top, width and height of the box around the pixels that are covered by at least `least`.
fn bounding_box<T: PartialOrd + Copy>(
    cover: &[T],
    columns: usize,
    least: T,
) -> Option<(usize, usize, usize, usize)> {
    let covered = || cover.iter().enumerate().filter(|&(_, &c)| c >= least).map(|(at, _)| at);
    let (top, bottom) = (covered().next()? / columns, covered().last()? / columns);
    let (left, right) = (covered().map(|at| at % columns).min()?, covered().map(|at| at % columns).max()?);
    Some((left, top, right - left + 1, bottom - top + 1))
}

/// Column and row of the centre of mass; none if there is no mass.
fn centre_of_mass(cover: &[f64], columns: usize) -> Option<(f64, f64)> {
    let (mut mass, mut x, mut y) = (0.0, 0.0, 0.0);
    for (at, &c) in cover.iter().enumerate() {
        mass += c;
        x += c * (at % columns) as f64;
        y += c * (at / columns) as f64;
    }
    (mass > 0.0).then(|| (x / mass, y / mass))
}
