//! MNIST's digits as people would hand them in must come out as MNIST has them.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, ImageFormat, Rgb, Rgba, RgbaImage};
use proptest::prelude::*;

use super::*;
use crate::data::{Mnist, SIDE};

mod files;
mod scenes;

fn digits(count: usize) -> Vec<Vec<u8>> {
    let test = Mnist::embedded().unwrap().test;
    test.pixels().chunks_exact(PIXELS).take(count).map(<[u8]>::to_vec).collect()
}

fn grey(pixels: &[u8]) -> GrayImage {
    GrayImage::from_raw(SIDE as u32, SIDE as u32, pixels.to_vec()).unwrap()
}

fn file(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
    file(picture, ImageFormat::Png)
}

fn read(bytes: &[u8], invert: Invert) -> Result<Prepared, PictureError> {
    prepare(&decode(Cursor::new(bytes), Bounds::FILE)?, invert)
}

/// The cosine between two pictures: 1 for the same shape. One may be a pixel off in each
/// direction: a centre of mass that lies in the middle between two pixels may be rounded
/// either way.
fn likeness(a: &[u8], b: &[u8]) -> f64 {
    let dot = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norm = (dot(a, a) * dot(b, b)).sqrt();
    let shifts = [0, 1, SIDE - 1, SIDE, SIDE + 1].into_iter();
    let products = shifts.flat_map(|shift| [dot(&a[shift..], b), dot(a, &b[shift..])]);
    products.fold(0.0, f64::max) / norm
}

/// A digit larger, somewhere on a larger sheet, light on dark.
fn on_a_sheet(digit: &[u8], scale: u32, sheet: (u32, u32), at: (u32, u32)) -> GrayImage {
    let side = SIDE as u32 * scale;
    let large = imageops::resize(&grey(digit), side, side, FilterType::CatmullRom);
    let mut picture = GrayImage::new(sheet.0, sheet.1);
    imageops::replace(&mut picture, &large, at.0.into(), at.1.into());
    picture
}

fn negative(mut picture: GrayImage) -> GrayImage {
    imageops::invert(&mut picture);
    picture
}

/// Every digit handed in as `as_handed_in` makes it comes out much like itself.
fn come_out_alike(
    least_mean: f64,
    least: f64,
    as_handed_in: impl Fn(usize, &[u8]) -> Vec<u8>,
) -> Vec<Preparation> {
    let mut all = Vec::new();
    let mut hows = Vec::new();
    for (index, digit) in digits(40).iter().enumerate() {
        let prepared = read(&as_handed_in(index, digit), Invert::Auto).unwrap();
        all.push(likeness(&prepared.pixels, digit));
        hows.push(prepared.preparation);
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let worst = all.iter().copied().fold(1.0, f64::min);
    assert!(mean >= least_mean && worst >= least, "mean likeness {mean}, worst {worst}");
    hows
}

#[test]
fn mnist_itself_goes_through_to_the_bit_and_so_does_its_negative() {
    for digit in digits(10_000) {
        for (picture, inverted) in [(grey(&digit), false), (negative(grey(&digit)), true)] {
            let decoded = Decoded(DynamicImage::from(picture).to_rgba8());
            let prepared = prepare(&decoded, Invert::Auto).unwrap();
            assert_eq!(prepared.pixels[..], digit);
            assert!(
                prepared.preparation.unchanged
                    && prepared.preparation.inverted == inverted
                    && prepared.preparation.automatic
            );
        }
    }
}

#[test]
fn large_off_centre_and_dark_on_light_comes_out_as_mnist_has_it() {
    let hows = come_out_alike(0.97, 0.85, |index, digit| {
        let at = ((index as u32 * 37) % 220, (index as u32 * 53) % 120);
        png(negative(on_a_sheet(digit, 10, (500, 400), at)))
    });
    assert!(hows.iter().all(|how| how.inverted && !how.unchanged && how.background == 255), "{hows:?}");
}

#[test]
fn small_light_on_dark_comes_out_as_mnist_has_it() {
    let hows = come_out_alike(0.95, 0.88, |index, digit| {
        png(on_a_sheet(digit, 1, (60, 40), (index as u32 % 32, index as u32 % 12)))
    });
    assert!(hows.iter().all(|how| !how.inverted && !how.unchanged), "{hows:?}");
}

/// As a camera has it: grey paper under uneven light, ink that is not black, noise, a speck
/// of dirt, and JPEG.
#[test]
fn a_photograph_of_paper_comes_out_as_mnist_has_it() {
    come_out_alike(0.97, 0.8, |index, digit| {
        let sheet = on_a_sheet(digit, 14, (640, 480), (100, 40));
        let mut photograph = image::RgbImage::from_fn(640, 480, |x, y| {
            let ink = f32::from(sheet.get_pixel(x, y).0[0]) / 255.0;
            let noise = ((x * 7919 + y * 104_729 + index as u32 * 31) % 11) as f32 - 5.0;
            let light = 150.0 + 30.0 * (x as f32 / 640.0) + noise;
            Rgb([light, light - 8.0, light - 20.0].map(|paper| (paper * (1.0 - ink) + 45.0 * ink) as u8))
        });
        for (x, y) in (0..9).flat_map(|x| (0..9).map(move |y| (x + 590, y + 430))) {
            photograph.put_pixel(x, y, Rgb([40, 40, 40]));
        }
        file(photograph, ImageFormat::Jpeg)
    });
}

#[test]
fn a_drawing_on_nothing_is_laid_against_its_ink() {
    for ink in [0, 255] {
        let hows = come_out_alike(0.97, 0.8, |_, digit| {
            let sheet = on_a_sheet(digit, 8, (300, 300), (60, 20));
            png(RgbaImage::from_fn(300, 300, |x, y| Rgba([ink, ink, ink, sheet.get_pixel(x, y).0[0]])))
        });
        assert!(hows.iter().all(|how| how.transparent && how.inverted == (ink == 0)), "{hows:?}");
    }
}

#[test]
fn what_is_said_wins_over_what_is_seen() {
    let drawn = png(negative(on_a_sheet(&digits(1)[0], 8, (260, 260), (18, 18))));
    let seen = read(&drawn, Invert::Auto).unwrap().preparation;
    assert_eq!(seen.to_string(), "dark on light (its background is 100% light), cut out and centred");
    let told = read(&drawn, Invert::Yes).unwrap().preparation;
    assert_eq!(told.to_string(), "dark on light (as told), cut out and centred");
    // Nothing in it is a lighter stroke.
    let told = read(&drawn, Invert::No);
    assert!(matches!(told, Err(PictureError::NoDigit)), "{told:?}");
}

proptest! {
    /// TRUST-1: whatever the pixels are, there is a digit or an error.
    #[test]
    fn trust_1_no_pixels_make_it_panic(
        width in 1u32..70,
        height in 1u32..70,
        bytes in proptest::collection::vec(any::<u8>(), 1..200),
        invert in prop_oneof![Just(Invert::Auto), Just(Invert::Yes), Just(Invert::No)],
    ) {
        let at = |x: u32, y: u32, z: u32| bytes[((x * 31 + y * 17 + z) as usize) % bytes.len()];
        let picture = RgbaImage::from_fn(width, height, |x, y| Rgba([0, 1, 2, 3].map(|z| at(x, y, z))));
        let _ = prepare(&Decoded(DynamicImage::from(picture).to_rgba8()), invert);
    }
}
