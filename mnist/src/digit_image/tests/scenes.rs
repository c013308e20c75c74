//! Digits on desks, in frames, in colours and so on, and pictures without a digit.

use image::Luma;

use super::*;
use crate::data::Split;

#[path = "../../../tests/support/pictures/mod.rs"]
mod pictures;

#[test]
fn a_frame_and_a_table_are_not_ink() {
    let digit = &digits(1)[0];
    for thick in [4, 9, 40] {
        let drawn = negative(on_a_sheet(digit, 8, (400, 400), (90, 80)));
        let framed = GrayImage::from_fn(400, 400, |x, y| {
            let edge = x.min(y).min(399 - x).min(399 - y);
            if edge < thick { Luma([20]) } else { *drawn.get_pixel(x, y) }
        });
        let read = read(&png(framed), Invert::Auto).unwrap();
        assert!(read.preparation.inverted && likeness(&read.pixels, digit) > 0.95, "{thick}: {read:?}");
    }
}

#[test]
fn a_digit_that_is_cut_to_its_edges_is_read() {
    let mut alike = 0;
    for digit in digits(100) {
        let large = on_a_sheet(&digit, 8, (224, 224), (0, 0));
        let inked: Vec<(u32, u32)> =
            large.enumerate_pixels().filter(|(.., pixel)| pixel.0[0] > 127).map(|(x, y, _)| (x, y)).collect();
        let (left, right) =
            (inked.iter().map(|at| at.0).min().unwrap(), inked.iter().map(|at| at.0).max().unwrap());
        let (top, bottom) =
            (inked.iter().map(|at| at.1).min().unwrap(), inked.iter().map(|at| at.1).max().unwrap());
        let cut = imageops::crop_imm(&large, left, top, right - left + 1, bottom - top + 1).to_image();
        let read = read(&png(negative(cut)), Invert::Auto);
        alike += usize::from(read.is_ok_and(|read| likeness(&read.pixels, &digit) > 0.8));
    }
    // An upright 1 fills such a picture.
    assert!(alike >= 95, "{alike} of 100");
}

#[test]
fn colours_of_one_lightness_are_told_apart() {
    let digit = &digits(1)[0];
    let sheet = on_a_sheet(digit, 8, (300, 260), (30, 20));
    let pairs: [([u8; 3], [u8; 3]); 3] =
        [([0, 0, 255], [0, 0, 0]), ([255, 255, 0], [255, 255, 255]), ([200, 0, 0], [0, 102, 0])];
    for (ink, paper) in pairs {
        let drawn = image::RgbImage::from_fn(300, 260, |x, y| {
            let cover = f32::from(sheet.get_pixel(x, y).0[0]) / 255.0;
            let mix = |i: usize| f32::from(paper[i]) * (1.0 - cover) + f32::from(ink[i]) * cover;
            Rgb([mix(0), mix(1), mix(2)].map(|v| v.round() as u8))
        });
        let likeness = likeness(&read(&png(drawn), Invert::Auto).unwrap().pixels, digit);
        assert!(likeness > 0.95, "{ink:?} on {paper:?}: {likeness}");
    }
}

/// A few of each class of the set that the example `picture_set` asks a network about: what is read looks like the
/// digit, and what shows two or none is refused.
#[test]
fn pictures_as_people_take_them_come_out_as_mnist_has_them_or_are_refused() {
    const EACH: usize = 3;
    let test = Mnist::embedded().unwrap().test;
    for class in pictures::CLASSES {
        let mut read_alike = 0;
        for number in 0..EACH {
            let picture = pictures::make(class, number, &test);
            match (read(&picture.bytes, Invert::Auto), picture.digit) {
                (Ok(read), Some(digit)) => {
                    // What is turned by up to 15 degrees looks less like itself.
                    let least = if class == pictures::Class::Turned { 0.5 } else { 0.7 };
                    let likeness = likeness(&read.pixels, test.image(digit).unwrap());
                    assert!(likeness >= least, "{class:?} {number}: {likeness}");
                    read_alike += 1;
                }
                (refused, _) => assert!(
                    matches!(
                        refused,
                        Err(PictureError::Flat | PictureError::Several | PictureError::NoDigit)
                    ),
                    "{class:?} {number}: {refused:?}"
                ),
            }
        }
        let shows_one = !matches!(class, pictures::Class::Two | pictures::Class::Empty);
        assert!(!shows_one || read_alike >= EACH - 1, "{class:?}: only {read_alike} of {EACH} are read");
    }
}

#[test]
fn what_shows_no_digit_says_so() {
    let flat = |value| png(GrayImage::from_pixel(50, 40, Luma([value])));
    for bytes in [flat(0), flat(255), flat(99), png(GrayImage::from_pixel(1, 1, Luma([7])))] {
        assert!(matches!(read(&bytes, Invert::Auto), Err(PictureError::Flat)));
    }
    let noise = GrayImage::from_fn(64, 64, |x, y| Luma([((x * 7919 + y * 104_729) % 251) as u8]));
    assert!(matches!(read(&png(noise), Invert::Auto), Err(PictureError::NoDigit)));
}

/// What stands out here is no stroke.
#[test]
fn lines_chequers_sheets_and_blots_are_refused() {
    type IsInked = fn(u32, u32) -> bool;
    let pictures: [(&str, IsInked); 6] = [
        ("ruled lines", |_, y| y % 24 < 2),
        ("squares", |x, y| x % 20 < 2 || y % 20 < 2),
        ("a chequer", |x, y| (x / 25 + y / 25) % 2 == 0),
        ("a sheet", |x, y| (60..150).contains(&x) && (40..170).contains(&y)),
        ("a corner", |x, y| x + 2 * y < 120),
        ("a blot", |x, y| x.abs_diff(110).pow(2) + y.abs_diff(90).pow(2) < 1000),
    ];
    for (what, is_inked) in pictures {
        for (ink, paper) in [(30, 220), (220, 30)] {
            let drawn = GrayImage::from_fn(220, 200, |x, y| Luma([if is_inked(x, y) { ink } else { paper }]));
            let refused = read(&png(drawn), Invert::Auto);
            assert!(
                matches!(refused, Err(PictureError::NoDigit | PictureError::Several)),
                "{what}: {refused:?}"
            );
        }
    }
}

/// The gap between the boxes of two test digits, side by side, goes from none to a digit's width.
#[test]
fn two_digits_are_refused_however_near_they_are() {
    let digits = digits(60);
    for (pair, apart) in digits.chunks_exact(2).zip([19, 21, 24, 32].into_iter().cycle()) {
        let mut both = GrayImage::new(28 + apart, 28);
        for (digit, at) in pair.iter().zip([0, apart]) {
            for (x, y, pixel) in grey(digit).enumerate_pixels() {
                let place = both.get_pixel_mut(at + x, y);
                place.0[0] = place.0[0].max(pixel.0[0]);
            }
        }
        let large = imageops::resize(&both, (28 + apart) * 6, 28 * 6, FilterType::Triangle);
        let refused = read(&png(negative(large)), Invert::Auto);
        assert!(
            matches!(refused, Err(PictureError::Several | PictureError::NoDigit)),
            "{apart}: {refused:?}"
        );
    }
}
