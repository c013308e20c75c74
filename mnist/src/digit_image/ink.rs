//! The ink of a picture: whether ink or background is lighter, how light the background is, and how much of each pixel is
//! covered by ink.

use image::GrayImage;

use super::decode::Decoded;
use super::{Invert, PictureError};

/// The least difference between the darkest and the lightest pixel of a picture that can be used.
const LEAST_CONTRAST: u8 = 24;
/// Pixels that are less covered than this count as background where shapes are looked for.
const FAINT: f32 = 0.15;
/// If the background varies by more than this share of the difference to the ink, the two cannot be distinguished.
const MOST_NOISE: f32 = 0.5;
/// The same if more than this share of the border, in percent, is nearer to the ink; a digit that is cut to its edges
/// touches them with less.
const MOST_CROSSED: usize = 40;
/// A connected shape with less than this share of the largest one's ink is dirt. (The bar of a 5 and the dot in a
/// hollow 0 have more.)
const DIRT: f32 = 0.02;

/// A picture, and what is known of its background.
#[derive(Clone, Debug)]
pub struct Background {
    /// How light each pixel is.
    pub grey: GrayImage,
    /// Ink is darker than the background.
    pub dark_on_light: bool,
    /// How light the background is.
    pub lightness: u8,
    /// How far the background varies towards the ink.
    pub noise: u8,
    /// The lightness of the pixel farthest from the background, on the ink's side.
    pub extreme: u8,
    /// The border is transparent.
    pub transparent: bool,
}

/// How much of each pixel is covered by ink, 0 to 1.
#[derive(Clone, Debug)]
pub struct Ink {
    /// Columns.
    pub width: usize,
    /// Row-major.
    pub cover: Vec<f32>,
}

/// Finds the background, by the picture's border.
pub fn background(picture: &Decoded, invert: Invert) -> Result<Background, PictureError> {
    let (grey, transparent) = flatten(picture);
    let (darkest, lightest) =
        grey.iter().fold((u8::MAX, u8::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    if grey.is_empty() || lightest - darkest < LEAST_CONTRAST {
        return Err(PictureError::Flat);
    }
    let middle = darkest.midpoint(lightest);
    let mut border: Vec<u8> = border(&grey).map(|(x, y)| grey.get_pixel(x, y).0[0]).collect();
    let dark_on_light = match invert {
        Invert::Yes => true,
        Invert::No => false,
        Invert::Auto => median(&mut border) > middle,
    };
    // Where the digit touches the border, the border is not all background.
    let all = border.len();
    border.retain(|&v| if dark_on_light { v >= middle } else { v <= middle });
    if invert == Invert::Auto && 100 * (all - border.len()) > MOST_CROSSED * all {
        return Err(PictureError::NoDigit);
    }
    let (far, extreme) = if dark_on_light { (lightest, darkest) } else { (darkest, lightest) };
    let background = if border.is_empty() { far } else { median(&mut border) };
    let towards_ink =
        |v: u8| if dark_on_light { background.saturating_sub(v) } else { v.saturating_sub(background) };
    let mut variation: Vec<u8> = border.iter().map(|&v| towards_ink(v)).collect();
    let noise = percentile(&mut variation, 95);
    Ok(Background { grey, dark_on_light, lightness: background, noise, extreme, transparent })
}

/// The picture on an opaque background: white, or black if its border is transparent and the drawing is light.
fn flatten(Decoded(picture): &Decoded) -> (GrayImage, bool) {
    let edge: Vec<u8> = border(picture).map(|(x, y)| picture.get_pixel(x, y).0[1]).collect();
    let clear = edge.iter().filter(|&&alpha| alpha < 128).count();
    let transparent = 2 * clear > edge.len();
    let (mut light, mut all) = (0u64, 0u64);
    for pixel in picture.pixels() {
        let [v, alpha] = pixel.0.map(u64::from);
        light += v * alpha;
        all += 255 * alpha;
    }
    let paper = if transparent && 2 * light > all { 0 } else { 255 };
    let grey = GrayImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [v, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        image::Luma([((v * alpha + paper * (255 - alpha) + 127) / 255) as u8])
    });
    (grey, transparent)
}

/// The positions of the outermost pixels: a ring of a 32nd of the shorter side, at least one.
fn border<P: image::Pixel>(
    picture: &image::ImageBuffer<P, Vec<P::Subpixel>>,
) -> impl Iterator<Item = (u32, u32)> + use<P> {
    let (width, height) = picture.dimensions();
    let thick = (width.min(height) / 32).max(1);
    let inside = move |x: u32, side: u32| x >= thick && x + thick < side;
    (0..height)
        .flat_map(move |y| (0..width).map(move |x| (x, y)))
        .filter(move |&(x, y)| !(inside(x, width) && inside(y, height)))
}

fn percentile(values: &mut [u8], percent: usize) -> u8 {
    values.sort_unstable();
    values.get(values.len() * percent / 100).or(values.last()).copied().unwrap_or(0)
}

fn median(values: &mut [u8]) -> u8 {
    percentile(values, 50)
}

/// How much of each pixel is covered, without dirt; `None` if nothing stands out from the background.
pub fn ink(picture: &Background) -> Option<Ink> {
    let range = f32::from(picture.extreme) - f32::from(picture.lightness);
    let floor = f32::from(picture.noise) / range.abs();
    if range == 0.0 || floor > MOST_NOISE {
        return None;
    }
    let cover = |&v: &u8| {
        let covered = (f32::from(v) - f32::from(picture.lightness)) / range;
        ((covered - floor) / (1.0 - floor)).clamp(0.0, 1.0)
    };
    let mut ink =
        Ink { width: picture.grey.width() as usize, cover: picture.grey.iter().map(cover).collect() };
    remove_dirt(&mut ink);
    Some(ink)
}

/// Clears every connected shape with little ink, and the pixels that belong to no shape.
fn remove_dirt(ink: &mut Ink) {
    let (width, height) = (ink.width, ink.cover.len() / ink.width);
    let mut shape = vec![0usize; ink.cover.len()];
    let mut amounts = vec![0f32];
    let mut stack = Vec::new();
    for start in 0..ink.cover.len() {
        if shape[start] != 0 || ink.cover[start] < FAINT {
            continue;
        }
        let number = amounts.len();
        amounts.push(0.0);
        shape[start] = number;
        stack.push(start);
        while let Some(at) = stack.pop() {
            amounts[number] += ink.cover[at];
            for next in neighbours(at, width, height) {
                if shape[next] == 0 && ink.cover[next] >= FAINT {
                    shape[next] = number;
                    stack.push(next);
                }
            }
        }
    }
    let most = amounts.iter().copied().fold(0.0, f32::max);
    let kept: Vec<bool> = amounts.iter().map(|&amount| amount > 0.0 && amount >= DIRT * most).collect();
    // Faint pixels are the soft edge of the shape that they touch, or nothing.
    let edge = |at: usize| neighbours(at, width, height).any(|next| kept[shape[next]]);
    let keep: Vec<bool> =
        (0..shape.len()).map(|at| kept[shape[at]] || (shape[at] == 0 && edge(at))).collect();
    for (cover, keep) in ink.cover.iter_mut().zip(keep) {
        if !keep {
            *cover = 0.0;
        }
    }
}

/// The up to eight pixels around one.
fn neighbours(at: usize, width: usize, height: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (at % width, at / width);
    let around = move |c: usize, side: usize| c.saturating_sub(1)..=(c + 1).min(side - 1);
    around(y, height)
        .flat_map(move |y| around(x, width).map(move |x| y * width + x))
        .filter(move |&next| next != at)
}
